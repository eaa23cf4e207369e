"""Random crops of images with masks for training, and images with masks one by one for testing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torchvision.transforms import v2

from poa.data.augment import normalise
from poa.data.loader import Plan, prepare
from poa.data.sampler import epoch_order, keyed_random, steps_per_epoch
from poa.data.views import resize
from poa.tasks.segmentation.masks import Pair, Pairs

_CROP = 2
"""What random numbers are for; 0 and 1 are taken by ``poa.tasks.classification.data``."""
_TRIES = 10


@dataclass(frozen=True, slots=True)
class Cropping:
    """How training crops are made.

    Attributes:
        size: Side of the square crops in pixels.
        mean: Of the channels, of values in 0..1.
        std: Of the channels.
        ignore: Id of pixels without a class; what is added to images that are too small gets it too.
        resize: Shorter side before scaling, in pixels; 0 leaves it.
        scale: Range of the random factor.
        most: A crop with a larger share of one class is drawn again.
        flip: Probability of a mirror image.
        jitter: Strength of the change of colours.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    ignore: int
    resize: int
    scale: tuple[float, float]
    most: float
    flip: float
    jitter: float


class CropBatch(NamedTuple):
    """The crops of a step.

    Attributes:
        images: Normalised.
        masks: Class of each pixel, or the ignored id.
    """

    images: Float[Tensor, "batch 3 size size"]
    masks: Int[Tensor, "batch size size"]

    @property
    def num_images(self) -> int:
        """How many there are."""
        return len(self.masks)

    @property
    def bad(self) -> tuple[int, ...]:
        """None: images that cannot be read are found when all masks are looked at."""
        return ()


def training_crops(
    pairs: Pairs,
    cropping: Cropping,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    num_steps: int,
    workers: int = 0,
) -> Iterator[CropBatch]:
    """The batches of some steps; they depend on the seed and the step alone.

    Args:
        pairs: To draw from; all can be read.
        cropping: How crops are made.
        batch_size: Images a step.
        seed: Of the training.
        start_step: First step.
        num_steps: How many steps.
        workers: Processes that prepare batches ahead.
    """
    return prepare(_CropPlan(pairs, cropping, batch_size, seed, start_step, num_steps), workers=workers)


def whole_pairs(pairs: Pairs, *, resize: int, workers: int = 0) -> Iterator[Pair]:
    """All pairs in order, images resized, masks as they are.

    Args:
        pairs: To test on; all can be read.
        resize: Shorter side of the images in pixels; 0 leaves them.
        workers: Processes that read ahead.
    """
    return prepare(_TestPlan(pairs, resize), workers=workers)


def scaled_sides(height: int, width: int, *, shorter: int, factor: float = 1.0) -> tuple[int, int]:
    """Height and width of an image after resizing, at least one pixel each.

    Args:
        height: Before, in pixels.
        width: Before, in pixels.
        shorter: Shorter side that is asked for, in pixels; 0 for that of the image.
        factor: By which both are then multiplied.
    """
    ratio = factor * (shorter / min(height, width) if shorter else 1.0)
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def resized(image: UInt8[Tensor, "1 3 _height _width"], sides: tuple[int, int]) -> UInt8[Tensor, "1 3 _high _wide"]:
    """The image at other sides; itself at its own.

    Args:
        image: RGB, 0..255.
        sides: Height and width in pixels.
    """
    return image if tuple(image.shape[2:]) == sides else resize(image, *sides)


def nearest_resized(mask: Int[Tensor, "height width"], sides: tuple[int, int]) -> Int[Tensor, "_high _wide"]:
    """The mask at other sides: of each new pixel's centre, the class that it has.

    Args:
        mask: Class of each pixel.
        sides: Height and width in pixels.
    """
    rows, columns = (
        ((torch.arange(new) + 0.5) * (old / new)).long().clamp(max=old - 1)
        for old, new in zip(mask.shape, sides, strict=True)
    )
    return mask[rows[:, None], columns]


def crop_of(pair: Pair, cropping: Cropping) -> CropBatch:
    """One random crop, by the numbers that torch's global generator gives next.

    Args:
        pair: An image and its mask.
        cropping: How it is made.
    """
    low, high = cropping.scale
    factor = low + (high - low) * float(torch.rand(()))
    sides = scaled_sides(*pair.mask.shape, shorter=cropping.resize, factor=factor)
    image, mask = resized(pair.image, sides), nearest_resized(pair.mask, sides)
    top, left = _place(mask, cropping)
    rows, columns = slice(top, top + cropping.size), slice(left, left + cropping.size)
    image, mask = image[:, :, rows, columns], mask[rows, columns]
    if cropping.jitter:
        strength = cropping.jitter
        image = v2.ColorJitter(strength, strength, strength, min(strength / 10, 0.5))(image)
    below, beside = cropping.size - mask.shape[0], cropping.size - mask.shape[1]
    values = F.pad(normalise(image.contiguous(), mean=cropping.mean, std=cropping.std), (0, beside, 0, below))
    mask = F.pad(mask, (0, beside, 0, below), value=cropping.ignore)
    if float(torch.rand(())) < cropping.flip:
        values, mask = values.flip(3), mask.flip(1)
    return CropBatch(values, mask[None])


def _place(mask: Tensor, cropping: Cropping) -> tuple[int, int]:
    """Top and left of a crop in which no class takes too much of what has a class."""
    spare = [max(0, side - cropping.size) for side in mask.shape]
    for _ in range(_TRIES):
        top, left = (int(torch.randint(room + 1, ())) for room in spare)
        part = mask[top : top + cropping.size, left : left + cropping.size]
        labelled = part[part != cropping.ignore]
        if len(labelled) and int(labelled.bincount().max()) <= cropping.most * len(labelled):
            break
    return top, left


@dataclass(frozen=True)
class _CropPlan(Plan[CropBatch]):
    pairs: Pairs
    cropping: Cropping
    batch_size: int
    seed: int
    start_step: int
    num_steps: int

    def __len__(self) -> int:
        return self.num_steps

    def make(self, number: int) -> CropBatch:
        step = self.start_step + number
        epoch, batch = divmod(step, steps_per_epoch(len(self.pairs), self.batch_size))
        order = epoch_order(len(self.pairs), self.seed, epoch)
        drawn = order[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()
        crops = []
        for place, wanted in enumerate(drawn):
            with keyed_random(self.seed, _CROP, step, place):
                crops.append(crop_of(self.pairs.read(wanted), self.cropping))
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
