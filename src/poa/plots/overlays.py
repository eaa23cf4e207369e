"""Test images beside their true and predicted masks or boxes, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from poa.plots.figure import legend, printable, save
from poa.text import shortened

_MASKS_DPI, _OBJECTS_DPI = 100, 110
_MOST_NAMES = 24
_MOST_LETTERS = 36  # that fit above a picture
_COLUMNS = ("image", "truth", "prediction")
_OPACITY = 0.45
"""Of the colour of an object's mask over the image."""


class ImageWithMasks(NamedTuple):
    """A test image and the class of each of its pixels.

    Attributes:
        name: Of its file.
        image: RGB, height x width x 3.
        truth: True classes; other numbers for none.
        predicted: Predicted classes.
    """

    name: str
    image: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]


class Objects(NamedTuple):
    """Objects in an image.

    Attributes:
        boxes: Left, top, right, bottom in pixels, a row each.
        names: Their categories.
        masks: Whether each pixel belongs to each, objects x height x width; None if unknown.
    """

    boxes: npt.NDArray[np.float32]
    names: Sequence[str]
    masks: npt.NDArray[np.bool_] | None


class ImageWithObjects(NamedTuple):
    """A test image (RGB, height x width x 3), named like its file, its true objects and those that were detected."""

    name: str
    image: npt.NDArray[np.uint8]
    truth: Objects
    detected: Objects


def mask_sheet(rows: Sequence[ImageWithMasks], *, classes: Sequence[str], title: str, out: Path) -> None:
    """Draw images, true and predicted masks side by side, with a legend of the classes in them; no class is black."""
    colours = class_colours(len(classes))
    shape = rows[0].image.shape
    height = 2.6 * shape[0] / shape[1] + 0.25
    figure = Figure(figsize=(8.4, height * len(rows) + 1.1), layout="constrained")
    figure.suptitle(printable(title), x=0.01, ha="left", fontsize=11, parse_math=False)
    panels = figure.subplots(len(rows), len(_COLUMNS), squeeze=False)
    for row, axes in zip(rows, panels, strict=True):
        pictures = (row.image, coloured(row.truth, colours), coloured(row.predicted, colours))
        for number, (axis, picture) in enumerate(zip(axes, pictures, strict=True)):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
            _head(axis, row.name if number == 0 else _COLUMNS[number])
    shown = np.unique(np.concatenate([part.flatten() for row in rows for part in (row.truth, row.predicted)]))
    named = [int(each) for each in shown if 0 <= each < len(classes)][:_MOST_NAMES]
    patches = [Patch(color=tuple(colours[each])) for each in named]
    legend(figure, columns=6, handles=patches, labels=[shortened(classes[each]) for each in named], fontsize=8)
    save(figure, out, dpi=_MASKS_DPI)


def object_sheet(rows: Sequence[ImageWithObjects], *, found: str, title: str, out: Path) -> None:
    """Draw images with their true objects on the left and detected ones, headed by ``found``, on the right."""
    names = sorted({name for row in rows for objects in (row.truth, row.detected) for name in objects.names})
    colours = dict(zip(names, class_colours(len(names)), strict=True))
    heights = [4.1 * row.image.shape[0] / row.image.shape[1] + 0.3 for row in rows]
    figure = Figure(figsize=(8.4, sum(heights) + 0.4), layout="constrained")
    figure.suptitle(printable(title), x=0.01, ha="left", fontsize=11, parse_math=False)
    panels = figure.subplots(len(rows), 2, squeeze=False, height_ratios=heights)
    for row, (left, right) in zip(rows, panels, strict=True):
        _draw_objects(left, row.image, row.truth, colours, title=row.name)
        _draw_objects(right, row.image, row.detected, colours, title=found)
    save(figure, out, dpi=_OBJECTS_DPI)


def _draw_objects(
    axes: Axes, image: npt.NDArray[np.uint8], objects: Objects, colours: Mapping[str, npt.NDArray[Any]], *, title: str
) -> None:
    picture = image / 255.0
    for number, name in enumerate(objects.names):
        if objects.masks is not None:
            inside = objects.masks[number]
            picture[inside] = (1 - _OPACITY) * picture[inside] + _OPACITY * colours[name]
    axes.imshow(picture, interpolation="antialiased")
    for (left, top, right, bottom), name in zip(objects.boxes.tolist(), objects.names, strict=True):
        colour = tuple(colours[name])
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.2))
        label = {"boxstyle": "square,pad=0.1", "facecolor": colour, "edgecolor": "none", "alpha": 0.85}
        words = printable(shortened(name))
        axes.text(left, top, words, fontsize=6, color="black", va="bottom", bbox=label, clip_on=True, parse_math=False)
    axes.set_axis_off()
    _head(axes, title)


def _head(axes: Axes, title: str) -> None:
    axes.set_title(printable(shortened(title, _MOST_LETTERS)), fontsize=8, loc="left", parse_math=False)


def class_colours(num_classes: int) -> npt.NDArray[np.float64]:
    """A colour for each class; twenty that are easily told apart, then ones all around the circle of hues."""
    first = np.asarray(colormaps["tab20"].colors)[[*range(0, 20, 2), *range(1, 20, 2)]]  # type: ignore[attr-defined]
    numbers = np.arange(num_classes)
    more = hsv_to_rgb(np.stack([numbers * 0.618 % 1.0, 0.9 - 0.4 * (numbers % 2), 1.0 - 0.3 * (numbers % 3 == 2)], 1))
    return np.concatenate([first, more])[:num_classes]


def coloured(mask: npt.NDArray[np.int64], colours: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The classes of pixels as RGB in 0..1, height x width x 3; what is no class becomes black."""
    known = (mask >= 0) & (mask < len(colours))
    picture = np.zeros((*mask.shape, 3))
    picture[known] = colours[mask[known]]
    return picture
