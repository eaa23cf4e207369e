"""Pictures of predicted masks beside true ones, as PNG files."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from poa.plots.figure import legend, save

_MOST_NAMES = 24
_DPI = 100
_COLUMNS = ("image", "truth", "prediction")
_NOTHING = (0.0, 0.0, 0.0)
"""Colour of pixels without a class."""


class Row(NamedTuple):
    """A test image.

    Attributes:
        name: Of its file.
        image: RGB, height x width x 3.
        truth: Class of each pixel; other numbers for none.
        predicted: Class of each pixel.
    """

    name: str
    image: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]


def mask_sheet(rows: Sequence[Row], *, classes: Sequence[str], title: str, out: Path) -> None:
    """Draw images, true and predicted masks side by side, with a legend of the classes in them.

    Where the truth says nothing, it is black.

    Args:
        rows: One line each.
        classes: Names by class id.
        title: Heading.
        out: PNG file to write.
    """
    colours = class_colours(len(classes))
    shape = rows[0].image.shape
    height = 2.6 * shape[0] / shape[1] + 0.25
    figure = Figure(figsize=(8.4, height * len(rows) + 1.1), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    panels = figure.subplots(len(rows), len(_COLUMNS), squeeze=False)
    for row, axes in zip(rows, panels, strict=True):
        pictures = (row.image, coloured(row.truth, colours), coloured(row.predicted, colours))
        for number, (axis, picture) in enumerate(zip(axes, pictures, strict=True)):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
            axis.set_title(f"{row.name}" if number == 0 else _COLUMNS[number], fontsize=8, loc="left")
    shown = np.unique(np.concatenate([part.flatten() for row in rows for part in (row.truth, row.predicted)]))
    named = [int(each) for each in shown if 0 <= each < len(classes)][:_MOST_NAMES]
    patches = [Patch(color=tuple(colours[each]), label=classes[each]) for each in named]
    legend(figure, columns=6, handles=patches, fontsize=8)
    save(figure, out, dpi=_DPI)


def class_colours(num_classes: int) -> npt.NDArray[np.float64]:
    """A colour for each class; twenty that are easily told apart, then ones all around the circle of hues.

    Args:
        num_classes: How many.
    """
    first = np.asarray(colormaps["tab20"].colors)[[*range(0, 20, 2), *range(1, 20, 2)]]  # type: ignore[attr-defined]
    numbers = np.arange(num_classes)
    more = hsv_to_rgb(np.stack([numbers * 0.618 % 1.0, 0.9 - 0.4 * (numbers % 2), 1.0 - 0.3 * (numbers % 3 == 2)], 1))
    return np.concatenate([first, more])[:num_classes]


def coloured(mask: npt.NDArray[np.int64], colours: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A mask as RGB in 0..1, height x width x 3.

    Args:
        mask: Class of each pixel; what is no class becomes black.
        colours: Of the classes.
    """
    known = (mask >= 0) & (mask < len(colours))
    picture = np.broadcast_to(np.array(_NOTHING), (*mask.shape, 3)).copy()
    picture[known] = colours[mask[known]]
    return picture
