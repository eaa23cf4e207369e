"""Pictures of detected objects beside true ones, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from poa.plots.figure import save
from poa.plots.masks import class_colours

_DPI = 110
_VEIL = 0.45
"""How much of a mask's colour covers an image."""


class Objects(NamedTuple):
    """Objects in an image.

    Attributes:
        boxes: Left, top, right, bottom in pixels, a row each.
        names: What they are.
        masks: Whether each pixel belongs to each, objects x height x width; None where it is not known.
    """

    boxes: npt.NDArray[np.float32]
    names: Sequence[str]
    masks: npt.NDArray[np.bool_] | None


class Row(NamedTuple):
    """A test image.

    Attributes:
        name: Of its file.
        image: RGB, height x width x 3.
        truth: Its objects.
        found: Those that were detected.
    """

    name: str
    image: npt.NDArray[np.uint8]
    truth: Objects
    found: Objects


def detection_sheet(rows: Sequence[Row], *, found: str, title: str, out: Path) -> None:
    """Draw images with their true objects on the left and the detected ones on the right.

    Args:
        rows: One line each.
        found: Heading of the right column.
        title: Heading.
        out: PNG file to write.
    """
    names = sorted({name for row in rows for objects in (row.truth, row.found) for name in objects.names})
    colours = dict(zip(names, class_colours(len(names)), strict=True))
    heights = [4.1 * row.image.shape[0] / row.image.shape[1] + 0.3 for row in rows]
    figure = Figure(figsize=(8.4, sum(heights) + 0.4), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    panels = figure.subplots(len(rows), 2, squeeze=False, height_ratios=heights)
    for row, (left, right) in zip(rows, panels, strict=True):
        _draw(left, row.image, row.truth, colours, title=row.name)
        _draw(right, row.image, row.found, colours, title=found)
    save(figure, out, dpi=_DPI)


def _draw(
    axes: Axes, image: npt.NDArray[np.uint8], objects: Objects, colours: Mapping[str, npt.NDArray[Any]], *, title: str
) -> None:
    picture = image / 255.0
    for number, name in enumerate(objects.names):
        if objects.masks is not None:
            inside = objects.masks[number]
            picture[inside] = (1 - _VEIL) * picture[inside] + _VEIL * colours[name]
    axes.imshow(picture, interpolation="antialiased")
    for (left, top, right, bottom), name in zip(objects.boxes.tolist(), objects.names, strict=True):
        colour = tuple(colours[name])
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.2))
        label = {"boxstyle": "square,pad=0.1", "facecolor": colour, "edgecolor": "none", "alpha": 0.85}
        axes.text(left, top, name, fontsize=6, color="black", va="bottom", bbox=label, clip_on=True)
    axes.set_axis_off()
    axes.set_title(title, fontsize=8, loc="left")
