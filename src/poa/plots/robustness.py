"""Accuracy under conditions: curves for each size, and tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from poa.errors import UserError
from poa.plots.figure import INK, SHEET_DPI, legend, save, style
from poa.plots.tables import plain_table, score_table

_NAMED = 12
"""Networks that a legend can name."""
_COLUMNS = 3
COLUMNS = ("clean", "corruptions", "noise", "blur", "weather", "digital", "occlusion", "shuffle")
"""Scores that the table shows, as far as they are there."""
BACKGROUNDS = ("background own", "background swapped")
"""Those that take the place of the groups of corruptions, for which no room is left then."""
_GROUPS = ("noise", "blur", "weather", "digital")
_SHORT = {"corruptions": "corrupt", "occlusion": "hidden", "background own": "own bg", "background swapped": "swapped"}


@dataclass(frozen=True)
class Panel:
    """Accuracy in percent by the strength of one kind of condition: at each tick, by name of the network."""

    title: str
    axis: str
    ticks: tuple[str, ...]
    values: Mapping[str, tuple[float, ...]]


def curves(panels: Sequence[Panel], *, out: Path, title: str) -> None:
    """Draw a panel for each kind of condition, a line for each network, small ones first.

    Raises:
        UserError: There is nothing to draw.
    """
    if not panels or not any(panel.values for panel in panels):
        raise UserError("There are no scores to draw. Score some sizes first, with `poa evaluate robustness`.")
    columns = min(_COLUMNS, len(panels))
    rows = ceil(len(panels) / columns)
    figure = Figure(figsize=(0.6 + 3.3 * max(columns, 2), 1.3 + 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    names = list(dict.fromkeys(name for panel in panels for name in panel.values))
    colours = dict(zip(names, colormaps["viridis_r"](np.linspace(0.1, 1.0, len(names))), strict=True))
    for each, panel in zip(axes, panels, strict=False):
        for name, values in panel.values.items():
            each.plot(range(len(values)), values, color=colours[name], linewidth=1.4, marker="o", markersize=3)
        _style(each, panel)
    for place, each in enumerate(axes):
        if place >= len(panels):
            each.set_visible(False)
        elif place % columns == 0:
            each.set_ylabel("accuracy in %", color=INK)
    axes[0].set_ylim(bottom=0)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK, parse_math=False)
    _legend(figure, axes[0], colours)
    save(figure, out, dpi=SHEET_DPI)


def _legend(figure: Figure, axes: Axes, colours: Mapping[str, npt.NDArray[np.float64]]) -> None:
    """Name the networks; of many the first, the last and some between."""
    names = list(colours)
    if len(names) > _NAMED:
        names = [names[round(place)] for place in np.linspace(0, len(names) - 1, _NAMED)]
    handles = [axes.plot([], [], color=colours[name], marker="o", markersize=3, label=name)[0] for name in names]
    legend(figure, columns=min(6, len(names)), handles=handles)


def _style(axes: Axes, panel: Panel) -> None:
    style(axes, title=panel.title, x=panel.axis)
    axes.set_xticks(range(len(panel.ticks)), panel.ticks)
    axes.yaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10]))
    axes.tick_params(labelsize=8)


def robustness_table(
    scores: Mapping[str, Mapping[str, float]], intervals: Mapping[str, Mapping[str, tuple[float, float]]]
) -> Table:
    """Accuracy by name of the network, then of the group of conditions; the first two with their intervals."""
    known = {name for row in scores.values() for name in row}
    names = [name for name in (*COLUMNS, *BACKGROUNDS) if name in known]
    if known & {*BACKGROUNDS}:
        names = [name for name in names if name not in _GROUPS]
    bounded = {
        network: {name: ends[name] for name in ("clean", "corruptions") if name in ends}
        for network, ends in intervals.items()
    }
    return score_table(scores, {name: _SHORT.get(name, name) for name in names}, intervals=bounded)


def strengths_table(strengths: Mapping[str, tuple[str, Sequence[float]]]) -> Table:
    """What the strengths of corruptions are in words, and one a severity, by name of the corruption."""
    table = plain_table()
    table.add_column("corruption", no_wrap=True)
    for severity in range(1, 6):
        table.add_column(str(severity), justify="right", no_wrap=True)
    table.add_column("strength is", no_wrap=True)
    for name, (what, values) in strengths.items():
        table.add_row(name, *(f"{value:g}" for value in values), what)
    return table
