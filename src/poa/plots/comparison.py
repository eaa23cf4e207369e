"""A comparison of ways to train all sizes, as tables and as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from poa.plots.figure import legend, save, style
from poa.plots.tables import plain_table, score_cell

WAYS = {
    ("poa", "images"): "one elastic run",
    ("single", "images"): "alone, equal images",
    ("single", "compute"): "alone, equal compute",
    ("seed", "images"): "SEED, equal images",
    ("seed", "compute"): "SEED, equal compute",
}
"""What is compared, in the order of the rows; images or compute are equal to those of the elastic run."""
PROTOCOLS = {"knn": "k-NN top-1 in %, 20 neighbours", "linear": "linear probe top-1 in %"}
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


def comparison_tables(scores: Sequence[Score]) -> list[Table]:
    """A table for each protocol: a row each way, a column each size, the best of a size in bold."""
    return [_table([score for score in scores if score.protocol == name], PROTOCOLS[name]) for name in PROTOCOLS]


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


def _cell(score: Score, best: float) -> Text:
    ends = None if score.spread is None else (score.mean - score.spread, score.mean + score.spread)
    return score_cell(score.mean, best, ends=ends)


def comparison_plot(scores: Sequence[Score], *, out: Path) -> None:
    """Draw the means with their spreads, a panel each protocol, the ways beside one another at each size."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    panels = figure.subplots(1, len(PROTOCOLS))
    for axes, name in zip(panels, PROTOCOLS, strict=True):
        _panel(axes, [score for score in scores if score.protocol == name])
        style(axes, title=PROTOCOLS[name])
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
            yerr=[score.spread or 0.0 for score in row],
            fmt=_MARKERS[number],
            color=_COLOURS[number],
            markersize=5,
            elinewidth=1.2,
            capsize=2.5,
            label=name,
        )
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set_xlim(-0.5, len(sizes) - 0.5)
