"""From an index of images to batches of raw crops, with or without worker processes."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from poa.config.pretraining import ViewSettings
from poa.data.images import BadImage, decode
from poa.data.masks import Masking, masks_for
from poa.data.sampler import draws
from poa.data.views import RawViews, collate, image_tensor, make_crops, resize, sample_generator
from poa.errors import UserError

BAD_IN_A_ROW = 100
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}
THIN = 8  # times as long as wide; of thinner images the ends are cut before a resize makes them huge

Item = TypeVar("Item")


@runtime_checkable
class Images(Protocol):
    """What is needed of an index of images; workers get a pickled copy."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, index: int, /) -> bytes:
        """The encoded file of an image."""


class ScoringImages(NamedTuple):
    """Some images as evaluation sees them.

    Attributes:
        indices: Which images the rows are.
        images: Their central crops.
        bad: Indices of images that could not be read; they have no row.
    """

    indices: tuple[int, ...]
    images: UInt8[Tensor, "batch 3 size size"]
    bad: tuple[int, ...]


def batches(
    index: Images,
    *,
    augmentation: ViewSettings,
    masking: Masking,
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
    """This process's share of the batches of some steps, one step at a time.

    What comes out depends on the seed, the step and the place in the global batch alone: neither on the number of
    workers, processes and micro-batches nor on where a run was resumed. An image that cannot be read is replaced by the
    next one of the index and named in `RawViews.bad`.

    Args:
        index: The images.
        augmentation: How crops are made.
        masking: How much of them is hidden.
        batch_size: Images of a step over all processes.
        seed: Of the run.
        start_step: First step.
        num_steps: How many steps.
        rank: Which process this is.
        world_size: Number of processes; each takes a contiguous part of the batch.
        micro_batches: Parts in which this process takes its share, in order.
        workers: Processes that prepare micro-batches ahead; 0 prepares them here. A script that asks for workers must
            start under ``if __name__ == "__main__":``.
        pin_memory: Put the batches where a GPU can fetch them by itself.

    Returns:
        For each step the micro-batches.

    Raises:
        UserError: The batch cannot be divided evenly, or a hundred images in a row are bad.
    """
    parts = world_size * micro_batches
    if batch_size < 1 or batch_size % parts:
        lower = max(parts, batch_size // parts * parts)
        raise UserError(
            f"A batch of {batch_size} images cannot be divided evenly over {world_size} processes with {micro_batches} "
            f"micro-batches each. Use a multiple of {parts}, such as {lower} or {lower + parts}."
        )
    plan = _TrainingPlan(
        index, augmentation, masking, batch_size, seed, start_step, num_steps, rank, micro_batches, parts
    )
    items = prepare(plan, workers=workers, pin_memory=pin_memory)
    return ([next(items) for _ in range(micro_batches)] for _ in range(num_steps))


def images_for_scoring(
    index: Images, *, size: int, resize: int, batch_size: int, workers: int = 0, start: int = 0
) -> Iterator[ScoringImages]:
    """All images of an index in order, each as its central crop.

    Args:
        index: The images.
        size: Side of the crop in pixels.
        resize: Pixels of the shorter side before the crop is cut; not less than ``size``.
        batch_size: Images at a time; the last batch may have fewer.
        workers: Processes that prepare batches ahead; see `batches`.
        start: First image.

    Raises:
        UserError: The crop is larger than the resized image.
    """
    if resize < size:
        raise UserError(
            f"Images resized to {resize} pixels are too small for crops of {size}. Resize to {size} or more."
        )
    return prepare(_ScoringPlan(index, size, resize, batch_size, start), workers=workers)


class Plan(Dataset[Item | UserError]):
    """Something that can make its items one by one, in any process."""

    def __len__(self) -> int:
        raise NotImplementedError

    def make(self, number: int) -> Item:
        """Make one item."""
        raise NotImplementedError

    def __getitem__(self, number: int) -> Item | UserError:
        try:
            return self.make(number)
        except UserError as error:  # raised by `prepare`: on its way out of a worker its text would become a traceback
            return error


@dataclass(frozen=True)
class _TrainingPlan(Plan[RawViews]):
    """The micro-batches of one process."""

    index: Images
    augmentation: ViewSettings
    masking: Masking
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
        samples, bad = [], []
        for draw in batch[first : first + length]:
            image, replaced = read_or_next(self.index, draw.index)
            bad += replaced
            generator = sample_generator(self.seed, step, draw.position)
            samples.append(make_crops(image, augmentation=self.augmentation, generator=generator))
        masks = masks_for(
            range(first, first + length), masking=self.masking, batch_size=self.batch_size, seed=self.seed, step=step
        )
        return collate(samples, masks=masks, bad=tuple(bad))


@dataclass(frozen=True)
class _ScoringPlan(Plan[ScoringImages]):
    """The batches of an evaluation."""

    index: Images
    size: int
    resize_to: int
    batch_size: int
    start: int

    def __len__(self) -> int:
        return max(0, -((self.start - len(self.index)) // self.batch_size))

    def make(self, number: int) -> ScoringImages:
        first = self.start + number * self.batch_size
        wanted = range(first, min(first + self.batch_size, len(self.index)))
        crops = {}
        for each in wanted:
            image = read_or_none(self.index, each)
            if image is not None:
                crops[each] = centre_crop(image, size=self.size, resize_to=self.resize_to)
        none = torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        bad = tuple(each for each in wanted if each not in crops)
        return ScoringImages(tuple(crops), torch.cat([none, *crops.values()]), bad)


def read_or_none(index: Images, wanted: int) -> Image.Image | None:
    """An image in mode RGB; None if its file cannot be read or decoded."""
    try:
        return decode(index.read(wanted))
    except (BadImage, OSError):
        return None


def read_or_next(index: Images, wanted: int) -> tuple[Image.Image, list[int]]:
    """An image, or the first good one after it.

    Returns:
        The image in mode RGB, and the indices that were passed over.

    Raises:
        UserError: A hundred images in a row are bad.
    """
    bad: list[int] = []
    for offset in range(min(BAD_IN_A_ROW, len(index))):
        candidate = (wanted + offset) % len(index)
        image = read_or_none(index, candidate)
        if image is not None:
            return image, bad
        bad.append(candidate)
    raise UserError(
        f"None of the {len(bad)} images from number {wanted} on could be read. "
        "Check that the data are still where they were and that they are images."
    )


def centre_crop(image: Image.Image, *, size: int, resize_to: int) -> UInt8[Tensor, "1 3 size size"]:
    """Resize the shorter side, then cut the central square."""
    shorter = min(image.height, image.width)
    if max(image.height, image.width) > THIN * shorter:
        left, top = (max(0, (side - THIN * shorter) // 2) for side in (image.width, image.height))
        image = image.crop((left, top, image.width - left, image.height - top))
    height, width = (int(resize_to * side / shorter) for side in (image.height, image.width))
    top, left = round((height - size) / 2), round((width - size) / 2)
    return resize(image_tensor(image), height, width)[:, :, top : top + size, left : left + size]


def prepare(plan: Plan[Item], *, workers: int, pin_memory: bool = False) -> Iterator[Item]:
    """The items of a plan in order, made here or by workers."""
    loader: DataLoader[Item | UserError] = DataLoader(
        plan,
        batch_size=None,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        multiprocessing_context=_context() if workers else None,
        worker_init_fn=_on_start,
        generator=torch.Generator(),  # its own, so that loading leaves the global random state alone
    )
    for item in _started(loader):  # no name keeps it: when this ends, for whatever reason, the workers do
        if isinstance(item, UserError):
            raise item
        yield item


def _unchanged(item: Item) -> Item:
    return item


def _started(loader: "DataLoader[Item]") -> Iterator[Item]:
    with _stop_signals_held_back():
        return iter(loader)


@contextmanager
def _stop_signals_held_back() -> Iterator[None]:
    """Processes started meanwhile do not see SIGINT and SIGTERM.

    Terminals and schedulers send these to all processes of a run. The one that trains ends in good order, and needs its
    workers for that, and they need the server that started them.
    """
    if sys.platform != "linux":
        yield
        return
    resource_tracker.ensure_running()  # its own start, which comes first, would let the signals through again
    old = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # children inherit the mask
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _on_start(_: int) -> None:
    """In a worker: end with the process that trains or at its request, and at no other's."""
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_after, args=(trainer,), daemon=True).start()
    if sys.platform == "linux":
        threading.Thread(target=_end_at_request, args=(trainer.pid,), daemon=True).start()


def _end_after(trainer: BaseProcess) -> None:
    """Torch's workers watch their own parent, which here is the server; it lives as long as one of them does."""
    trainer.join()
    os._exit(1)


def _end_at_request(trainer: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        pass
    os._exit(1)


def _context() -> BaseContext:
    """How workers start: forked from a clean server, as forking this process is unsafe once torch runs threads.

    The server imports this package once (about a second); each worker then starts in some hundredths of one.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context
