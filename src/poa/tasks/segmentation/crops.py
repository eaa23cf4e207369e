"""Random crops of images with masks for training, and images with masks one by one for testing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torchvision.transforms import v2

from poa.config.segmentation import Segmentation
from poa.data.augment import normalise
from poa.data.images import Preprocessing
from poa.data.resize import resize
from poa.data.sampler import draws, keyed_random
from poa.data.workers import Plan, prepare
from poa.tasks.segmentation.masks import Pair, Pairs

_CROP = 2
"""What random numbers are for; 0 and 1 are those of classification."""
_TRIES = 10


class CropBatch(NamedTuple):
    """The crops of a step, normalised, and the class of each pixel, or the ignored id."""

    images: Float[Tensor, "batch 3 size size"]
    masks: Int[Tensor, "batch size size"]

    @property
    def num_images(self) -> int:
        """How many there are."""
        return len(self.masks)

    @property
    def bad(self) -> tuple[int, ...]:
        """None: images that cannot be read are found before training."""
        return ()


def training_crops(
    pairs: Pairs,
    settings: Segmentation,
    preprocessing: Preprocessing,
    *,
    start_step: int,
    num_steps: int,
    workers: int = 0,
) -> Iterator[CropBatch]:
    """The batches of some steps; they depend on the settings and the step alone. All pairs can be read."""
    return prepare(_CropPlan(pairs, settings, preprocessing, start_step, num_steps), workers=workers)


def whole_pairs(pairs: Pairs, *, resize: int, workers: int = 0) -> Iterator[Pair]:
    """All pairs in order, which can be read; images with a shorter side of ``resize`` pixels (0 for their own)."""
    return prepare(_TestPlan(pairs, resize), workers=workers)


def scaled_sides(height: int, width: int, *, shorter: int, factor: float = 1.0) -> tuple[int, int]:
    """Height and width after resizing to a shorter side (0 for that of the image) and scaling, at least one pixel."""
    ratio = factor * (shorter / min(height, width) if shorter else 1.0)
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def resized(image: UInt8[Tensor, "1 3 _height _width"], sides: tuple[int, int]) -> UInt8[Tensor, "1 3 _high _wide"]:
    """The image at other sides; itself at its own."""
    return image if tuple(image.shape[2:]) == sides else resize(image, *sides)


def nearest_resized(mask: Int[Tensor, "height width"], sides: tuple[int, int]) -> Int[Tensor, "_high _wide"]:
    """The mask at other sides: of each new pixel's centre, the class that it has."""
    rows, columns = (
        ((torch.arange(new) + 0.5) * (old / new)).long().clamp(max=old - 1)
        for old, new in zip(mask.shape, sides, strict=True)
    )
    return mask[rows[:, None], columns]


def crop_of(pair: Pair, settings: Segmentation, preprocessing: Preprocessing, *, ignore: int) -> CropBatch:
    """One random crop, by the numbers that torch's global generator gives next.

    What is added to images that are too small has the ignored id.
    """
    low, high = settings.scale
    factor = low + (high - low) * float(torch.rand(()))
    sides = scaled_sides(*pair.mask.shape, shorter=settings.resize, factor=factor)
    image, mask = resized(pair.image, sides), nearest_resized(pair.mask, sides)
    top, left = _place(mask, settings, ignore=ignore)
    rows, columns = slice(top, top + settings.crop), slice(left, left + settings.crop)
    image, mask = image[:, :, rows, columns], mask[rows, columns]
    if settings.jitter:
        strength = settings.jitter
        image = v2.ColorJitter(strength, strength, strength, min(strength / 10, 0.5))(image)
    below, beside = settings.crop - mask.shape[0], settings.crop - mask.shape[1]
    values = normalise(image.contiguous(), mean=preprocessing.mean, std=preprocessing.std)
    values, mask = F.pad(values, (0, beside, 0, below)), F.pad(mask, (0, beside, 0, below), value=ignore)
    if float(torch.rand(())) < settings.flip:
        values, mask = values.flip(3), mask.flip(1)
    return CropBatch(values, mask[None])


def _place(mask: Tensor, settings: Segmentation, *, ignore: int) -> tuple[int, int]:
    """Top and left of a crop in which no class takes too much of what has a class."""
    spare = [max(0, side - settings.crop) for side in mask.shape]
    for _ in range(_TRIES):
        top, left = (int(torch.randint(room + 1, ())) for room in spare)
        part = mask[top : top + settings.crop, left : left + settings.crop]
        labelled = part[part != ignore]
        if len(labelled) and int(labelled.bincount().max()) <= settings.most * len(labelled):
            break
    return top, left


@dataclass(frozen=True)
class _CropPlan(Plan[CropBatch]):
    pairs: Pairs
    settings: Segmentation
    preprocessing: Preprocessing
    start_step: int
    num_steps: int

    def __len__(self) -> int:
        return self.num_steps

    def make(self, number: int) -> CropBatch:
        step, size, seed = self.start_step + number, self.settings.batch_size, self.settings.seed
        crops = []
        for draw in draws(step, num_images=len(self.pairs), batch_size=size, seed=seed):
            with keyed_random(seed, _CROP, step, draw.position):
                pair = self.pairs.read(draw.index)
                crops.append(crop_of(pair, self.settings, self.preprocessing, ignore=self.pairs.ignore))
        return CropBatch(*(torch.cat(parts) for parts in zip(*crops, strict=True)))


@dataclass(frozen=True)
class _TestPlan(Plan[Pair]):
    pairs: Pairs
    resize: int

    def __len__(self) -> int:
        return len(self.pairs)

    def make(self, number: int) -> Pair:
        image, mask = self.pairs.read(number)
        return Pair(resized(image, scaled_sides(*mask.shape, shorter=self.resize)), mask)
