"""Test images under all conditions at once, decoded and disturbed by workers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from poa.data.index import ImageIndex
from poa.data.loader import Plan, centre_crop, prepare, read_or_none
from poa.robustness.conditions import Disturbance

_MOST = 128
"""Images at a time."""
_BYTES = 2**27
"""Of disturbed images that a worker hands over at a time."""


class DisturbedImages(NamedTuple):
    """Some test images under all conditions.

    Attributes:
        numbers: Which images of the index; bad ones are left out.
        images: Condition by condition, still without ``Disturbance.finish``.
        is_judged: Which of them count.
        num_tried: Images read, bad ones among them.
    """

    numbers: tuple[int, ...]
    images: UInt8[Tensor, "conditions batch 3 side side"]
    is_judged: Bool[Tensor, "conditions batch"]
    num_tried: int


def disturbed_images(
    index: ImageIndex, conditions: tuple[Disturbance, ...], *, size: int, resize: int, workers: int = 0
) -> Iterator[DisturbedImages]:
    """All images of an index in order, each decoded once, as its central crop under every condition.

    Args:
        index: The images.
        conditions: At least one.
        size: Side of the crop in pixels.
        resize: Shorter side before the crop, in pixels.
        workers: Processes that prepare images ahead.
    """
    return prepare(_Disturbing(index, conditions, size, resize), workers=workers)


@dataclass(frozen=True, eq=False)
class _Disturbing(Plan[DisturbedImages]):
    """What a worker does."""

    index: ImageIndex
    conditions: tuple[Disturbance, ...]
    size: int
    resize: int

    @property
    def at_once(self) -> int:
        """Images an item."""
        return max(1, min(_MOST, _BYTES // (len(self.conditions) * 3 * self.size**2)))

    def __len__(self) -> int:
        return -(-len(self.index) // self.at_once)

    def make(self, number: int) -> DisturbedImages:
        """Decode and disturb."""
        wanted = range(number * self.at_once, min((number + 1) * self.at_once, len(self.index)))
        crops = {}
        for each in wanted:
            image = read_or_none(self.index, each)
            if image is not None:
                crops[each] = centre_crop(image, size=self.size, resize_to=self.resize)
        if not crops:
            none = torch.empty(len(self.conditions), 0, 3, self.size, self.size, dtype=torch.uint8)
            return DisturbedImages((), none, torch.empty(len(self.conditions), 0, dtype=torch.bool), len(wanted))
        clean, numbers = torch.cat(list(crops.values())), tuple(crops)
        made = [condition.make(clean, numbers) for condition in self.conditions]
        images, is_judged = (torch.stack(each) for each in zip(*made, strict=True))
        return DisturbedImages(numbers, images, is_judged, len(wanted))
