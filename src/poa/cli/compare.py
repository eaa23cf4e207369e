"""The command ``poa compare``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter
from rich.table import Table

from poa.cli.evaluate import SEVERAL, Sources, Switch, say
from poa.cli.plan import Flags
from poa.cli.show import show_table
from poa.config import resolve
from poa.config.pretraining import Config
from poa.errors import UserError
from poa.text import plain_console

if TYPE_CHECKING:
    from poa.experiments.plan import Training
    from poa.experiments.runs import Labelled

OWN = Parameter(group=Group("Comparison", sort_key=0))
"""For flags of a comparison that are no settings of a run."""


def compare(
    *,
    sizes: Annotated[tuple[str, ...] | None, SEVERAL, OWN] = None,
    train: Annotated[Sources, OWN],
    test: Annotated[Sources, OWN],
    num_sizes: Annotated[tuple[int, ...] | None, Parameter(consume_multiple=True, negative=()), OWN] = None,
    all_sizes: Annotated[Switch, OWN] = False,
    seeds: Annotated[tuple[int, ...], SEVERAL, OWN] = (0, 1, 2),
    flags: Flags = Config(),
    recipe: str | None = None,
    config: Path | None = None,
    vote_limit: Annotated[int | None, OWN] = None,
    dry_run: Annotated[Switch, OWN] = False,
) -> None:
    """Train sizes in one run, alone and by SEED distillation, on equal terms, and score them all.

    Example: poa compare --data IMAGES --out runs/all --recipe vit-96 --sizes 64x3 96x4 --train LABELLED/train
    --test LABELLED/test. The same command resumes it after a stop. With --num-sizes in place of --sizes, it tells from
    how many sizes on one elastic run is ahead of as many networks that take the same compute altogether.

    Args:
        sizes: Sizes to compare; the largest of the run, which is the teacher, is always included.
        train: Labelled images for k-NN and linear classifiers.
        test: Labelled images to test on.
        num_sizes: Numbers of sizes to compare, spread over the search space; without values 1, 3, 6 and 12, as far as
            there are so many. Alone and distilled, the smallest, the middle and the largest are trained.
        all_sizes: With --num-sizes, train all sizes alone and distilled.
        seeds: Seeds; for each, one elastic run and its baselines are trained.
        flags: Settings of the elastic run, as in `poa pretrain`; --out is the folder of all runs.
        recipe: Start from a shipped recipe; `poa recipes` lists them.
        config: Start from a YAML file of settings, which overrides --recipe and is overridden by flags.
        vote_limit: Use only so many of the --train images, balanced over classes.
        dry_run: List all runs with their hours, by two steps of each kind of network, and write nothing.
    """
    if (sizes is None) == (num_sizes is None):
        raise UserError("Give either --sizes, such as --sizes 64x3 96x4, or --num-sizes, such as --num-sizes 1 3 6 12.")
    if all_sizes and num_sizes is None:
        raise UserError("--all-sizes goes with --num-sizes. Leave it out; --sizes names the sizes to train.")
    from poa.experiments.plan import elastic_run
    from poa.experiments.runs import Labelled

    given, first = flags.model_dump(exclude_unset=True), elastic_run(next(iter(seeds), 0))
    resolved = resolve.resolve(given, recipe=recipe, file=config, resume=True, place=first)
    labelled = Labelled(train, test, vote_limit)
    if sizes is not None:
        _compare_sizes(resolved, sizes, seeds, labelled, dry_run=dry_run)
    elif num_sizes is not None:
        _compare_num_sizes(resolved, num_sizes, seeds, labelled, all_sizes=all_sizes, dry_run=dry_run)


def _compare_sizes(
    config: Config, sizes: tuple[str, ...], seeds: tuple[int, ...], labelled: "Labelled", *, dry_run: bool
) -> None:
    from poa.experiments import compare as comparison

    made = comparison.planned(config, sizes=sizes, seeds=seeds, labelled=labelled)
    if dry_run:
        _forecast(made.trainings)
        return
    found = comparison.compare(made, labelled, Path(config.out), console=plain_console(stderr=True))
    _show(comparison.comparison_tables(found), Path(config.out, "compare"))


def _compare_num_sizes(
    config: Config,
    numbers: tuple[int, ...],
    seeds: tuple[int, ...],
    labelled: "Labelled",
    *,
    all_sizes: bool,
    dry_run: bool,
) -> None:
    from poa.experiments import num_sizes
    from poa.experiments.break_even import NAME

    made = num_sizes.planned(config, numbers=numbers, all_sizes=all_sizes, seeds=seeds, labelled=labelled)
    if dry_run:
        _forecast(made.trainings)
        return
    found = num_sizes.compare_num_sizes(made, labelled, Path(config.out), console=plain_console(stderr=True))
    _show(found.tables(), Path(config.out, NAME))
    say("N: how many sizes are wanted; one is the mean of three cases, in each of which another size is wanted.")
    say("surely: the whole 95 % interval of the difference over seeds is above zero.")


def _show(tables: Sequence[Table], files: Path) -> None:
    for table in tables:
        show_table(table)
    say("±: half of the 95 % interval of the mean over seeds (Student's t), if there are several.")
    say("compute: operations to train all sizes, divided by those of the elastic run.")
    say(f"Scores: {files.with_suffix('.csv')}")
    say(f"Picture: {files.with_suffix('.png')}")


def _forecast(trainings: "Mapping[Path, Training]") -> None:
    from poa.experiments.forecast import forecast, forecast_lines, forecast_table

    found = forecast(trainings, plain_console(stderr=True))
    plain_console().print(forecast_table(found))
    for line in forecast_lines(found):
        say(line)
