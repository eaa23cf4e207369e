"""Two images side by side with lines between matching patches."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from poa.pictures.patches import Match
from poa.plots.figure import INK, SHEET_DPI, printable, save

_CELL, _GAP = 2.3, 0.5  # inches
_TURN = (5**0.5 - 1) / 2  # of the colour wheel: the golden section spreads any number of hues well


class Pair(NamedTuple):
    """Two square RGB images with the matches of one network between them, and a caption above."""

    caption: str
    first: npt.NDArray[np.uint8]
    second: npt.NDArray[np.uint8]
    matches: Sequence[Match]
    grid: int
    """Rows and columns of patches of both images."""
    is_wrong: Sequence[bool] = ()
    """Whether a match is known to be wrong, for each; drawn dashed."""


def pairs(found: Sequence[Pair], *, out: Path, columns: int = 2) -> None:
    """Draw the matches of each network between two images, some networks side by side.

    The line and the dots of a pair of patches have one colour, as different as possible from those before it.
    """
    columns = min(columns, len(found))
    rows = -(-len(found) // columns)
    width, height = columns * (2 * _CELL + _GAP + 0.25) + 0.1, rows * (_CELL + 0.34) + 0.06
    figure = Figure(figsize=(width, height))
    for number, pair in enumerate(found):
        row, column = divmod(number, columns)
        left, bottom = 0.1 + column * (2 * _CELL + _GAP + 0.25), height - (row + 1) * (_CELL + 0.34)
        box = (left / width, bottom / height, (2 * _CELL + _GAP) / width, _CELL / height)
        _draw(figure.add_axes(box), pair)
    save(figure, out, dpi=SHEET_DPI)


def _draw(axes: Axes, pair: Pair) -> None:
    """In units of an image's side: the first image from 0 to 1, the second behind the gap."""
    start = 1 + _GAP / _CELL
    axes.imshow(pair.first, extent=(0, 1, 1, 0), interpolation="nearest")
    axes.imshow(pair.second, extent=(start, start + 1, 1, 0), interpolation="nearest")
    axes.set_xlim(0, start + 1)
    axes.set_ylim(1, 0)
    axes.axis("off")
    axes.set_title(printable(pair.caption), loc="left", fontsize=9, color=INK, pad=3, parse_math=False)
    dashed = pair.is_wrong or [False] * len(pair.matches)
    for number, (match, is_dashed) in enumerate(zip(pair.matches, dashed, strict=True)):
        (top, left), (low, right) = (divmod(patch, pair.grid) for patch in (match.first, match.second))
        ends = (
            [(left + 0.5) / pair.grid, start + (right + 0.5) / pair.grid],
            [(each + 0.5) / pair.grid for each in (top, low)],
        )
        colour = colormaps["hsv"](number * _TURN % 1)
        line = "--" if is_dashed else "-"
        if not is_dashed:
            axes.plot(*ends, color="white", linewidth=2.2, alpha=0.6, solid_capstyle="round")
        axes.plot(
            *ends,
            color=colour,
            linestyle=line,
            linewidth=1.3,
            marker="o",
            markersize=4.5,
            markeredgecolor="white",
            markeredgewidth=0.7,
        )
