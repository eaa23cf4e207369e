"""Compare sizes cut out of one run with the same sizes trained alone and distilled: train all, score all, report."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from poa.config.pretraining import Config
from poa.errors import UserError
from poa.experiments.plan import Approach, Plan, plan
from poa.experiments.runs import (
    PROTOCOLS,
    TITLES,
    Labelled,
    OverSeeds,
    check_images,
    check_settings,
    score_all,
    seeds_cell,
    train_all,
    wanted_of,
)
from poa.files import whole_file
from poa.models.registry import family_of
from poa.plots.figure import legend, save, style
from poa.plots.tables import plain_table

WAYS = {
    ("poa", "images"): "one elastic run",
    ("single", "images"): "alone, equal images",
    ("single", "compute"): "alone, equal compute",
    ("seed", "images"): "SEED, equal images",
    ("seed", "compute"): "SEED, equal compute",
}
"""What is compared, in the order of the rows; images or compute are equal to those of the elastic run."""
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
        mean, spread, low, high = OverSeeds.of(self.values)
        return Score(self.way, self.budget, self.size, self.protocol, mean, spread, self.compute, low, high)


def planned(config: Config, *, sizes: Sequence[str], seeds: Sequence[int], labelled: Labelled) -> Plan:
    """What to train, once everything is checked that can be before hours are spent.

    Args:
        config: Settings of the elastic run; ``out`` is the folder of all runs.
        sizes: Which sizes to compare; the largest of the search space, the teacher, is always among them.
        seeds: One elastic run and its baselines for each.
        labelled: On what to score.
    """
    check_settings(config, seeds)
    space = family_of(config).space
    chosen = sorted({space.find(size) for size in sizes} | {space.intact})
    if len(chosen) < 2:
        raise UserError(f"--sizes names only the intact network. Add smaller sizes, such as {space.sizes[0]}.")
    return plan(config, sizes=chosen, seeds=seeds, num_images=check_images(config, labelled))


def compare(made: Plan, labelled: Labelled, out: Path, *, console: Console) -> list[Score]:
    """Train and score what is missing, and write ``compare.json``, ``.csv`` and ``.png``."""
    train_all(made.trainings, console)
    return _write(_results(made, labelled, console), out)


def _results(made: Plan, labelled: Labelled, console: Console) -> list[Result]:
    known = score_all(wanted_of([each.runs for each in made.approaches]), labelled, console)
    groups: dict[tuple[str, str], list[Approach]] = {}
    for each in made.approaches:
        groups.setdefault((each.way, each.budget), []).append(each)
    return [
        Result(
            way,
            budget,
            str(size),
            protocol.name,
            tuple(known[each.runs[size], protocol.name][str(size)] for each in group),
            fmean(each.compute for each in group),
        )
        for (way, budget), group in groups.items()
        for size in sorted(group[0].runs)
        for _, protocol in PROTOCOLS
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
            cells = [seeds_cell(row[size].mean, row[size].low, row[size].high, best[size]) for size in sizes]
            table.add_row(name, f"{next(iter(row.values())).compute:.2f}", *cells)
    return table


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
