"""Forecast the time, memory and disk of a run."""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from torch.utils._pytree import tree_leaves

from poa import distributed
from poa.config.pretraining import Config
from poa.data.index import ImageIndex
from poa.data.loader import CropSchedule
from poa.data.views import RawViews
from poa.features.images import open_images
from poa.machine.launchers import cores_of
from poa.models import opening, registry
from poa.pretraining.advice import warnings_of
from poa.pretraining.build import Parts, assemble, workers_of
from poa.pretraining.process import find_images, show_start
from poa.pretraining.resume import restore
from poa.pretraining.step import step_batches, train_step
from poa.training.health import explained_memory
from poa.training.progress import bar, duration, forget_memory, memory_in_use
from poa.training.states import state_of
from poa.training.trackers import tracker_of

NUM_STEPS = 2
LONG_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What some steps tell of a run."""

    num_images: int
    num_sizes: int
    parameters: int
    """Of the student, backbone and heads."""
    checkpoint_bytes: int
    steps_per_epoch: int
    done: int
    """Steps of a run that is resumed."""
    seconds_per_step: float
    """Waiting for images included; on average over the steps that are left, where they have crops of two sizes."""
    waiting_seconds: float
    cpu_seconds_per_step: float
    """Of all threads, to prepare the images and to train on them; on one of several processes."""
    memory_bytes: int
    """The most that one process used."""
    device: str
    """Whose memory that is."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will take, as far as some steps tell."""

    measured: Measured
    num_steps: int
    """That are left."""
    images_per_second: float
    """Over all processes."""
    disk_bytes: int
    """Of all checkpoints that are kept at a time, and one more while saving."""
    notes: tuple[str, ...]

    def rows(self) -> list[tuple[str, str]]:
        """The forecast in words, each line with its name."""
        found = self.measured
        waiting = found.waiting_seconds / found.seconds_per_step
        resumed = f" after the {found.done:,} that are done" if found.done else ""
        speed = f"{_number(self.images_per_second)} images/s, {_number(found.seconds_per_step)} s per step"
        seconds = self.num_steps * found.seconds_per_step
        return [
            ("images", f"{found.num_images:,}"),
            ("sizes", f"{found.num_sizes}"),
            ("parameters", f"{_number(found.parameters / 1e6)} M in the student, backbone and heads"),
            ("speed", f"{speed}, {waiting:.0%} of it waiting for images"),
            ("memory", f"{_size(found.memory_bytes)} at most, {found.device}"),
            ("time", f"{duration(seconds)} for {self.num_steps:,} steps{resumed}"),
            ("disk", f"{_size(self.disk_bytes)} at most, for checkpoints of {_size(found.checkpoint_bytes)}"),
            *(("note", note) for note in self.notes),
        ]

    def lines(self) -> list[str]:
        """The forecast in words."""
        return [f"{name:<13}{what}" for name, what in self.rows()]


def dry_run(config: Config, *, resume: bool = False, console: Console) -> Forecast:
    """Build everything and train two steps in this process, on the share of one of several; nothing is written.

    A run to resume is loaded as if it went on.

    Raises:
        UserError: A setting, the images, the folder or the device are invalid, as the run itself would say.
    """
    return forecast(config, measure(config, resume=resume, console=console))


@explained_memory()
def measure(config: Config, *, resume: bool = False, console: Console, num_steps: int = NUM_STEPS) -> Measured:
    """Train so many steps on crops of each size, or at least two where steps take long; see ``dry_run``."""
    config, device = registry.explicit(config), distributed.this_device(config.device, float64=False)
    forget_memory(device)
    if config.out or resume:  # without, all but the folder is tried
        opening.check(config, resume=resume)
    for name in config.trackers:
        tracker_of(name)
    index, config = find_images(config, console)
    fresh = opening.begins(config, resume=resume)
    parts = assemble(config, index, device=device, fresh=fresh)
    processes = config.processes
    done = 0 if fresh else restore(parts, config, index, console, processes=processes)
    if config.monitor.data is not None:
        open_images(config.monitor.data, console=console).require_labels()
    show_start(parts, config, console)
    kinds = _kinds(parts, config, done=done)
    with bar("training steps", total=num_steps * len(kinds), console=console) as advance:
        found = [
            [share * seconds for seconds in _mean_step(replace(parts, crops=crops), config, index, num_steps, advance)]
            for crops, share in kinds
        ]
    training, preparing, on_cpu = map(sum, zip(*found, strict=True))
    workers = workers_of(config)
    waiting = max(0.0, preparing / workers - training) if workers else preparing
    saved = state_of(parts.method, parts.optimizer)
    on_cores = on_cpu / max(1, cores_of(config.devices or 1))  # workers and training share these
    return Measured(
        num_images=len(index),
        num_sizes=len(parts.family.space.sizes),
        parameters=sum(parameter.numel() for parameter in parts.method.student.parameters()),
        checkpoint_bytes=sum(each.nbytes for each in tree_leaves(saved) if isinstance(each, torch.Tensor)),
        steps_per_epoch=parts.steps_per_epoch,
        done=done,
        seconds_per_step=max(training + waiting, on_cores),
        waiting_seconds=waiting,
        cpu_seconds_per_step=on_cpu,
        memory_bytes=memory_in_use(device),
        device="of the process" if device.type != "cuda" else torch.cuda.get_device_name(device),
    )


def forecast(config: Config, found: Measured) -> Forecast:
    """What a run takes whose steps were measured; its length may be another than it was then."""
    num_steps = config.epochs * found.steps_per_epoch
    every = config.saving.keep_every_epochs
    special = 2 if config.optimizer.schedule == "constant" else 1  # the best, and the last before a cool-down
    kept = config.saving.keep_last + special + 1 + (int(config.epochs / every) if every else 0)
    disk = min(kept, num_steps) * found.checkpoint_bytes
    return Forecast(
        measured=found,
        num_steps=num_steps - found.done,
        images_per_second=config.batch_size / found.seconds_per_step,
        disk_bytes=disk,
        notes=(*warnings_of(config, num_images=found.num_images), *_notes(config, disk=disk)),
    )


def _kinds(parts: Parts, config: Config, *, done: int) -> list[tuple[CropSchedule, float]]:
    """Small and usual crops, with their shares of the steps that are left."""
    num_steps = config.epochs * parts.steps_per_epoch
    small = max(0, min(parts.crops.small_steps, num_steps) - done) / max(1, num_steps - done)
    shares = ((parts.crops.small, small), (parts.crops.usual, 1 - small))
    return [(CropSchedule(crops, crops), share) for crops, share in shares if share]


def _mean_step(
    parts: Parts, config: Config, index: ImageIndex, num_steps: int, advance: Callable[[], None]
) -> list[float]:
    """Seconds as in ``_timed_steps``, on average; the first step does not count."""
    _, *counted = _until_long(_timed_steps(parts, config, index, num_steps), advance)
    return [sum(part) / len(counted) for part in zip(*counted, strict=True)]


def _until_long(
    steps: Iterator[tuple[float, float, float]], advance: Callable[[], None]
) -> Iterator[tuple[float, float, float]]:
    """At least two steps; no more once they have taken long."""
    seconds = 0.0
    for number, (training, preparing, on_cpu) in enumerate(steps, start=1):
        advance()
        yield training, preparing, on_cpu
        seconds += training + preparing
        if number >= NUM_STEPS and seconds > LONG_SECONDS:
            return


def _timed_steps(
    parts: Parts, config: Config, index: ImageIndex, num_steps: int
) -> Iterator[tuple[float, float, float]]:
    """Train some steps; of each the seconds of training, of preparing its images in one process, and CPU seconds."""
    first = parts.ibot_start  # steps with masks take longest
    loader = step_batches(
        parts,
        index,
        batch_size=config.batch_size,
        start_step=first,
        num_steps=num_steps,
        world_size=config.processes,
        micro_batches=config.accumulate,
    )
    return (_timed_step(parts, step, loader) for step in range(first, first + num_steps))


def _timed_step(parts: Parts, step: int, loader: Iterator[list[RawViews]]) -> tuple[float, float, float]:
    began, on_cpu = time.monotonic(), time.process_time()
    batch = next(loader)
    prepared = time.monotonic()
    train_step(parts, step, batch)
    return time.monotonic() - prepared, prepared - began, time.process_time() - on_cpu


def _notes(config: Config, *, disk: int) -> Iterator[str]:
    processes = config.processes
    if processes > 1:
        yield f"Only one of {processes} processes was measured; communication between them is not included."
    if 0 < config.views.small_epochs < config.epochs:
        small, usual = config.views.first_size, config.views.global_size
        yield f"The speed is a mean: steps on crops of {small} pixels, which come first, take less than on {usual}."
    folder = Path(config.out).absolute()
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    if config.out and disk > free:
        yield f"Only {_size(free)} are free in {config.out}."


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
