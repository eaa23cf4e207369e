"""Charts of scores against what sizes cost: parameters, milliseconds and others."""

import re
from collections.abc import Callable, Mapping, Sequence
from math import copysign, hypot
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from poa.errors import UserError, nearest
from poa.plots.figure import FAINT, INK, heading, legend, printable, save, style, style_bar
from poa.plots.tables import SizeRow, score_names
from poa.text import shortened

USUAL_SCORE = "top1@20"
"""The score to show where none is asked for, if it is there."""
_MOST_BARS = 40  # of intervals that can be told apart
_MARKERS = "oDs^vPX"
FRONT = "surely reached within that budget"


class Axis(NamedTuple):
    """What sizes cost, as the horizontal axis of a chart."""

    label: str
    value: Callable[[SizeRow], float | None]


COSTS: Mapping[str, Axis] = {
    "parameters": Axis("parameters", lambda row: row.parameters),
    "gmacs": Axis("GMACs for one image", lambda row: None if row.flops is None else row.flops / 2e9),
    "mb": Axis("MB on disk", lambda row: row.megabytes),
    "ms": Axis("milliseconds a batch", lambda row: row.milliseconds),
}
"""By the word that a user chooses them with."""


def accuracy_plot(
    rows: Sequence[SizeRow],
    *,
    out: Path,
    title: str,
    baseline: Sequence[SizeRow] | None = None,
    score: str | None = None,
    cost: str = "parameters",
    note: str = "",
) -> None:
    """Draw a score against what sizes cost, with intervals: a point for each size, coloured by depth, or by subject.

    The dark line is the front: what a size surely reaches within a budget. It rises where a size beats all cheaper ones
    on it by more than chance may do, so it leaves out what is within the intervals. The cheapest, the dearest and the
    best size are named, of several subjects the best of each. Sizes without the score or the cost are left out; the
    untrained ``baseline`` is grey. The default score is ``top1@20``, or the first there is. A ``note`` stands below the
    costs.

    Raises:
        UserError: No size has the score, or the cost; or the name of the file is not that of a PNG file.
    """
    if out.suffix.lower() != ".png":
        raise UserError(f"A chart is written as .png, got {out}. Give the file another ending.")
    score = _pick_score(rows, score)
    drawn = points(rows, score, cost)
    untrained = points(baseline, score, cost, required=False) if baseline else []
    figure = Figure(figsize=(8, 5.4), layout="constrained")
    panels = _panels(figure, [each.score for each in drawn], [each.score for each in untrained])
    known = {each.row.subject for each in drawn}
    subjects = [subject for subject in dict.fromkeys(row.subject for row in rows) if subject in known]
    _draw_intervals(panels[0], drawn)
    if len(subjects) > 1:
        _draw_subjects(panels[0], drawn, subjects)
    else:
        _draw_front(panels[0], drawn, INK, label=FRONT)
        _draw_points(panels, drawn)
    _name_points(panels[0], drawn)
    if untrained:
        panels[-1].scatter(*_places(untrained), s=16, color="#bdbdbd", linewidth=0, label="untrained", zorder=2)
    for axes in panels:
        _scale(axes, cost)
        style(axes, y=score_label(score) if axes is panels[0] else "")
    panels[-1].set_xlabel(printable(f"{COSTS[cost].label}\n{note}".strip()), color=INK, parse_math=False)
    heading(panels[0], title)
    entries = [pair for axes in panels for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    if entries:
        legend(figure, columns=3, handles=[handle for handle, _ in entries], labels=[label for _, label in entries])
    save(figure, out)


class Point(NamedTuple):
    """A size in a chart; ``half`` is that of its interval, 0 where it has none."""

    row: SizeRow
    cost: float
    score: float
    half: float


def points(rows: Sequence[SizeRow], score: str, cost: str, *, required: bool = True) -> list[Point]:
    """Rows that have the score and the cost, cheap ones first.

    Raises:
        UserError: None has, though that is ``required``.
    """
    made = [
        Point(row, value, row.scores[score], (high - low) / 2)
        for row in rows
        if score in row.scores and (value := COSTS[cost].value(row)) is not None
        for low, high in [row.intervals.get(score, (0.0, 0.0))]
    ]
    if required and not made:
        raise UserError(
            f"No size with a score {score!r} has {COSTS[cost].label}, so there is nothing to draw. "
            "`poa measure` finds milliseconds and MB."
        )
    return sorted(made, key=lambda each: each.cost)


def front(drawn: Sequence[Point]) -> list[Point]:
    """Of points sorted by cost the first, and each that surely beats the one before it here.

    Surely: by more than the halves of both intervals, added as independent errors are; of scores without intervals, by
    any difference.
    """
    found: list[Point] = []
    for each in drawn:
        if not found or each.score - found[-1].score > hypot(each.half, found[-1].half):
            found.append(each)
    return found


def _pick_score(rows: Sequence[SizeRow], wanted: str | None) -> str:
    names = score_names(rows)
    if not names:
        raise UserError(
            "No size has been scored, so there is nothing to draw. Score some sizes first, with `poa evaluate`."
        )
    if wanted is None:
        return USUAL_SCORE if USUAL_SCORE in names else names[0]
    if wanted not in names:
        raise UserError(f"No size has a score {wanted!r}. {nearest(wanted, names)}")
    return wanted


def score_label(score: str) -> str:
    """A score in words."""
    knn = re.fullmatch(r"top(\d+)@(\d+)", score)
    if knn:
        return f"k-NN top-{knn[1]} accuracy in % (k = {knn[2]})"
    words = {"top1": "top-1 accuracy", "top5": "top-5 accuracy", "map": "mean average precision"}
    return f"{words.get(score, score)} in %" if score in {*words, "accuracy"} else score


def _depth(row: SizeRow) -> int:
    return sum(row.depths)


def _places(drawn: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [each.cost for each in drawn], [each.score for each in drawn]


def _panels(figure: Figure, trained: Sequence[float], untrained: Sequence[float]) -> list[Axes]:
    """One panel, or one more below for untrained sizes so far off that they would flatten the curve."""
    spread = max(trained) - min(trained)
    if not untrained or min(trained) - max(untrained) <= spread:
        return [figure.add_subplot()]
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
    half = max(0.6 * (max(untrained) - min(untrained)), 0.12 * spread, 0.5)  # where it can, both have the same scale
    middle = (max(untrained) + min(untrained)) / 2
    lower.set_ylim(middle - half, middle + half)
    upper.spines["bottom"].set_visible(False)
    slanted = {"marker": [(-1, -0.6), (1, 0.6)], "markersize": 9, "color": FAINT, "clip_on": False}
    upper.plot([0], [0], transform=upper.transAxes, **slanted)
    lower.plot([0], [1], transform=lower.transAxes, **slanted)
    return [upper, lower]


def _draw_intervals(axes: Axes, drawn: Sequence[Point]) -> None:
    """A bar for each size; of many sizes one bar for all, at the side, where it hides nothing."""
    bounded = [each for each in drawn if each.half]
    if not bounded:
        return
    style: dict[str, Any] = {"color": FAINT, "linewidth": 1.0, "label": "95 % interval over test images", "zorder": 2.5}
    if len(bounded) <= _MOST_BARS:
        costs, scores = _places(bounded)
        axes.errorbar(costs, scores, yerr=[each.half for each in bounded], fmt="none", **style)
        return
    middle = median(each.score for each in drawn)
    place = [max(each.cost for each in drawn) * 1.1]
    axes.errorbar(place, [middle], yerr=[median(each.half for each in bounded)], fmt="none", capsize=3, **style)


def _draw_front(axes: Axes, drawn: Sequence[Point], colour: Any, *, label: str | None) -> None:
    found = front(drawn)
    if len(found) < 2:  # a single network, or differences that may be chance
        return
    costs, scores = _places(found)
    options: dict[str, Any] = {"color": colour, "linewidth": 1.4, "drawstyle": "steps-post"}
    axes.plot([*costs, drawn[-1].cost], [*scores, scores[-1]], label=label, zorder=3, **options)


def _draw_subjects(axes: Axes, drawn: Sequence[Point], subjects: Sequence[str]) -> None:
    colours = colormaps["tab10" if len(subjects) <= 10 else "tab20"]
    for number, subject in enumerate(subjects):
        own, colour = [each for each in drawn if each.row.subject == subject], colours(number % colours.N)
        _draw_front(axes, own, colour, label=None if number else FRONT)
        axes.scatter(
            *_places(own),
            color=colour,
            marker=_MARKERS[number % len(_MARKERS)],
            s=36,
            edgecolor="white",
            linewidth=0.6,
            label=f" {shortened(subject, 32)}",  # matplotlib leaves out those that begin with an underscore
            zorder=4,
        )


def _draw_points(panels: Sequence[Axes], drawn: Sequence[Point]) -> None:
    depths = sorted({_depth(each.row) for each in drawn})
    colours = ListedColormap(colormaps["viridis_r"](np.linspace(0.06, 1.0, len(depths))))
    shown = panels[0].scatter(
        *_places(drawn),
        c=[depths.index(_depth(each.row)) for each in drawn],
        cmap=colours,
        vmin=-0.5,
        vmax=len(depths) - 0.5,
        s=36,
        edgecolor="white",
        linewidth=0.6,
        zorder=4,
    )
    bar = panels[0].figure.colorbar(shown, ax=list(panels), pad=0.02, aspect=30)
    ticks = range(0, len(depths), len(depths) // 17 + 1)
    bar.set_ticks(list(ticks), labels=[str(depths[place]) for place in ticks])
    style_bar(bar, "depth")


def _name_points(axes: Axes, drawn: Sequence[Point]) -> None:
    """The first, the last and the best of one subject, the best of each of several."""
    by_subject: dict[str, list[Point]] = {}
    for each in drawn:
        by_subject.setdefault(each.row.subject, []).append(each)
    best = [max(own, key=lambda each: each.score) for own in by_subject.values()]
    named = [(each, 5) for each in best]
    if len(best) == 1:
        named = [(drawn[-1], -42), (drawn[0], -13), *named]
    chosen = {(each.row.subject, each.row.size): (each, place) for each, place in named}
    for each, place in chosen.values():
        half = f" ±{each.half:.1f}" if each.half else ""
        axes.annotate(
            printable(shortened(str(each.row.size), 24)) + f"  {each.score:.1f}{half}",
            (each.cost, each.score + copysign(each.half, place)),
            xytext=(0, place),
            textcoords="offset points",
            ha="left" if each.cost**2 < drawn[0].cost * drawn[-1].cost else "right",
            fontsize=9,
            fontweight="bold",
            color=INK,
            path_effects=[withStroke(linewidth=3, foreground="white")],
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.7, "shrinkB": 3} if place < -20 else None,
            zorder=5,
        )


def _scale(axes: Axes, cost: str) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_count if cost == "parameters" else lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10]))
    axes.margins(y=0.09)


def _count(value: float, _: object) -> str:
    return f"{value / 1e6:g} M" if value >= 1e5 else f"{value / 1e3:g} k"
