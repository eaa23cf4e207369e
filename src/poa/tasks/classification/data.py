"""Labelled images for supervised training, augmented by timm's transforms, each with random numbers of its own."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
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
from poa.data.channels import image_of
from poa.data.images import Preprocessing
from poa.data.index import ImageIndex, matched_labels
from poa.data.loader import read_or_next
from poa.data.sampler import check_per_class, epoch_order, keyed_random, steps_per_epoch
from poa.data.workers import Plan, prepare
from poa.errors import UserError

_IMAGE = 0
"""What random numbers are for: the augmentation of one image."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """Images with the class of each, from 0."""

    index: ImageIndex
    labels: npt.NDArray[np.int64]

    def take(self, rows: npt.NDArray[np.int64]) -> "Labelled":
        """Some of the images, by ascending positions."""
        chosen = rows if self.index.chosen is None else self.index.chosen[rows]
        return Labelled(replace(self.index, chosen=chosen), self.labels[rows])


def labelled(train: ImageIndex, test: ImageIndex | None) -> tuple[Labelled, Labelled | None]:
    """Training and perhaps test images; classes are those of the training images, matched by name."""
    if test is None:
        return Labelled(train, train.require_labels()), None
    train_labels, test_labels = matched_labels(train, test)
    return Labelled(train, train_labels), Labelled(test, test_labels)


def training_transform(settings: Finetune, preprocessing: Preprocessing) -> Any:
    """Timm's function from an RGB image to a normalised tensor; UserError if timm does not know the RandAugment."""
    try:
        transform = create_transform(
            preprocessing.image_size,
            is_training=True,
            scale=settings.crop_scale,
            ratio=(3 / 4, 4 / 3) if settings.crop_scale[0] < 1 else (1.0, 1.0),
            hflip=settings.flip,
            color_jitter=None,
            auto_augment=None if settings.rand_augment == NO_AUGMENTATION else settings.rand_augment,
            interpolation="bicubic",
            mean=preprocessing.mean,
            std=preprocessing.std,
            re_prob=settings.erasing,
            re_mode="pixel",
        )
    except (AssertionError, IndexError, KeyError, ValueError) as error:
        raise UserError(
            f"--rand-augment {settings.rand_augment}: timm cannot parse it ({type(error).__name__}: {error}). "
            "Give, for example, rand-m9-mstd0.5-inc1, or none."
        ) from None
    for step in transform.transforms:
        if isinstance(step, RandAugment):
            _keep_one_bit(step)
    return transform


def _keep_one_bit(augment: RandAugment) -> None:
    """At its greatest magnitude timm asks Pillow to keep 0 bits of a channel, which newer ones refuse."""
    for operation in augment.ops:
        if operation.aug_fn is posterize:
            operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **options: Any) -> Image.Image:
    reduced: Image.Image = posterize(image, max(bits, 1), **options)
    return reduced


class TrainingBatch(NamedTuple):
    """The images of a step, augmented and normalised, and their classes.

    Attributes:
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
    settings: Finetune,
    preprocessing: Preprocessing,
    *,
    start_step: int,
    num_steps: int,
    workers: int = 0,
) -> Iterator[TrainingBatch]:
    """The batches of some steps; they depend on the settings and the step alone.

    An epoch of repeated images is as long as one without, and sees one in ``settings.repeats`` images.
    """
    return prepare(_LabelledPlan(images, settings, preprocessing, start_step, num_steps), workers=workers)


def draw_rows(labels: npt.NDArray[np.int64], settings: Finetune) -> npt.NDArray[np.int64]:
    """Positions, ascending, of the part of the training images that the settings ask for, the same of every class."""
    share, per_class = settings.share, settings.per_class
    if share is None and per_class is None:
        return np.arange(len(labels))
    counts = np.bincount(labels)
    if per_class is not None:
        check_per_class(per_class, labels.tolist())
    order = np.random.Generator(np.random.Philox(key=settings.seed)).permutation(len(labels))
    chosen = []
    for label in np.flatnonzero(counts):
        wanted = per_class if share is None else max(1, round(share * int(counts[label])))
        chosen.append(order[labels[order] == label][:wanted])
    return np.sort(np.concatenate(chosen))


@dataclass(frozen=True)
class _LabelledPlan(Plan[TrainingBatch]):
    images: Labelled
    settings: Finetune
    preprocessing: Preprocessing
    start_step: int
    num_steps: int

    def __len__(self) -> int:
        return self.num_steps

    @cached_property
    def _transform(self) -> Any:
        return training_transform(self.settings, self.preprocessing)

    def make(self, number: int) -> TrainingBatch:
        step = self.start_step + number
        tensors, labels, bad = [], [], []
        for place, wanted in enumerate(self._drawn(step)):
            pixels, passed_over = read_or_next(self.images.index, wanted)
            bad += passed_over
            labels.append(int(self.images.labels[(wanted + len(passed_over)) % len(self.images.labels)]))
            with keyed_random(self.settings.seed, _IMAGE, step, place):
                tensors.append(self._transform(image_of(pixels)))
        return TrainingBatch(torch.stack(tensors), torch.tensor(labels), tuple(bad))

    def _drawn(self, step: int) -> list[int]:
        num_images, size, seed = len(self.images.labels), self.settings.batch_size, self.settings.seed
        epoch, batch = divmod(step, steps_per_epoch(num_images, size))
        order = np.repeat(epoch_order(num_images, seed, epoch), self.settings.repeats)
        drawn: list[int] = order[batch * size : (batch + 1) * size].tolist()
        return drawn
