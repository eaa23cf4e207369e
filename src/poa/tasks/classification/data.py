"""Labelled images for supervised training, augmented by timm's transforms, each with random numbers of its own."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import RandAugment, posterize
from torch import Tensor

from poa.config.finetune import NO_AUGMENTATION, Finetune
from poa.data.images import Preprocessing
from poa.data.index import ImageIndex, matched_labels
from poa.data.loader import Plan, prepare, read_or_next
from poa.data.sampler import epoch_order, keyed_random, steps_per_epoch
from poa.errors import UserError

_IMAGE, _STEP = 0, 1
"""What random numbers are for: the augmentation of one image, or what happens in one step to the batch."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Images with their classes.

    Attributes:
        index: The images.
        labels: Class of each, from 0.
    """

    index: ImageIndex
    labels: npt.NDArray[np.int64]

    def take(self, rows: npt.NDArray[np.int64]) -> "Labelled":
        """Some of the images.

        Args:
            rows: Which ones, ascending.
        """
        chosen = rows if self.index.chosen is None else self.index.chosen[rows]
        return Labelled(ImageIndex(self.index.folder, chosen), self.labels[rows])


def labelled(train: ImageIndex, test: ImageIndex) -> tuple[Labelled, Labelled]:
    """Training and test images; classes are those of the training images, matched by name.

    Args:
        train: To learn from.
        test: To test on.

    Raises:
        UserError: Images without labels, fewer than two classes, the same images twice, or unknown test classes.
    """
    train_labels, test_labels = matched_labels(train, test)
    return Labelled(train, train_labels), Labelled(test, test_labels)


@dataclass(frozen=True, slots=True)
class Transforms:
    """How a training image is changed (timm's transforms).

    Attributes:
        image_size: Side of the crop, in pixels.
        mean: Of the channels, of values in 0..1.
        std: Of the channels.
        crop_scale: Share of the image that a crop covers, least and most; (1, 1) takes whole images.
        flip: Probability of a mirror image.
        rand_augment: timm's configuration of RandAugment, such as ``rand-m9-mstd0.5-inc1``; None for none.
        erasing: Probability that a box of the image is replaced by noise.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_scale: tuple[float, float]
    flip: float
    rand_augment: str | None
    erasing: float

    def build(self) -> Any:
        """The function from an RGB image to a normalised tensor."""
        transform = create_transform(
            self.image_size,
            is_training=True,
            scale=self.crop_scale,
            ratio=(3 / 4, 4 / 3) if self.crop_scale[0] < 1 else (1.0, 1.0),
            hflip=self.flip,
            color_jitter=None,
            auto_augment=self.rand_augment,
            interpolation="bicubic",
            mean=self.mean,
            std=self.std,
            re_prob=self.erasing,
            re_mode="pixel",
        )
        for step in transform.transforms:
            if isinstance(step, RandAugment):
                _keep_one_bit(step)
        return transform


def transforms_of(settings: Finetune, preprocessing: Preprocessing) -> Transforms:
    """How training images are changed, seen to be understood by timm."""
    transforms = Transforms(
        preprocessing.image_size,
        preprocessing.mean,
        preprocessing.std,
        settings.crop_scale,
        settings.flip,
        None if settings.rand_augment == NO_AUGMENTATION else settings.rand_augment,
        settings.erasing,
    )
    try:
        transforms.build()
    except (AssertionError, IndexError, KeyError, ValueError) as error:
        raise UserError(
            f"--rand-augment {settings.rand_augment}: timm does not understand it ({type(error).__name__}: {error}). "
            "Give something like rand-m9-mstd0.5-inc1, or none."
        ) from None
    return transforms


def _keep_one_bit(augment: RandAugment) -> None:
    """At its greatest magnitude timm asks Pillow to keep 0 bits of a channel, which newer ones refuse."""
    for operation in augment.ops:
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    reduced: Image.Image = posterize(image, max(bits, 1), **options)
    return reduced


class TrainingBatch(NamedTuple):
    """The images of a step.

    Attributes:
        images: Augmented and normalised.
        labels: Their classes.
        bad: Numbers of images that could not be read; the next good ones stand in for them.
    """

    images: Float[Tensor, "batch 3 size size"]
    labels: Int[Tensor, " batch"]
    bad: tuple[int, ...]

    @property
    def num_images(self) -> int:
        """How many there are."""
        return len(self.labels)


def training_batches(
    images: Labelled,
    transforms: Transforms,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    num_steps: int,
    repeats: int = 1,
    workers: int = 0,
) -> Iterator[TrainingBatch]:
    """The batches of some steps; they depend on the seed and the step alone.

    Args:
        images: To draw from.
        transforms: How each is changed.
        batch_size: Images a step.
        seed: Of the training.
        start_step: First step.
        num_steps: How many steps.
        repeats: How often an image comes in a row, each time changed differently; an epoch is as long as without, and
            sees one in so many images (repeated augmentation).
        workers: Processes that prepare batches ahead.

    Raises:
        UserError: A hundred images in a row are bad.
    """
    plan = _LabelledPlan(images, transforms, batch_size, seed, start_step, num_steps, repeats)
    return prepare(plan, workers=workers)


def step_random(seed: int, step: int, *, device: torch.device) -> Any:
    """Random numbers of one step for what happens to the batch: mixing of images, drop path.

    Args:
        seed: Of the training.
        step: Which step.
        device: Where the step is computed.
    """
    return keyed_random(seed, _STEP, step, device=device)


def draw_rows(
    labels: npt.NDArray[np.int64], *, share: float | None = None, per_class: int | None = None, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Choose a part of the training images, the same part of every class, as few labels are given by.

    Args:
        labels: Class of each image.
        share: Of each class's images, at least one of each.
        per_class: Images of each class. Either this or ``share`` may be given; without both, all are taken.
        seed: Of the choice.

    Returns:
        Positions, ascending.

    Raises:
        UserError: Both are given, or the part is not possible.
    """
    if share is None and per_class is None:
        return np.arange(len(labels))
    if share is not None and per_class is not None:
        raise UserError(
            f"Give either a share of the training images or a number per class, got both: {share} and {per_class}."
        )
    if share is not None and not 0 < share <= 1:
        raise UserError(f"The share of training images goes from 0 to 1, got {share}. Usual are 0.01 and 0.1.")
    counts = np.bincount(labels)
    fewest = int(counts[counts > 0].min())
    if per_class is not None and not 0 < per_class <= fewest:
        raise UserError(
            f"{per_class} images per class are not possible: the smallest class has {fewest}. "
            f"Ask for 1 to {fewest}, or for a share."
        )
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(labels))
    chosen = []
    for label in np.flatnonzero(counts):
        wanted = per_class if share is None else max(1, round(share * int(counts[label])))
        chosen.append(order[labels[order] == label][:wanted])
    return np.sort(np.concatenate(chosen))


@dataclass(frozen=True)
class _LabelledPlan(Plan[TrainingBatch]):
    """The batches of a training."""

    images: Labelled
    transforms: Transforms
    batch_size: int
    seed: int
    start_step: int
    num_steps: int
    repeats: int

    def __len__(self) -> int:
        return self.num_steps

    @cached_property
    def _transform(self) -> Any:
        return self.transforms.build()

    def make(self, number: int) -> TrainingBatch:
        step = self.start_step + number
        tensors, labels, bad = [], [], []
        for place, wanted in enumerate(self._drawn(step)):
            image, passed_over = read_or_next(self.images.index, wanted)
            bad += passed_over
            labels.append(int(self.images.labels[(wanted + len(passed_over)) % len(self.images.labels)]))
            tensors.append(self._changed(image, step, place))
        return TrainingBatch(torch.stack(tensors), torch.tensor(labels), tuple(bad))

    def _drawn(self, step: int) -> list[int]:
        num_images = len(self.images.labels)
        epoch, batch = divmod(step, steps_per_epoch(num_images, self.batch_size))
        order = np.repeat(epoch_order(num_images, self.seed, epoch), self.repeats)
        drawn: list[int] = order[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()
        return drawn

    def _changed(self, image: Image.Image, step: int, place: int) -> Tensor:
        with keyed_random(self.seed, _IMAGE, step, place):
            tensor: Tensor = self._transform(image)
            return tensor
