"""What all trainings with labels, boxes or masks share: epochs, going on after a stop, one network after the other."""

import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import nn

from poa import distributed
from poa.config.detection import Detection
from poa.config.segmentation import Segmentation
from poa.errors import UserError
from poa.evaluation.protocol import Outcome
from poa.evaluation.results import ResultFiles

Save = Callable[[int, dict[str, Any]], None]
"""Takes the number of epochs done and a state to go on from."""
Advance = Callable[[int, str], None]
"""Takes how many images were trained on, and a note for the user."""


class Diverged(UserError):  # noqa: N818  # named like the thing
    """The training loss is infinite or not a number."""


@runtime_checkable
class Batch(Protocol):
    """The images of a step."""

    @property
    def num_images(self) -> int:
        """How many there are."""

    @property
    def bad(self) -> tuple[int, ...]:
        """Numbers of images that could not be read; others stand in for them."""


B = TypeVar("B", bound=Batch)


class Training(ABC, Generic[B]):
    """A network that is being trained, and all that a step changes."""

    @abstractmethod
    def step(self, step: int, batch: B) -> float:
        """Train on one batch.

        Args:
            step: Number of the step, from 0.
            batch: Its images.

        Returns:
            The loss.

        Raises:
            Diverged: The loss is not finite.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that must be saved to go on."""

    @abstractmethod
    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` gave.

        Args:
            state: Of a training with the same settings.
        """


class Reached(NamedTuple):
    """How far a training has come.

    Attributes:
        epoch: Epochs done.
        loss: Mean loss of the last one.
        bad: Numbers of images that could not be read.
    """

    epoch: int = 0
    loss: float = 0.0
    bad: tuple[int, ...] = ()


def train_epochs(
    training: Training[B],
    batches: Callable[..., Iterator[B]],
    *,
    epochs: int,
    steps: int,
    start: Mapping[str, Any] | None = None,
    save: Save | None = None,
    advance: Advance | None = None,
) -> Reached:
    """Train the epochs that are left.

    Args:
        training: What is trained; takes over the state to go on from.
        batches: Those of some steps, given as ``start_step`` and ``num_steps``.
        epochs: Of the whole training.
        steps: Of an epoch.
        start: A state to go on from, as ``save`` was given it.
        save: Called after each epoch.
        advance: Told of images that were trained on, with the loss and the share of the time spent waiting for data.

    Raises:
        Diverged: The loss is not finite.
    """
    reached = Reached()
    if start is not None:
        training.load(start["training"])
        reached = Reached(start["epoch"], start["loss"], tuple(start["bad"]))
    following = _Timed(batches(start_step=reached.epoch * steps, num_steps=(epochs - reached.epoch) * steps))
    for epoch in range(reached.epoch, epochs):
        total, bad = 0.0, set(reached.bad)
        for step in range(epoch * steps, (epoch + 1) * steps):
            batch = next(following)
            loss = training.step(step, batch)
            total += loss
            bad.update(batch.bad)
            if advance is not None:
                advance(batch.num_images, f"loss {loss:.3f}  data-wait {following.share:.0%}")
        reached = Reached(epoch + 1, total / steps, tuple(sorted(bad)))
        if save is not None:
            save(reached.epoch, {**reached._asdict(), "bad": list(reached.bad), "training": training.state()})
    return reached


class _Timed(Iterator[B]):
    """Batches, and the share of the time that was spent waiting for them, since the first one."""

    def __init__(self, batches: Iterator[B]) -> None:
        self._batches = batches
        self._begun: float | None = None
        self._waited = 0.0

    def __next__(self) -> B:
        asked = time.monotonic()
        batch = next(self._batches)
        came = time.monotonic()
        if self._begun is None:
            self._begun = came
        else:
            self._waited += came - asked
        return batch

    @property
    def share(self) -> float:
        spent = 0.0 if self._begun is None else time.monotonic() - self._begun
        return self._waited / spent if spent else 0.0


def train_share(
    files: ResultFiles, networks: Sequence[str], train: Callable[[str, Path], tuple[Outcome, Mapping[str, int]]]
) -> None:
    """Train this process's share of networks and write their scores down, those that have scores left out.

    Args:
        files: Where scores are.
        networks: Names of all networks.
        train: Trains and tests a network, given the folder of its checkpoints, which is removed when all is written;
            gives its scores, and how many images of each kind could not be read.
    """
    for each in networks[distributed.rank() :: distributed.world_size()]:
        if each in files.known.scores:
            continue
        work = files.work / each
        try:
            outcome, bad_images = train(each, work)
        except Diverged as error:  # else the checkpoint is worth keeping, and all trainings end
            files.fail(each, str(error))
            continue
        files.add(each, outcome, bad_images=bad_images)
        shutil.rmtree(work, ignore_errors=True)


def adamw(backbone: nn.Module, new: Sequence[nn.Module], settings: Segmentation | Detection) -> torch.optim.Optimizer:
    """AdamW; the backbone's layers learn the more slowly the earlier they come, or not at all where it is frozen.

    Args:
        backbone: A timm model.
        new: All else that is trained.
        settings: With learning rate, its decay from layer to layer, and weight decay.
    """
    options: dict[str, Any] = {"opt": "adamw", "lr": settings.lr, "weight_decay": settings.weight_decay}
    groups = [group for part in new for group in param_groups_weight_decay(part, settings.weight_decay)]
    groups = [group for group in groups if group["params"]]
    if settings.frozen:
        frozen: torch.optim.Optimizer = create_optimizer_v2(groups, **options)
        return frozen
    decay = {"layer_decay": settings.layer_decay} if settings.layer_decay < 1 else {}
    optimizer: torch.optim.Optimizer = create_optimizer_v2(backbone, **options, **decay)
    for group in groups:
        optimizer.add_param_group(group)
    return optimizer
