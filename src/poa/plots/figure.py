"""The one style of all figures, and sheets of small pictures. Drawn without pyplot, hence without global state."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from poa.errors import UserError
from poa.files import whole_file
from poa.text import one_line

INK, FAINT, GRID = "#222222", "#8c8c8c", "#e9e9e9"
RIGHT, WRONG = "#1a9850", "#d73027"
"""Colours of frames, of which the words say the same."""
DPI, SHEET_DPI = 200, 160
_POINTS = 9  # size of labels
_LETTERS = 8  # of a heading in an inch
_MOST = 2**15  # pixels of a side that matplotlib draws


def style(axes: Axes, *, title: str = "", x: str = "", y: str = "", grid: bool = True) -> None:
    """Draw axes in grey without ticks, with a small heading, names of the axes and horizontal lines behind the data."""
    if title:
        axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(length=0, colors=INK)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis="y", color=GRID, linewidth=0.8)


def heading(axes: Axes, title: str) -> None:
    """Write a bold heading above axes, in lines as wide as the figure."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    text = fill(printable(title), int(_LETTERS * figure.get_figwidth()))
    axes.set_title(text, loc="left", fontsize=12, fontweight="bold", color=INK, parse_math=False)


def style_bar(bar: Colorbar, label: str) -> None:
    """Draw the explanation of colours without lines, in grey."""
    bar.set_label(label, color=INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, colors=INK)
    bar.minorticks_off()


def legend(
    figure: Figure, *, columns: int, handles: Sequence[Artist] = (), labels: Sequence[str] = (), fontsize: int = 9
) -> None:
    """Explain the colours below all panels; ``labels`` of ``handles``, by default of all that has one, are as given."""
    given = {"handles": handles, "labels": [f"{place}" for place, _ in enumerate(labels)]} if labels else {}
    style: dict[str, Any] = {"loc": "outside lower left", "frameon": False, "labelcolor": INK}
    drawn = figure.legend(ncols=columns, fontsize=fontsize, **given, **style)
    for text, label in zip(drawn.get_texts(), labels, strict=False):  # matplotlib itself hides labels such as _x
        text.set(text=printable(label), parse_math=False)


def save(figure: Figure, out: Path, *, dpi: int = DPI) -> None:
    """Write a figure as PNG, which is there whole or not at all."""
    with whole_file(out) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)


def printable(text: str) -> str:
    """Text with a question mark for what the font cannot draw, which would be a warning and an empty box."""
    known = get_font(findfont(FontProperties())).get_charmap()
    lines = "\n".join(map(one_line, text.split("\n")))
    return "".join(letter if letter == "\n" or ord(letter) in known else "?" for letter in lines)


@dataclass(frozen=True)
class Cell:
    """A square RGB picture, with words above it and perhaps a frame of some colour."""

    pixels: npt.NDArray[np.uint8]
    caption: str = ""
    frame: str | None = None


@dataclass(frozen=True)
class Row:
    """Pictures from left to right, with a label of one or more lines on their left."""

    label: str
    cells: Sequence[Cell]


def sheet(rows: Sequence[Row], *, out: Path, cell: float = 1.1) -> None:
    """Draw rows of pictures, which need not be of the same length; ``cell`` is the side of a picture in inches.

    Raises:
        UserError: There are more rows than fit into one picture.
    """
    across = max(len(row.cells) for row in rows)
    labels = [printable(row.label) for row in rows]
    left = 0.2 + max(_inches(line) for label in labels for line in label.split("\n"))
    above = 0.24 if any(each.caption for row in rows for each in row.cells) else 0.08
    width, height = left + across * (cell + 0.06) + 0.04, len(rows) * (cell + above) + 0.06
    if max(width, height) * SHEET_DPI > _MOST:
        raise UserError(f"{len(rows)} rows of {across} pictures are too many for one sheet. Show fewer images.")
    figure = Figure(figsize=(width, height))
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        bottom = height - (number + 1) * (cell + above)
        place = ((left - 0.08) / width, (bottom + cell / 2) / height)
        figure.text(*place, label, ha="right", va="center", fontsize=_POINTS, color=INK, parse_math=False)
        for column, each in enumerate(row.cells):
            x = left + column * (cell + 0.06)
            _draw(each, figure.add_axes((x / width, bottom / height, cell / width, cell / height)))
    save(figure, out, dpi=SHEET_DPI)


def _draw(cell: Cell, axes: Axes) -> None:
    axes.imshow(cell.pixels, interpolation="nearest")
    pad = 2 if cell.frame is None else 4
    axes.set_title(printable(cell.caption), fontsize=7.5, color=INK, pad=pad, parse_math=False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(cell.frame is not None)
    if cell.frame is not None:
        axes.spines[:].set(edgecolor=cell.frame, linewidth=3)


def _inches(line: str) -> float:
    """Width of a line of a label."""
    font = get_font(findfont(FontProperties()))
    font.set_size(_POINTS, 72)
    font.set_text(line)
    width, _ = font.get_width_height()
    return float(width) / 64 / 72  # in 64ths of a point
