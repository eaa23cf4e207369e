"""Say what a run will take before it is started."""

import time
from dataclasses import dataclass

from rich.console import Console

from poa import build
from poa.config import Config
from poa.data.loader import batches
from poa.loop import find_images
from poa.step import assemble, train_step
from poa.training.progress import duration, gigabytes, memory_in_use

NUM_STEPS = 2


@dataclass(frozen=True)
class Forecast:
    """What a run will take, as far as two steps tell.

    Attributes:
        num_images: Images found.
        num_sizes: Sizes that come out.
        parameters: Of the student, backbone and heads.
        num_steps: Steps of the run.
        seconds_per_step: Time of the second step.
        images_per_second: Speed.
        memory_bytes: The most memory used.
        checkpoint_bytes: Size of one checkpoint.
        disk_bytes: Of all checkpoints that are kept at a time, one more while saving.
        notes: What deserves a second thought.
    """

    num_images: int
    num_sizes: int
    parameters: int
    num_steps: int
    seconds_per_step: float
    images_per_second: float
    memory_bytes: int
    checkpoint_bytes: int
    disk_bytes: int
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The forecast in words."""
        return [
            f"images       {self.num_images:,}",
            f"sizes        {self.num_sizes}",
            f"parameters   {self.parameters / 1e6:.1f} M in the student, backbone and heads",
            f"speed        {self.images_per_second:,.1f} images/s, {self.seconds_per_step:.2f} s a step",
            f"memory       {gigabytes(self.memory_bytes)}",
            f"time         {duration(self.num_steps * self.seconds_per_step)} for {self.num_steps:,} steps",
            f"disk         {gigabytes(self.disk_bytes)} for checkpoints of {gigabytes(self.checkpoint_bytes)}",
            *(f"note         {note}" for note in self.notes),
        ]


def dry_run(config: Config, *, console: Console) -> Forecast:
    """Build everything and train two steps; nothing is written.

    Args:
        config: Settings, complete but for ``out``.
        console: Where to show progress.

    Raises:
        UserError: Settings, images or device are not as they must be.
    """
    device = build.device_of(config)
    index = find_images(config, console)
    parts = assemble(config, index, device=device)
    loader = batches(
        index,
        augmentation=parts.augmentation,
        masking=parts.masking,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=parts.ibot_start,  # with masks, as most of the run will be
        num_steps=NUM_STEPS,
        micro_batches=config.accumulate,
        workers=build.workers_of(config),
    )
    for number, batch in enumerate(loader):
        began = time.monotonic()
        train_step(parts, parts.ibot_start + number, batch)
    seconds = time.monotonic() - began
    student = sum(parameter.numel() for parameter in parts.method.student.parameters())
    checkpoint = 4 * 4 * student  # student, teacher and two moments of AdamW, four bytes each
    return Forecast(
        num_images=len(index),
        num_sizes=len(parts.family.space.sizes),
        parameters=student,
        num_steps=config.epochs * parts.steps_per_epoch,
        seconds_per_step=seconds,
        images_per_second=config.batch_size / seconds,
        memory_bytes=memory_in_use(device),
        checkpoint_bytes=checkpoint,
        disk_bytes=checkpoint * (config.saving.keep_last + 1),
        notes=tuple(build.warnings_of(config, num_images=len(index))),
    )
