"""Images together with their objects: found and checked before a training, read in batches and for a test."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from rich.console import Console
from torch import Tensor

from poa.config.detection import Detection
from poa.data.content import MOST_NAMED, Identity, LeftOut
from poa.data.images import BadImage, decode, image_tensor, upright_sides
from poa.data.index import ImageIndex
from poa.data.loader import BAD_IN_A_ROW
from poa.data.sampler import draws, keyed_random
from poa.data.spelling import Spellings
from poa.data.workers import Plan, prepare
from poa.errors import UserError, counted
from poa.features.images import open_images
from poa.tasks.detection.coco import Annotations, ImageAnnotation, decoded_mask, read_annotations

_FLIP = 4
"""What random numbers are for; smaller ones are taken by others."""


class Instances(NamedTuple):
    """An image (RGB, 0..1) and its objects: left, top, right and bottom edge in pixels, labels from 1."""

    image: Float[Tensor, "3 height width"]
    boxes: Float[Tensor, "objects 4"]
    labels: Int[Tensor, " objects"]
    masks: UInt8[Tensor, "objects height width"] | None

    def flipped(self) -> "Instances":
        """The mirror image."""
        width = self.image.shape[2]
        left, top, right, bottom = self.boxes.unbind(dim=1)
        boxes = torch.stack([width - right, top, width - left, bottom], dim=1)
        return Instances(self.image.flip(2), boxes, self.labels, None if self.masks is None else self.masks.flip(2))

    def target(self) -> dict[str, Tensor]:
        """As torchvision's detectors want it."""
        masks = {} if self.masks is None else {"masks": self.masks}
        return {"boxes": self.boxes, "labels": self.labels, **masks}


@dataclass(frozen=True)
class InstanceImages:
    """Images whose objects are known, and the number of each in the index; others are damaged or not there."""

    annotations: Annotations
    index: ImageIndex
    rows: tuple[int, ...]
    num_absent: int = 0
    damaged: LeftOut | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def identity(self) -> Identity:
        """What results know the images and their annotations by."""
        rows, annotations = np.array(self.rows, np.int64), self.annotations
        text = f"{len(self)} images {self.index.digest_of(rows)}, annotations {annotations.fingerprint}"
        total = len(self) if self.damaged is None else self.damaged.total
        return Identity(
            f"{total} images of {self.index.source} with {annotations.file}", text, self.index.digests[rows]
        )

    def annotation(self, i: int) -> ImageAnnotation:
        """What the file says about image ``i``."""
        return self.annotations.images[i]

    def left_out(self, bad: Collection[int]) -> LeftOut:
        """The damaged images, and those of some numbers, which cannot be read either."""
        categories, seen = self.annotations.categories, (set[int](), set[int]())
        for number, image in enumerate(self.annotations.images):
            seen[number in bad].update(each.category for each in image.objects)
        names = tuple(self.annotation(number).file_name for number in sorted(bad)[:MOST_NAMED])
        lost = tuple(categories[number] for number in sorted(seen[True] - seen[False]))
        found = LeftOut(len(bad), len(self), names, lost)
        return found if self.damaged is None else self.damaged.joined(found)

    def take(self, chosen: Sequence[int]) -> "InstanceImages":
        """The images of these numbers alone."""
        rows = tuple(self.rows[number] for number in chosen)
        return replace(self, annotations=self.annotations.take(chosen), rows=rows)

    def read(self, i: int) -> Instances:
        """Image ``i`` and its objects; raises ``BadImage`` if it is damaged."""
        about = self.annotation(i)
        pixels = image_tensor(decode(self.index.read(self.rows[i])))[0]
        label_of = {number: label for label, number in enumerate(self.annotations.categories, start=1)}
        boxes = torch.tensor([each.box for each in about.objects], dtype=torch.float32).view(-1, 4)
        labels = torch.tensor([label_of[each.category] for each in about.objects], dtype=torch.int64)
        masks = _masks(about) if self.annotations.has_masks else None
        return Instances(pixels.float().contiguous() / 255, boxes, labels, masks)


def _masks(about: ImageAnnotation) -> UInt8[Tensor, "objects height width"]:
    decoded = [decoded_mask(each.mask, about.sides) for each in about.objects]
    return torch.from_numpy(np.stack(decoded)) if decoded else torch.zeros(0, *about.sides, dtype=torch.uint8)


@dataclass(frozen=True, slots=True)
class CocoImages:
    """Images with objects as the user names them: a folder, an archive or a list, and a file in COCO's format."""

    images: str
    annotations: Path

    def read(self, *, has_masks: bool, limit: int | None = None) -> Annotations:
        """Their annotations, with masks or boxes alone, of ``limit`` images evenly spread over the file."""
        annotations = read_annotations(Path(self.annotations), has_masks=has_masks)
        num_images = len(annotations.images)
        if limit is None:
            return annotations
        if not 0 < limit <= num_images:
            raise UserError(
                f"--limit must be from 1 to {num_images}, the number of images in {self.annotations}, got {limit}."
            )
        return annotations.take([number * num_images // limit for number in range(limit)])


def find_images(annotations: Annotations, images: str, *, console: Console | None = None) -> InstanceImages:
    """Find the files that annotations name in a folder, an archive or a list, which may hold further images.

    Images that are not there are left out like damaged ones, unless they are half of them or more.
    """
    index = open_images(images, console=console)
    spellings = Spellings(index.name(row) for row in range(len(index)))
    rows = [spellings.find(each.file_name) for each in annotations.images]
    missing = [number for number, row in enumerate(rows) if row is None]
    if 2 * len(missing) >= len(rows):
        raise UserError(
            f"{len(missing):,} of {counted(len(rows), 'image')} in {annotations.file} are not in {index.source}, such "
            f"as {annotations.images[missing[0]].file_name!r}; an image there is called {index.name(0)!r}. Give the "
            "folder to which the file names are relative."
        )
    there = [number for number, row in enumerate(rows) if row is not None]
    found = tuple(row for row in rows if row is not None)
    return InstanceImages(annotations.take(there), index, found, len(missing))


@dataclass(frozen=True)
class _SidesPlan(Plan[tuple[int, int]]):
    """Height and width of each image, once it is upright; zeros if it is damaged."""

    images: InstanceImages

    def __len__(self) -> int:
        return len(self.images)

    def make(self, number: int) -> tuple[int, int]:
        try:
            return upright_sides(self.images.index.read(self.images.rows[number]))
        except (BadImage, OSError):
            return 0, 0


def readable_images(
    images: InstanceImages, *, workers: int = 0, advance: Callable[[int], None] | None = None
) -> InstanceImages:
    """The images that can be read, of each the first bytes; a ``UserError`` if one has another size than annotated."""
    good, bad = list[int](), list[int]()
    for number, sides in enumerate(prepare(_SidesPlan(images), workers=workers)):
        if advance is not None:
            advance(1)
        about = images.annotation(number)
        if sides == about.sides:
            good.append(number)
        elif sides == (0, 0):
            bad.append(number)
        else:
            raise UserError(
                f"The image {about.file_name!r} in {images.index.source} has {sides[1]}x{sides[0]} pixels (after "
                f"its EXIF rotation), but {images.annotations.file} says {about.sides[1]}x{about.sides[0]}, so "
                "boxes would be wrong. Give the images that were annotated."
            )
    if not good:
        raise UserError(
            f"Of {counted(len(images), 'image')} in {images.index.source}, none could be read. Check that the "
            "files still exist and are images."
        )
    return replace(images.take(good), damaged=images.left_out(bad))


class InstanceBatch(NamedTuple):
    """The images of a step, each of its own size, their objects as torchvision wants them.

    ``bad`` are numbers of images that could not be read and were replaced by the next good ones.
    """

    images: tuple[Tensor, ...]
    targets: tuple[dict[str, Tensor], ...]
    bad: tuple[int, ...]

    @property
    def num_images(self) -> int:
        """How many there are."""
        return len(self.images)


def instance_batches(
    images: InstanceImages, settings: Detection, *, start_step: int, num_steps: int, workers: int = 0
) -> Iterator[InstanceBatch]:
    """The batches of some steps; they depend on the seed and the step alone."""
    return prepare(_BatchPlan(images, settings, start_step, num_steps), workers=workers)


@dataclass(frozen=True)
class _BatchPlan(Plan[InstanceBatch]):
    images: InstanceImages
    settings: Detection
    start_step: int
    num_steps: int

    def __len__(self) -> int:
        return self.num_steps

    def make(self, number: int) -> InstanceBatch:
        step, size, seed = self.start_step + number, self.settings.batch_size, self.settings.seed
        drawn, bad = [], []
        for draw in draws(step, num_images=len(self.images), batch_size=size, seed=seed):
            found, replaced = _read_or_next(self.images, draw.index)
            bad += replaced
            with keyed_random(seed, _FLIP, step, draw.position):
                drawn.append(found.flipped() if float(torch.rand(())) < self.settings.flip else found)
        return InstanceBatch(tuple(each.image for each in drawn), tuple(each.target() for each in drawn), tuple(bad))


def _read_or_next(images: InstanceImages, wanted: int) -> tuple[Instances, list[int]]:
    bad: list[int] = []
    for offset in range(min(BAD_IN_A_ROW, len(images))):
        candidate = (wanted + offset) % len(images)
        try:
            return images.read(candidate), bad
        except BadImage:
            bad.append(candidate)
    raise UserError(
        f"Of {counted(len(bad), 'image')} from number {wanted} on, none could be read. Check that the files "
        "still exist and are images."
    )


@dataclass(frozen=True)
class _TestPlan(Plan[Any]):
    images: InstanceImages

    def __len__(self) -> int:
        return len(self.images)

    def make(self, number: int) -> Tensor | None:
        try:
            return image_tensor(decode(self.images.index.read(self.images.rows[number])))[0]
        except BadImage:
            return None


def images_in_order(
    images: InstanceImages, *, workers: int = 0
) -> Iterator[tuple[ImageAnnotation, UInt8[Tensor, "3 _height _width"] | None]]:
    """All images in order, each with what the file says about it; None for one that cannot be read."""
    for number, pixels in enumerate(prepare(_TestPlan(images), workers=workers)):
        yield images.annotation(number), pixels
