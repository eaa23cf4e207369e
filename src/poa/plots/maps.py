"""Maps of scores: width by depth, in colours no finer than the intervals."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure

from poa.elastic.space import Size
from poa.errors import UserError
from poa.plots.figure import INK, heading, save, style, style_bar
from poa.plots.sizes import score_label
from poa.plots.tables import SizeRow


def size_map(
    scores: Mapping[str, float],
    out: Path,
    *,
    title: str = "",
    label: str = "accuracy in %",
    step: float | None = None,
) -> None:
    """Draw one number for each named size as a map of width by depth; sizes without a number stay blank.

    Values have the same colour within each ``step``, such as the length of their intervals: colours shall not show
    differences that may be chance.
    """
    if not scores:
        raise UserError("There are no scores to draw. Score some sizes first, with `poa evaluate`.")
    sizes = {Size.parse(name): value for name, value in scores.items()}
    widths = sorted({size.width for size in sizes})
    depths = sorted({size.depths for size in sizes})
    values = np.array([[sizes.get(Size(width, depth), np.nan) for width in widths] for depth in depths])
    figure = Figure(figsize=(2.2 + 0.62 * max(len(widths), 4), 1.5 + 0.4 * max(len(depths), 4)), layout="constrained")
    axes = figure.add_subplot()
    ends = None if step is None else bands(list(scores.values()), step)
    norm = None if ends is None else BoundaryNorm(ends, 256)
    image = axes.pcolormesh(values, cmap="viridis", norm=norm, edgecolors="white", linewidth=1.5)
    _write_cells(axes, values, image)
    axes.set_xticks(np.arange(len(widths)) + 0.5, [str(width) for width in widths])
    axes.set_yticks(np.arange(len(depths)) + 0.5, ["-".join(map(str, depth)) for depth in depths])
    style(axes, x="width", y="depth", grid=False)
    heading(axes, title)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=30)
    if ends is not None:
        shown = ends[:: len(ends) // 12 + 1]
        bar.set_ticks(shown, labels=[f"{end:.1f}" for end in shown])
    style_bar(bar, label)
    save(figure, out)


def bands(values: Sequence[float], step: float) -> list[float]:
    """Ends of bands, each a step wide, that hold all values, as many above as below their middle."""
    number = max(1, ceil((max(values) - min(values)) / step))
    first = (max(values) + min(values) - number * step) / 2
    return [first + place * step for place in range(number + 1)]


def map_of_rows(rows: Sequence[SizeRow], score: str, *, out: Path, title: str = "") -> bool:
    """Draw a score as a map of width by depth and return True, if there are several of both.

    Its colours are as wide as the interval of half of the sizes, where there are intervals.
    """
    scored = [row for row in rows if score in row.scores and row.width is not None]
    if min(len({row.width for row in scored}), len({row.depths for row in scored})) < 2:
        return False
    values = {str(row.size): row.scores[score] for row in scored}
    lengths = [high - low for row in scored if score in row.intervals for low, high in [row.intervals[score]]]
    step = median(lengths) if lengths else 0.0
    told = f"\na colour: its 95 % interval, ±{step / 2:.1f}" if step else ""
    size_map(values, out, title=title, label=f"{score_label(score)}{told}", step=step or None)
    return True


def _write_cells(axes: Axes, values: np.ndarray, image: QuadMesh) -> None:
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            is_dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            colour = "white" if is_dark else INK
            axes.text(column + 0.5, row + 0.5, f"{value:.1f}", ha="center", va="center", fontsize=8, color=colour)
