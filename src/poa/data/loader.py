"""Batches of images for pre-training and for evaluation."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Num
from torch import Tensor

from poa.config.channels import USUAL, Values
from poa.config.pretraining import ViewSettings
from poa.data.channels import Divisor, alike, pixels_of, whole
from poa.data.images import BadImage
from poa.data.masks import Masking, kept_for, masks_for
from poa.data.resize import centre_crop
from poa.data.sampler import draws
from poa.data.views import RawViews, changed, collate, make_crops, reduction, sample_generator
from poa.data.workers import Plan, prepare
from poa.errors import UserError, counted

BAD_IN_A_ROW = 100


@runtime_checkable
class Images(Protocol):
    """The part of an index of images that is used here; workers get a pickled copy."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, index: int, /) -> bytes:
        """The encoded file of an image."""


class Cropping(NamedTuple):
    """How images are decoded, how their crops are made, and what of them is hidden."""

    views: ViewSettings
    masking: Masking
    values: Values = USUAL


@dataclass(frozen=True)
class CropSchedule:
    """How the crops of each step are made: smaller at first, if so asked.

    Attributes:
        usual: From step ``small_steps`` on.
        small: Before it.
        small_steps: From how many steps on crops have their usual size.
    """

    usual: Cropping
    small: Cropping
    small_steps: int = 0

    def at(self, step: int) -> Cropping:
        """Of one step."""
        return self.usual if step >= self.small_steps else self.small


class ScoringImages(NamedTuple):
    """A batch of images as evaluation sees them."""

    indices: tuple[int, ...]
    """Which images the rows are."""
    images: Num[Tensor, "batch channels size size"]
    """Their central crops."""
    bad: tuple[int, ...]
    """Indices of images that could not be read; they have no row."""


def batches(
    index: Images,
    *,
    crops: CropSchedule,
    batch_size: int,
    seed: int,
    start_step: int,
    num_steps: int,
    rank: int = 0,
    world_size: int = 1,
    micro_batches: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[list[RawViews]]:
    """The micro-batches of this process for each of some steps.

    They depend on the seed, the step and the place in the global batch alone: neither on the number of workers,
    processes and micro-batches nor on where a run was resumed. An image that cannot be read is replaced by the next one
    of the index and named in `RawViews.bad`.

    Args:
        index: The images.
        crops: How crops are made, and how much of them is hidden.
        batch_size: Images of a step over all processes.
        seed: Of the run.
        start_step: First step.
        num_steps: How many steps.
        rank: Of this process; it takes a contiguous part of the batch.
        world_size: Number of processes.
        micro_batches: Into how many this process divides its part.
        workers: Processes that prepare micro-batches ahead; 0 prepares them here.
        pin_memory: Put the batches where a GPU can fetch them by itself.

    Raises:
        UserError: The batch cannot be divided evenly, or a hundred images in a row are bad.
    """
    parts = world_size * micro_batches
    if batch_size < 1 or batch_size % parts:
        lower = max(parts, batch_size // parts * parts)
        raise UserError(
            f"A batch of {batch_size} images cannot be divided evenly over {counted(world_size, 'process')} with "
            f"{counted(micro_batches, 'micro-batch')} each. "
            f"Use a multiple of {parts}, such as {lower} or {lower + parts}."
        )
    plan = _TrainingPlan(index, crops, batch_size, seed, start_step, num_steps, rank, micro_batches, parts)
    items = prepare(plan, workers=workers, pin_memory=pin_memory)
    return ([next(items) for _ in range(micro_batches)] for _ in range(num_steps))


def images_for_scoring(
    index: Images,
    *,
    size: int,
    resize: int,
    batch_size: int,
    workers: int = 0,
    start: int = 0,
    values: Values = USUAL,
) -> Iterator[ScoringImages]:
    """The images of an index in order from ``start`` on, each as its central crop of ``size`` pixels.

    ``resize`` is the shorter side in pixels before the crop is cut, ``values`` says how files are decoded. The last
    batch may have fewer images.
    """
    if resize < size:
        raise UserError(
            f"Images resized to {resize} pixels are too small for crops of {size}. Resize to {size} pixels or more."
        )
    return prepare(_ScoringPlan(index, size, resize, batch_size, start, values), workers=workers)


def whole_images(
    index: Images, *, workers: int = 0, start: int = 0
) -> Iterator[Num[Tensor, "1 channels _height _width"] | None]:
    """The images of an index in order from ``start`` on, each of its own size; None for one that cannot be read."""
    return prepare(_WholePlan(index, start), workers=workers)


@dataclass(frozen=True)
class _WholePlan(Plan[Tensor | None]):
    index: Images
    start: int

    def __len__(self) -> int:
        return max(0, len(self.index) - self.start)

    def make(self, number: int) -> Tensor | None:
        return read_or_none(self.index, self.start + number)


@dataclass(frozen=True)
class _TrainingPlan(Plan[RawViews]):
    """The micro-batches of one process."""

    index: Images
    crops: CropSchedule
    batch_size: int
    seed: int
    start_step: int
    num_steps: int
    rank: int
    micro_batches: int
    parts: int

    def __len__(self) -> int:
        return self.num_steps * self.micro_batches

    def make(self, number: int) -> RawViews:
        offset, part = divmod(number, self.micro_batches)
        step = self.start_step + offset
        length = self.batch_size // self.parts
        first = (self.rank * self.micro_batches + part) * length
        batch = draws(step, num_images=len(self.index), batch_size=self.batch_size, seed=self.seed)
        views, masking, values = self.crops.at(step)
        by = whole if views.full_decode else partial(reduction, augmentation=views)
        samples, bad = [], []
        for draw in batch[first : first + length]:
            pixels, replaced = read_or_next(self.index, draw.index, values, by)
            bad += replaced
            generator = sample_generator(self.seed, step, draw.position)
            crops = make_crops(pixels, augmentation=views, generator=generator)
            samples.append(changed(crops, own=views.own, generator=generator) if views.own else crops)
        of_crops: dict[str, Any] = {"batch_size": self.batch_size, "seed": self.seed, "step": step}
        masks = masks_for(range(first, first + length), masking=masking, **of_crops)
        kept = kept_for(range(first, first + length), masking=masking, **of_crops)
        return collate(samples, masks=masks, bad=tuple(bad), kept=kept)


@dataclass(frozen=True)
class _ScoringPlan(Plan[ScoringImages]):
    """The batches of an evaluation."""

    index: Images
    size: int
    resize_to: int
    batch_size: int
    start: int
    values: Values

    def __len__(self) -> int:
        return max(0, -((self.start - len(self.index)) // self.batch_size))

    def make(self, number: int) -> ScoringImages:
        first = self.start + number * self.batch_size
        wanted = range(first, min(first + self.batch_size, len(self.index)))
        crops = {}
        for each in wanted:
            pixels = read_or_none(self.index, each, self.values)
            if pixels is not None:
                crops[each] = centre_crop(pixels, size=self.size, resize_to=self.resize_to)
        none = torch.empty(0, self.values.number, self.size, self.size, dtype=torch.uint8)
        bad = tuple(each for each in wanted if each not in crops)
        return ScoringImages(tuple(crops), torch.cat(alike(crops.values()) or [none]), bad)


def read_or_none(
    index: Images, wanted: int, values: Values = USUAL, by: Divisor = whole
) -> Num[Tensor, "1 channels height width"] | None:
    """The pixels of an image, see ``pixels_of``; None if its file cannot be read or decoded."""
    try:
        return pixels_of(index.read(wanted), values, by)
    except (BadImage, OSError):
        return None


def read_or_next(
    index: Images, wanted: int, values: Values = USUAL, by: Divisor = whole
) -> tuple[Num[Tensor, "1 channels height width"], list[int]]:
    """The pixels of an image, or of the first good one after it, and the indices of the bad ones before it.

    Raises:
        UserError: A hundred images in a row are bad.
    """
    bad: list[int] = []
    for offset in range(min(BAD_IN_A_ROW, len(index))):
        candidate = (wanted + offset) % len(index)
        pixels = read_or_none(index, candidate, values, by)
        if pixels is not None:
            return pixels, bad
        bad.append(candidate)
    raise UserError(
        f"Of {counted(len(bad), 'image')} from number {wanted} on, none could be read; the reason of the first: "
        f"{why_bad(index, bad[0], values)}. Check that the files still exist and are images, and run the same command "
        "again (a pre-training with --resume)."
    )


def why_bad(index: Images, wanted: int, values: Values = USUAL) -> str:
    """Why an image cannot be read, found out by reading it again."""
    try:
        pixels_of(index.read(wanted), values)
    except (BadImage, OSError) as error:
        return str(error)
    return "readable at a second try"
