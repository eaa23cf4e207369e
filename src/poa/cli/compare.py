"""The command ``poa compare``."""

from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter
from rich.console import Console

from poa.config import resolve
from poa.config.pretraining import Config

# torch is imported when the command runs: `poa --help` and a mistyped flag shall not wait for it.

OWN = Group("Comparison", sort_key=0)
Flags = Annotated[Config, Parameter(name="*", consume_multiple=True, negative_iterable=())]
Names = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), group=OWN)]
Seeds = Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative=(), group=OWN)]
Images = Annotated[str, Parameter(group=OWN)]


def compare(
    *,
    sizes: Names,
    train: Images,
    test: Images,
    seeds: Seeds = (0, 1, 2),
    flags: Flags = Config(),  # noqa: B008  # frozen
    recipe: str | None = None,
    config: Path | None = None,
    vote_limit: Annotated[int | None, Parameter(group=OWN)] = None,
) -> None:
    """Train sizes in one run, each alone, and distilled by SEED, on equal terms, and score them all.

    Such as: poa compare --data IMAGES --out runs/all --recipe vit-small-data --sizes 64x3 96x4 --train LABELLED/train
    --test LABELLED/test. The same command goes on where it was stopped.

    Args:
        sizes: Which sizes; the largest of all is always among them, as it teaches.
        train: Labelled images for k-NN and linear classifiers.
        test: Labelled images that are classified.
        seeds: One elastic run, and its rivals, for each.
        flags: Settings of the elastic run, as in `poa pretrain`; --out is the folder of all runs.
        recipe: Start from a shipped recipe; `poa recipes` lists them.
        config: Start from a YAML file of settings; flags win over it, and it wins over --recipe.
        vote_limit: Take only a class-balanced part of the --train images.
    """
    resolved = resolve.resolve(flags.model_dump(exclude_unset=True), recipe=recipe, file=config)
    from poa.experiments import compare as comparison
    from poa.plots.contest import contest_tables

    found = comparison.compare(
        resolved, sizes=sizes, seeds=seeds, train_on=train, test_on=test, limit=vote_limit, console=Console(stderr=True)
    )
    for table in contest_tables(found):
        Console().print(table)
    plain = Console(soft_wrap=True, highlight=False)
    plain.print("±: standard deviation over seeds, if there are several.")
    plain.print("compute: operations to get all sizes, over those of the elastic run.")
    plain.print(f"Scores: {Path(resolved.out) / 'compare.csv'}\nPicture: {Path(resolved.out) / 'compare.png'}")
