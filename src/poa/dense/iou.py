"""How well predicted masks match true ones: intersection over union, pixel accuracy, and how sure these are."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from poa.evaluation.intervals import RESAMPLES
from poa.evaluation.protocols import LEVEL

_RESAMPLED_AT_ONCE = 100


class Agreement(NamedTuple):
    """In percent.

    Attributes:
        miou: Mean of ``iou`` over the classes that occur in true masks.
        pixel_accuracy: Share of pixels with a class that got it right.
        iou: Of each class; NaN where a class does not occur.
    """

    miou: float
    pixel_accuracy: float
    iou: Float[Tensor, " classes"]


def count(
    truth: Int[Tensor, "height width"], predicted: Int[Tensor, "height width"], *, num_classes: int, ignore: int
) -> Int[Tensor, "3 classes"]:
    """Pixels of one image by class: predicted and true, true, predicted. Ignored pixels count nowhere.

    These are the diagonal and the sums of the rows and of the columns of the confusion matrix.

    Args:
        truth: Class of each pixel.
        predicted: The same.
        num_classes: Number of classes.
        ignore: Id of true pixels that have no class.
    """
    kept = truth != ignore
    truth, predicted = truth[kept], predicted[kept]
    parts = (truth[truth == predicted], truth, predicted)
    return torch.stack([torch.bincount(part, minlength=num_classes) for part in parts])


def agreement(counts: Int[Tensor, "images 3 classes"]) -> Agreement:
    """Measures over all images together: pixels are summed over images first, as is the custom for data sets.

    Args:
        counts: One ``count`` an image.
    """
    iou, accuracy = _measures(counts.sum(dim=0)[None].double())
    return Agreement(float(iou.nanmean()), float(accuracy), iou[0])


def intervals(
    counts: Int[Tensor, "images 3 classes"], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of ``miou`` and ``pixel_accuracy``: images are drawn with replacement.

    A class that no drawn image has is left out of that draw's mean. One image has no interval.

    Args:
        counts: One ``count`` an image.
        level: Probability of the intervals, between 0 and 1.
        resamples: How often to draw.
        seed: Of the draws.
    """
    num_images = len(counts)
    if num_images < 2:
        return {}
    generator = torch.Generator().manual_seed(seed)
    flat, found = counts.double().flatten(1), []
    for first in range(0, resamples, _RESAMPLED_AT_ONCE):
        rows = min(_RESAMPLED_AT_ONCE, resamples - first)
        drawn = torch.randint(num_images, (rows, num_images), generator=generator)
        times = torch.zeros(rows, num_images, dtype=torch.float64)
        times.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))
        iou, accuracy = _measures((times @ flat).view(rows, *counts.shape[1:]))
        found.append(torch.stack([iou.nanmean(dim=1), accuracy]))
    tail = (1 - level) / 2
    # a draw of images without any class says nothing
    ends = torch.nanquantile(torch.cat(found, dim=1), torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=1)
    low, high = ends.tolist()
    return {name: (low[place], high[place]) for place, name in enumerate(("miou", "pixel_accuracy"))}


def _measures(
    counts: Float[Tensor, "rows 3 classes"],
) -> tuple[Float[Tensor, "rows classes"], Float[Tensor, " rows"]]:
    """Intersection over union of each class and pixel accuracy, in percent."""
    hits, true, predicted = counts.unbind(dim=1)
    iou = 100 * hits / (true + predicted - hits)
    return torch.where(true > 0, iou, torch.nan), 100 * hits.sum(dim=1) / true.sum(dim=1)
