"""Charts of all sizes: accuracy against parameters, a map of width by depth, and gradient norms of widths."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from poa.elastic.space import Size
from poa.errors import UserError, nearest
from poa.plots.figure import FAINT, INK, legend, printable, save, shortened, style
from poa.plots.tables import SizeRow, score_names

_LETTERS = 8  # of a heading in an inch


def accuracy_plot(
    rows: Sequence[SizeRow],
    *,
    out: Path,
    title: str,
    baseline: Sequence[SizeRow] | None = None,
    score: str | None = None,
) -> None:
    """Draw accuracy against parameters: a point for each size, coloured by depth; sizes of the same width are joined.

    The dark line is the front: sizes that no smaller or equally large one beats. The smallest, the largest and the best
    size are named. Sizes without the score are left out; the untrained ``baseline`` is grey. The default score is
    ``top1@20``, or the first there is; a UserError is raised if no size has it.
    """
    score = _pick_score(rows, score)
    scored = sorted((row for row in rows if score in row.scores), key=lambda row: row.parameters)
    untrained = [row for row in baseline or () if score in row.scores]
    figure = Figure(figsize=(8, 5.4), layout="constrained")
    panels = _panels(figure, _points(scored, score)[1], _points(untrained, score)[1])
    _draw_front(panels[0], scored, score)
    _draw_widths(panels[0], scored, score)
    _draw_points(panels, scored, score)
    _name_points(panels[0], scored, score)
    if untrained:
        panels[-1].scatter(*_points(untrained, score), s=16, color="#bdbdbd", linewidth=0, label="untrained", zorder=2)
    for axes in panels:
        style(axes, x="parameters" if axes is panels[-1] else "", y=score_label(score) if axes is panels[0] else "")
        _scale(axes)
    _head(panels[0], title)
    legend(figure, columns=3)
    save(figure, out)


def size_map(scores: Mapping[str, float], out: Path, *, title: str = "", label: str = "accuracy in %") -> None:
    """Draw one number for each named size as a map of width by depth; sizes without a number stay blank."""
    if not scores:
        raise UserError("There are no scores to draw. Score some sizes first, with `poa evaluate`.")
    sizes = {Size.parse(name): value for name, value in scores.items()}
    widths = sorted({size.width for size in sizes})
    depths = sorted({size.depths for size in sizes})
    values = np.array([[sizes.get(Size(width, depth), np.nan) for width in widths] for depth in depths])
    figure = Figure(figsize=(2.2 + 0.62 * max(len(widths), 4), 1.5 + 0.4 * max(len(depths), 4)), layout="constrained")
    axes = figure.add_subplot()
    image = axes.pcolormesh(values, cmap="viridis", edgecolors="white", linewidth=1.5)
    _write_cells(axes, values)
    axes.set_xticks(np.arange(len(widths)) + 0.5, [str(width) for width in widths])
    axes.set_yticks(np.arange(len(depths)) + 0.5, ["-".join(map(str, depth)) for depth in depths])
    style(axes, x="width", y="depth", grid=False)
    _head(axes, title)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=30)
    _style_bar(bar, label)
    save(figure, out)


def map_of_rows(rows: Sequence[SizeRow], score: str, *, out: Path, title: str = "") -> bool:
    """Draw a score as a map of width by depth and return True, if there are several of both."""
    scored = [row for row in rows if score in row.scores and row.width is not None]
    if min(len({row.width for row in scored}), len({row.depths for row in scored})) < 2:
        return False
    values = {str(row.size): row.scores[score] for row in scored}
    size_map(values, out, title=title, label=score_label(score))
    return True


def _pick_score(rows: Sequence[SizeRow], wanted: str | None) -> str:
    names = score_names(rows)
    if not names:
        raise UserError(
            "No size has been scored, so there is nothing to draw. Score some sizes first, with `poa evaluate`."
        )
    if wanted is None:
        return "top1@20" if "top1@20" in names else names[0]
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


def _front(rows: Sequence[SizeRow], score: str) -> list[SizeRow]:
    """Of rows sorted by parameters those that beat all before them."""
    front: list[SizeRow] = []
    for row in rows:
        if not front or row.scores[score] > front[-1].scores[score]:
            front.append(row)
    return front


def _points(rows: Sequence[SizeRow], score: str) -> tuple[list[int], list[float]]:
    return [row.parameters for row in rows], [row.scores[score] for row in rows]


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


def _draw_front(axes: Axes, rows: Sequence[SizeRow], score: str) -> None:
    axes.plot(*_points(_front(rows, score), score), color=INK, linewidth=1.4, label="best up to that size", zorder=3)


def _draw_widths(axes: Axes, rows: Sequence[SizeRow], score: str) -> None:
    widths = sorted({row.width for row in rows if row.width is not None})
    for width in widths:
        same = [row for row in rows if row.width == width]
        label = "same width" if width == widths[0] else None
        axes.plot(*_points(same, score), color=FAINT, linewidth=0.7, alpha=0.6, label=label, zorder=2.5)


def _draw_points(panels: Sequence[Axes], rows: Sequence[SizeRow], score: str) -> None:
    depths = sorted({_depth(row) for row in rows})
    colours = ListedColormap(colormaps["viridis_r"](np.linspace(0.06, 1.0, len(depths))))
    points = panels[0].scatter(
        *_points(rows, score),
        c=[depths.index(_depth(row)) for row in rows],
        cmap=colours,
        vmin=-0.5,
        vmax=len(depths) - 0.5,
        s=36,
        edgecolor="white",
        linewidth=0.6,
        zorder=4,
    )
    bar = panels[0].figure.colorbar(points, ax=list(panels), pad=0.02, aspect=30)
    shown = range(0, len(depths), len(depths) // 17 + 1)
    bar.set_ticks(list(shown), labels=[str(depths[place]) for place in shown])
    _style_bar(bar, "depth")


def _name_points(axes: Axes, rows: Sequence[SizeRow], score: str) -> None:
    best = max(rows, key=lambda row: row.scores[score])
    inward = "left" if best.parameters**2 < rows[0].parameters * rows[-1].parameters else "right"
    places = {rows[-1].size: (0, -46, "right"), rows[0].size: (0, -17, "left"), best.size: (0, 9, inward)}
    for row in rows:
        if row.size in places:
            x, y, side = places[row.size]
            axes.annotate(
                printable(shortened(str(row.size), 24)) + f"  {row.scores[score]:.1f}",
                (row.parameters, row.scores[score]),
                xytext=(x, y),
                textcoords="offset points",
                ha=side,
                fontsize=9,
                fontweight="bold",
                color=INK,
                path_effects=[withStroke(linewidth=3, foreground="white")],
                parse_math=False,
                arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.7, "shrinkB": 3} if y < -20 else None,
                zorder=5,
            )


def _scale(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_count))
    axes.yaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10]))
    axes.margins(y=0.09)


def _count(value: float, _: object) -> str:
    return f"{value / 1e6:g} M" if value >= 1e5 else f"{value / 1e3:g} k"


def _write_cells(axes: Axes, values: np.ndarray) -> None:
    light = np.nanmin(values) + 0.62 * np.ptp(values[~np.isnan(values)])  # from here on white text is hard to read
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = "white" if value < light else INK
            axes.text(column + 0.5, row + 0.5, f"{value:.1f}", ha="center", va="center", fontsize=8, color=colour)


def _head(axes: Axes, title: str) -> None:
    figure = axes.get_figure(root=True)
    assert figure is not None
    text = fill(printable(title), int(_LETTERS * figure.get_figwidth()))
    axes.set_title(text, loc="left", fontsize=12, fontweight="bold", color=INK, parse_math=False)


def _style_bar(bar: Colorbar, label: str) -> None:
    bar.set_label(label, color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, colors=INK)
    bar.minorticks_off()


def gradient_plot(metrics: Sequence[Mapping[str, Any]], *, out: Path) -> None:
    """Draw the ratios that tell which widths dominate, a line for each width, from the lines of a ``metrics.jsonl``.

    Left: mean gradient norm of all weights divided by that of a width's weights. Middle: mean norm of the weights that
    a width does not use divided by that of those it uses; below 1 the width dominates though it has the fewest weights.
    Right: second singular value of the gradient of the heads' last matrix divided by the first; near 1 the gradients
    of the widths point in different directions.
    """
    rows = [row for row in metrics if any(name.startswith("gradient_rest/") for name in row)]
    if not rows:
        raise UserError(
            "This run did not measure its gradients. Start one with --monitor.gradients-every 100, for example; "
            "a run can also be resumed with it."
        )
    sizes = [name.removeprefix("gradient_rest/") for name in rows[0] if name.startswith("gradient_rest/")]
    full = next(name for name in rows[0] if name.startswith("gradient/"))
    figure = Figure(figsize=(12.5, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    steps = [row["step"] for row in rows]
    for number, size in enumerate(sizes):
        colour = colormaps["viridis"](number / max(len(sizes), 2))
        left.plot(steps, [row[full] / row[f"gradient/{size}"] for row in rows], color=colour, linewidth=1.2, label=size)
        middle.plot(steps, [row[f"gradient_rest/{size}"] for row in rows], color=colour, linewidth=1.2)
    turned = [row for row in rows if "gradient_first" in row]  # older versions did not measure it
    turns = [row["gradient_second"] / row["gradient_first"] for row in turned]
    right.plot([row["step"] for row in turned], turns, color=INK, linewidth=1.2)
    style(left, title="gradient norm: all weights / those of a width", x="step")
    style(middle, title="the other weights / those of a width", x="step")
    style(right, title="last matrix: second / first singular value", x="step")
    right.set_ylim(0, 1)
    middle.axhline(1.0, color=INK, linewidth=0.8, linestyle=":")
    legend(figure, columns=6)
    save(figure, out)
