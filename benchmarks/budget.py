"""Processor time as a budget: what a step costs, and a run with a schedule made for the budget.

CPU time is that of this process on one thread, and all of it that training takes: loading, augmentation, steps,
checkpoints. Other work on the machine does not lengthen it, so runs can be compared that were not made side by side.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

import poa
from poa.config.pretraining import Config
from poa.config.resolve import of_run, resolve
from poa.data.index import ImageIndex, open_index
from poa.data.sampler import steps_per_epoch
from poa.elastic.space import Size
from poa.errors import UserError
from poa.experiments.runs import steps_done
from poa.models.opening import is_begun
from poa.models.registry import family_of
from poa.models.run import Paths, Run
from poa.pretraining.build import assemble
from poa.pretraining.step import step_batches, train_step

ALONE: Mapping[str, Any] = {"device": "cpu", "devices": 1, "workers": 0}
"""One process does everything, so that its time is all there is."""
PLACES = ("smallest", "middle", "largest")
"""The sizes of a run that are shown."""
TIMED, WARM = 12, 2
"""Steps that are timed, and steps before them."""
NO_LR = 1e-6
"""Learning rate of steps that are only timed, far in a run that has not begun: they should not diverge."""


class StoppedError(UserError):
    """A run was asked to stop and has not come to its end."""


class Spent(NamedTuple):
    """What a training took."""

    epochs: int
    minutes: float
    """Of CPU time."""


def one_thread() -> None:
    """Compute on one thread from here on."""
    torch.set_num_threads(1)


def sizes_of(recipe: str) -> dict[str, Size]:
    """Smallest, middle and largest size."""
    sizes = family_of(resolve(recipe=recipe)).space.sizes
    return dict(zip(PLACES, (sizes[0], sizes[len(sizes) // 2], sizes[-1]), strict=True))


def cpu_seconds(step: Callable[[int], object], *, num_steps: int) -> float:
    """CPU seconds of a step: the mean over some that are spread evenly over a run, since they differ in its course."""
    chosen = [(2 * number + 1) * num_steps // (2 * TIMED) for number in range(TIMED)]
    for number in chosen[:WARM]:
        step(number)
    began = time.process_time()
    for number in chosen:
        step(number)
    return (time.process_time() - began) / TIMED


def epochs_within(minutes: float, *, seconds: float, steps: int) -> int:
    """Passes over the images, of so many steps of so many seconds each, that come nearest to the minutes."""
    return max(1, round(60 * minutes / (seconds * steps)))


def step_seconds(config: Config, index: ImageIndex) -> float:
    """CPU seconds of a step of a run."""
    parts = assemble(config.model_copy(update={"lr": NO_LR}), index, device=torch.device("cpu"))

    def step(number: int) -> None:
        loader = step_batches(
            parts,
            index,
            batch_size=config.batch_size,
            start_step=number,
            num_steps=1,
            micro_batches=config.accumulate,
        )
        train_step(parts, number, next(loader))

    return cpu_seconds(step, num_steps=config.epochs * parts.steps_per_epoch)


def pretrain_within(minutes: float, *, recipe: str, given: Mapping[str, Any]) -> tuple[Run, Spent]:
    """Pre-train for as many epochs as the minutes allow, or go on with it; see :func:`pretrain_for`.

    Args:
        minutes: Of CPU time.
        recipe: Its name.
        given: What is laid over it, with ``data`` and ``out``.
    """
    one_thread()
    folder = Path(given["out"])
    if is_begun(folder):
        return pretrain_for(of_run(Paths(folder).config).epochs, recipe=recipe, given=given)
    return pretrain_for(affordable(minutes, recipe=recipe, given=given), recipe=recipe, given=given)


def affordable(minutes: float, *, recipe: str, given: Mapping[str, Any]) -> int:
    """Epochs that come nearest to so many minutes of CPU time, by what steps cost that are tried."""
    one_thread()
    config = resolve({**given, **ALONE}, recipe=recipe)
    index = open_index(config.data, limit=config.limit)
    steps = steps_per_epoch(len(index), config.batch_size)
    return epochs_within(minutes, seconds=step_seconds(config, index), steps=steps)


def pretrain_for(epochs: int, *, recipe: str, given: Mapping[str, Any]) -> tuple[Run, Spent]:
    """Pre-train for so many epochs, or go on with it.

    Of a run that was interrupted, the CPU time is that of the last steps, in proportion to all; it is kept in the run's
    folder. What a recipe counts in epochs suits the length, as with ``poa pretrain --recipe ... --epochs ...``.

    Args:
        epochs: Of the whole run.
        recipe: Its name.
        given: What is laid over it, with ``data`` and ``out``.

    Raises:
        StoppedError: The user has asked to stop; the same call goes on.
        UserError: A setting is not valid, or the run has diverged.
    """
    one_thread()
    folder = Path(given["out"])
    resume, done, kept = is_begun(folder), steps_done(folder), folder / "minutes.txt"
    quiet = {
        "saving": {"every_epochs": max(1, epochs // 4), "keep_last": 1},
        "monitor": {"every_epochs": epochs, "num_images": 256, "data": None},  # scoring does not count
    }
    began = time.process_time()
    run = poa.pretrain(recipe=recipe, resume=resume, **{**given, **ALONE, **quiet, "epochs": epochs})
    spent = (time.process_time() - began) / 60
    all_steps = epochs * steps_per_epoch(
        len(open_index(run.config.data, limit=run.config.limit)), run.config.batch_size
    )
    if run.step < all_steps:
        raise StoppedError(f"{folder} was stopped before its end. Start the same command again to go on.")
    if run.step > done:
        kept.write_text(f"{spent * all_steps / (all_steps - done):.3f}\n")
    if not kept.exists():
        raise UserError(f"What {folder} took is not known, as it was killed at its end. Delete it and start again.")
    return run, Spent(epochs, float(kept.read_text()))
