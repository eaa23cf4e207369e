"""Predicted masks, by a window that slides over an image, averaged over scales and mirror images; and their mIoU."""

from collections.abc import Callable
from itertools import product
from math import ceil
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from poa.config.segmentation import Segmentation
from poa.data.augment import normalise
from poa.data.images import Preprocessing
from poa.evaluation.protocol import LEVEL, RESAMPLES
from poa.tasks.segmentation.crops import resized, scaled_sides

WINDOWS_AT_ONCE = 8
_RESAMPLED_AT_ONCE = 100

Scorer = Callable[[Tensor], Tensor]
"""From normalised images to scores of each class for each pixel."""


def usual_stride(window: int) -> int:
    """Distance between windows where none is set: they overlap by a third."""
    return max(1, round(window * 2 / 3))


def starts(side: int, *, window: int, stride: int) -> tuple[int, ...]:
    """Where windows begin along a side that is no shorter; the last one is moved back to end with the image."""
    steps = ceil((side - window) / stride)
    return tuple(min(number * stride, side - window) for number in range(steps + 1))


def slide(
    score: Scorer, image: Float[Tensor, "1 3 height width"], *, window: int, stride: int
) -> Float[Tensor, "1 classes height width"]:
    """Scores of each class for each pixel of a normalised image, the mean over all windows that cover it.

    A window is no larger than the image; 0 is one as large as the image.
    """
    height, width = image.shape[2:]
    if not window or (window >= height and window >= width):
        return score(image)
    high, wide = min(window, height), min(window, width)
    places = list(product(starts(height, window=high, stride=stride), starts(width, window=wide, stride=stride)))
    total = covered = image.new_zeros(())
    for first in range(0, len(places), WINDOWS_AT_ONCE):
        some = places[first : first + WINDOWS_AT_ONCE]
        found = score(torch.cat([image[:, :, top : top + high, left : left + wide] for top, left in some]))
        if not total.ndim:
            total, covered = found.new_zeros(1, found.shape[1], height, width), found.new_zeros(height, width)
        for each, (top, left) in zip(found, some, strict=True):
            total[0, :, top : top + high, left : left + wide] += each
            covered[top : top + high, left : left + wide] += 1
    return total / covered


@torch.inference_mode()
def predict(
    score: Scorer,
    image: UInt8[Tensor, "1 3 height width"],
    settings: Segmentation,
    preprocessing: Preprocessing,
    *,
    sides: tuple[int, int],
    device: torch.device,
) -> Int[Tensor, "high wide"]:
    """Class of each pixel of a mask of these sides, on the CPU: that of the highest mean probability.

    The mean is over scales and mirror images, as the settings say; ``score`` computes on the device.
    """
    window = 0 if settings.whole else settings.crop
    total = torch.zeros((), device=device)
    for scale in settings.test_scales:
        scaled = resized(image, scaled_sides(image.shape[2], image.shape[3], shorter=0, factor=scale))
        values = normalise(scaled.to(device), mean=preprocessing.mean, std=preprocessing.std)
        for is_mirrored in (False, True) if settings.test_flip else (False,):
            found = slide(score, values.flip(3) if is_mirrored else values, window=window, stride=settings.stride)
            upright = found.flip(3) if is_mirrored else found
            total = total + F.interpolate(upright.float(), size=sides, mode="bilinear").softmax(dim=1)
    return total[0].argmax(dim=0).cpu()


class Agreement(NamedTuple):
    """In percent.

    Attributes:
        miou: Mean of ``iou`` over the classes that occur in true or in predicted masks, as usual (mmseg, torchmetrics).
        pixel_accuracy: Share of pixels with a class that got it right.
        iou: Of each class; 0 where it is predicted but never true, NaN where it occurs in neither.
    """

    miou: float
    pixel_accuracy: float
    iou: Float[Tensor, " classes"]


def count(
    truth: Int[Tensor, "height width"], predicted: Int[Tensor, "height width"], *, num_classes: int, ignore: int
) -> Int[Tensor, "3 classes"]:
    """Pixels of one image by class: predicted and true, true, predicted. Ignored pixels count nowhere.

    These are the diagonal and the sums of the rows and of the columns of the confusion matrix.
    """
    kept = truth != ignore
    truth, predicted = truth[kept], predicted[kept]
    parts = (truth[truth == predicted], truth, predicted)
    return torch.stack([torch.bincount(part, minlength=num_classes) for part in parts])


def agreement(counts: Int[Tensor, "images 3 classes"]) -> Agreement:
    """Measures over all images together: pixels are summed over images first, as is the custom for data sets."""
    iou, accuracy = _measures(counts.sum(dim=0)[None].double())
    return Agreement(float(iou.nanmean()), float(accuracy), iou[0])


def intervals(
    counts: Int[Tensor, "images 3 classes"], *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of ``miou`` and ``pixel_accuracy``: images are drawn with replacement.

    A class that is neither true nor predicted in any drawn image is left out of that draw's mean. One image has no
    interval.
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
    # a draw of images without any class has no measures
    ends = torch.nanquantile(torch.cat(found, dim=1), torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=1)
    low, high = ends.tolist()
    return {name: (low[place], high[place]) for place, name in enumerate(("miou", "pixel_accuracy"))}


def _measures(
    counts: Float[Tensor, "rows 3 classes"],
) -> tuple[Float[Tensor, "rows classes"], Float[Tensor, " rows"]]:
    """Intersection over union of each class and pixel accuracy, in percent."""
    hits, true, predicted = counts.unbind(dim=1)
    iou = 100 * hits / (true + predicted - hits)  # 0 / 0 is NaN
    return iou, 100 * hits.sum(dim=1) / true.sum(dim=1)
