"""Compare sizes cut out of one run with the same sizes trained alone and distilled: train all, score all, report."""

import csv
import json
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student_t

from poa.config.pretraining import Config
from poa.config.resolve import as_begun, differences, of_run
from poa.data.index import matched_labels, open_index
from poa.data.sources import check_out
from poa.elastic.space import Size
from poa.errors import UserError
from poa.evaluation import evaluate
from poa.evaluation.knn import Knn
from poa.evaluation.linear import Linear
from poa.evaluation.protocol import LEVEL, Protocol
from poa.evaluation.sweep import SweepOptions, overlap_of
from poa.experiments.plan import Approach, Plan, Training, elastic_run, plan, stopped
from poa.files import whole_file
from poa.models.registry import explicit, family_of
from poa.models.run import Paths, is_begun, reopen
from poa.models.source import model_source
from poa.plots.figure import legend, save, style
from poa.plots.tables import ScoreCell, plain_table, score_cell
from poa.pretraining.loop import train
from poa.text import note, plain_console, tell
from poa.training.checkpoint import latest_checkpoint, step_of

PROTOCOLS: tuple[tuple[str, Protocol], ...] = (("top1@20", Knn()), ("top1", Linear()))
"""The scores compared, by their names, and their protocols."""
WAYS = {
    ("poa", "images"): "one elastic run",
    ("single", "images"): "alone, equal images",
    ("single", "compute"): "alone, equal compute",
    ("seed", "images"): "SEED, equal images",
    ("seed", "compute"): "SEED, equal compute",
}
"""What is compared, in the order of the rows; images or compute are equal to those of the elastic run."""
TITLES = {"knn": "k-NN top-1 in %, 20 neighbours", "linear": "linear probe top-1 in %"}
_COLOURS = ("#111111", "#4477aa", "#88bbdd", "#cc6677", "#eeaa88")
_MARKERS = ("D", "o", "o", "s", "s")


class Score(NamedTuple):
    """Accuracy of a size that was trained in one way, by one protocol, in percent over seeds."""

    way: str
    """The method, such as ``poa``."""
    budget: str
    """What is equal to that of the elastic run: ``images`` or ``compute``."""
    size: str
    protocol: str
    mean: float
    spread: float | None
    """Standard deviation of a sample; None for one seed."""
    compute: float
    """Operations to train all sizes, over those of the elastic run."""
    low: float | None = None
    """Lower end of the 95 % interval of the mean over all seeds there could be, by Student's t; None for one seed."""
    high: float | None = None
    """Its upper end."""


class Result(NamedTuple):
    """Scores of a size trained in one way, one a seed; fields as in ``compare.json``."""

    way: str
    budget: str
    size: str
    protocol: str
    values: tuple[float, ...]
    compute: float

    def score(self) -> Score:
        """Mean, spread and interval over seeds."""
        mean, seeds = fmean(self.values), len(self.values)
        what = (self.way, self.budget, self.size, self.protocol, mean)
        if seeds < 2:
            return Score(*what, None, self.compute)
        spread = stdev(self.values)
        half = float(student_t.ppf((1 + LEVEL) / 2, seeds - 1)) * spread / sqrt(seeds)
        return Score(*what, spread, self.compute, mean - half, mean + half)


def compare(
    config: Config,
    *,
    sizes: Sequence[str],
    seeds: Sequence[int],
    train_on: str,
    test_on: str,
    limit: int | None = None,
    workers: int = 0,
    console: Console | None = None,
) -> list[Score]:
    """Train what is not trained yet, score what is not scored yet, and write ``compare.json``, ``.csv`` and ``.png``.

    Args:
        config: Settings of the elastic run; ``out`` is the folder of all runs.
        sizes: Which sizes to compare; the largest of the search space, the teacher, is always among them.
        seeds: One elastic run and its baselines for each.
        train_on: Labelled images for k-NN and linear classifiers.
        test_on: Labelled images that are classified.
        limit: Class-balanced part of ``train_on``.
        workers: Processes that decode images for scoring.
        console: Where to show progress.
    """
    console = console or plain_console(stderr=True)
    _check(config, seeds)
    _check_begun(config, seeds)
    space = family_of(config).space
    chosen = sorted({space.find(size) for size in sizes} | {space.intact})
    if len(chosen) < 2:
        raise UserError(f"--sizes names only the intact network. Add smaller sizes, such as {space.sizes[0]}.")
    check_out(Path(config.out), config.data, train_on, test_on)
    labelled = open_index(train_on, limit=limit), open_index(test_on)  # before hours are spent
    matched_labels(*labelled)
    overlap_of({"train": labelled[0].identity, "test": labelled[1].identity})
    made = plan(config, sizes=chosen, seeds=seeds, num_images=len(open_index(config.data, limit=config.limit)))
    _train(made, console)
    results = _results(made, chosen, train_on, test_on, limit=limit, workers=workers, console=console)
    return _write(results, Path(config.out))


def _check(config: Config, seeds: Sequence[int]) -> None:
    if config.method != "poa":
        raise UserError(f"A comparison needs --method poa, got {config.method}; it trains the other methods itself.")
    if not config.out:
        raise UserError("--out FOLDER is required: the folder of all runs.")
    if not seeds or len(set(seeds)) < len(seeds):
        got = ", ".join(map(str, seeds)) or "none"
        raise UserError(f"A comparison needs one or more --seeds, all different, got {got}.")
    if config.init is not None:
        raise UserError("A comparison starts every network from scratch; leave --init out.")


def _check_begun(config: Config, seeds: Sequence[int]) -> None:
    """Refuse other settings than those of the elastic runs that were begun, from which all baselines follow."""
    for seed in seeds:
        folder = Path(config.out, elastic_run(seed))
        if is_begun(folder):
            reopen(explicit(config.model_copy(update={"seed": seed, "out": str(folder)})))


def _train(made: Plan, console: Console) -> None:
    done, total = 0.0, sum(training.flops for training in made.trainings.values())
    for number, (folder, training) in enumerate(made.trainings.items(), start=1):
        place = f"{number} of {len(made.trainings)}, {done / total:.0%} of the compute done"
        tell(console, f"── {folder} ({place})")
        begun = is_begun(folder)
        config = _as_begun(folder, training.config, console) if begun else training.config
        if not _is_done(folder, training):
            train(config, resume=begun, console=console)
        if not _is_done(folder, training):
            raise stopped(folder)
        done += training.flops


def _as_begun(folder: Path, config: Config, console: Console) -> Config:
    """The settings of a training to resume, with what an earlier commit counted in epochs otherwise."""
    found = as_begun(config, of_run(Paths(folder).config))
    if changed := differences(found, config):
        listed = ", ".join(f"{name} {was:g} (now {new:g})" for name, (was, new) in changed.items())
        note(console, f"{folder} was begun with {listed} and keeps it.")
    return found


def _is_done(folder: Path, training: Training) -> bool:
    newest = latest_checkpoint(Paths(folder).checkpoints)
    return newest is not None and step_of(newest) >= training.num_steps


def _results(
    made: Plan,
    sizes: Sequence[Size],
    train_on: str,
    test_on: str,
    *,
    limit: int | None,
    workers: int,
    console: Console,
) -> list[Result]:
    known: dict[tuple[Path, str], Mapping[str, Mapping[str, float]]] = {}
    for folder in made.trainings:
        wanted = {str(size) for each in made.approaches for size, run in each.runs.items() if run == folder}
        for _, protocol in PROTOCOLS:
            options = SweepOptions(sorted(wanted), workers=workers, console=console)
            known[folder, protocol.name] = evaluate.evaluate(
                model_source(str(folder)), protocol, train=train_on, test=test_on, limit=limit, options=options
            ).scores
    groups: dict[tuple[str, str], list[Approach]] = {}
    for each in made.approaches:
        groups.setdefault((each.way, each.budget), []).append(each)
    return [
        Result(
            way,
            budget,
            str(size),
            protocol.name,
            tuple(known[each.runs[size], protocol.name][str(size)][score] for each in group),
            fmean(made.share(each) for each in group),
        )
        for (way, budget), group in groups.items()
        for size in sizes
        for score, protocol in PROTOCOLS
    ]


def _write(results: Sequence[Result], folder: Path) -> list[Score]:
    scores = [result.score() for result in results]
    with whole_file(folder / "compare.json") as temporary:
        temporary.write_text(json.dumps([result._asdict() for result in results], indent=1) + "\n", encoding="utf-8")
    with whole_file(folder / "compare.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Score._fields)
        writer.writerows(scores)
    comparison_plot(scores, out=folder / "compare.png")
    return scores


def comparison_tables(scores: Sequence[Score]) -> list[Table]:
    """A table for each protocol: a row each way, a column each size, the best of a size in bold."""
    return [_table([score for score in scores if score.protocol == name], TITLES[name]) for name in TITLES]


def _table(scores: Sequence[Score], title: str) -> Table:
    sizes = list(dict.fromkeys(score.size for score in scores))
    best = {size: max(score.mean for score in scores if score.size == size) for size in sizes}
    table = plain_table(title)
    table.add_column("way", no_wrap=True)
    for heading in ("compute", *sizes):
        table.add_column(heading, justify="right", no_wrap=True)
    for (way, budget), name in WAYS.items():
        row = {score.size: score for score in scores if (score.way, score.budget) == (way, budget)}
        if row:
            cells = [_cell(row[size], best[size]) for size in sizes]
            table.add_row(name, f"{next(iter(row.values())).compute:.2f}", *cells)
    return table


def _cell(score: Score, best: float) -> ScoreCell:
    ends = None if score.low is None or score.high is None else (score.low, score.high)
    return score_cell(score.mean, best, ends=ends)


def comparison_plot(scores: Sequence[Score], *, out: Path) -> None:
    """Draw the means with their intervals, a panel each protocol, the ways beside one another at each size."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = figure.subplots(1, len(TITLES))
    for axes, name in zip(panels, TITLES, strict=True):
        _panel(axes, [score for score in scores if score.protocol == name])
        style(axes, title=TITLES[name])
    handles, labels = panels[0].get_legend_handles_labels()
    legend(figure, columns=3, handles=handles, labels=labels)
    save(figure, out)


def _panel(axes: Axes, scores: Sequence[Score]) -> None:
    sizes = list(dict.fromkeys(score.size for score in scores))
    for number, ((way, budget), name) in enumerate(WAYS.items()):
        row = [score for score in scores if (score.way, score.budget) == (way, budget)]
        axes.errorbar(
            [sizes.index(score.size) + 0.12 * (number - (len(WAYS) - 1) / 2) for score in row],
            [score.mean for score in row],
            yerr=[0.0 if score.high is None else score.high - score.mean for score in row],
            fmt=_MARKERS[number],
            color=_COLOURS[number],
            markersize=5,
            elinewidth=1.2,
            capsize=2.5,
            label=name,
        )
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set_xlim(-0.5, len(sizes) - 0.5)
