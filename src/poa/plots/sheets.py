"""Small pictures in rows, with words: the sheets on which images, maps and neighbours are shown side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from poa.errors import UserError
from poa.files import whole_file

INK = "#222222"
RIGHT, WRONG = "#1a9850", "#d73027"
"""Colours of frames, of which the words say the same."""
_DPI = 160
_POINTS = 9  # size of labels
_MOST = 2**15  # pixels of a side that matplotlib draws


@dataclass(frozen=True)
class Cell:
    """One picture.

    Attributes:
        pixels: Square, RGB.
        caption: Words above it.
        frame: Colour of a frame around it, if any.
    """

    pixels: npt.NDArray[np.uint8]
    caption: str = ""
    frame: str | None = None


@dataclass(frozen=True)
class Row:
    """Pictures side by side.

    Attributes:
        label: Words on the left; a new line where there is one.
        cells: From left to right.
    """

    label: str
    cells: Sequence[Cell]


def sheet(rows: Sequence[Row], *, out: Path, cell: float = 1.1) -> None:
    """Draw rows of pictures.

    Args:
        rows: From top to bottom; they need not be of the same length.
        out: PNG file to write.
        cell: Side of a picture, in inches.

    Raises:
        UserError: There are more rows than fit into one picture.
    """
    across = max(len(row.cells) for row in rows)
    labels = [printable(row.label) for row in rows]
    left = 0.2 + max(_inches(line) for label in labels for line in label.split("\n"))
    above = 0.24 if any(each.caption for row in rows for each in row.cells) else 0.08
    width, height = left + across * (cell + 0.06) + 0.04, len(rows) * (cell + above) + 0.06
    if max(width, height) * _DPI > _MOST:
        raise UserError(f"{len(rows)} rows of {across} pictures are too many for one sheet. Show fewer.")
    figure = Figure(figsize=(width, height))
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        bottom = height - (number + 1) * (cell + above)
        place = ((left - 0.08) / width, (bottom + cell / 2) / height)
        figure.text(*place, label, ha="right", va="center", fontsize=_POINTS, color=INK, parse_math=False)
        for column, each in enumerate(row.cells):
            axes = figure.add_axes(
                ((left + column * (cell + 0.06)) / width, bottom / height, cell / width, cell / height)
            )
            axes.imshow(each.pixels, interpolation="nearest")
            axes.set_title(
                printable(each.caption), fontsize=7.5, color=INK, pad=2 if each.frame is None else 4, parse_math=False
            )
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(each.frame is not None)
            if each.frame is not None:
                axes.spines[:].set(edgecolor=each.frame, linewidth=3)
    save(figure, out)


def _inches(line: str) -> float:
    """Width of a line of a label."""
    font = get_font(findfont(FontProperties()))
    font.set_size(_POINTS, 72)
    font.set_text(line)
    width, _ = font.get_width_height()
    return float(width) / 64 / 72  # in 64ths of a point


def printable(text: str) -> str:
    """Text with a question mark for what the font cannot draw, which would be a warning and an empty box.

    Args:
        text: Such as the name of a class.
    """
    known = get_font(findfont(FontProperties())).get_charmap()
    return "".join(letter if letter == "\n" or ord(letter) in known else "?" for letter in text)


def shortened(text: str, most: int = 16) -> str:
    """Text of at most so many letters; of longer ones the middle is left out.

    Args:
        text: Such as the name of a class.
        most: How many letters.
    """
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most - 1 - most // 2) :]}"


def save(figure: Figure, out: Path) -> None:
    """Write a figure as PNG, which is there whole or not at all.

    Args:
        figure: What to write.
        out: The file.
    """
    with whole_file(out) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI)
