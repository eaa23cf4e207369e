"""What supervised trainings share: epochs, resuming after a stop, and a task that networks are trained for."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from rich.console import Console
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import nn

from poa.config.detection import Detection
from poa.config.segmentation import Segmentation
from poa.errors import UserError
from poa.evaluation.protocol import Outcome
from poa.evaluation.results import results_file
from poa.evaluation.sweep import Scorer, SweepOptions
from poa.export.card import Evaluation, Origin, put_scores
from poa.features.extract import Progress
from poa.models.origin import how_scored, in_words, places
from poa.models.source import ModelSource
from poa.text import plain_console
from poa.training.checkpoint import saver, unfinished
from poa.training.health import NonFinite
from poa.training.progress import bar

Save = Callable[[int, dict[str, Any]], None]
"""Takes the number of epochs done and a state to resume from."""
Advance = Callable[[int, str], None]
"""Takes how many images were trained on, and a note for the user."""


class Diverged(NonFinite):
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
        """The loss of training on one batch; ``Diverged`` if it is not finite. Steps count from 0."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that must be saved to resume."""

    @abstractmethod
    def load(self, state: Mapping[str, Any]) -> None:
        """Resume from what ``state`` gave in a training with the same settings."""


class EpochSummary(NamedTuple):
    """Epochs done, the mean loss of the last one, and the numbers of images that could not be read in any."""

    epoch: int = 0
    loss: float = 0.0
    bad: tuple[int, ...] = ()


class Hooks(NamedTuple):
    """What a training resumes from and tells.

    Attributes:
        start: A state to resume from, as ``save`` was given it.
        save: Called after each epoch.
        advance: Called after each step, with the loss and the share of the time spent waiting for data.
    """

    start: Mapping[str, Any] | None = None
    save: Save | None = None
    advance: Advance | None = None


NO_HOOKS = Hooks()


def train_epochs(
    training: Training[B], batches: Callable[..., Iterator[B]], *, epochs: int, steps: int, hooks: Hooks = NO_HOOKS
) -> EpochSummary:
    """Train the epochs that are left, of ``steps`` each; ``batches`` takes a ``start_step`` and ``num_steps``."""
    done = EpochSummary()
    if hooks.start is not None:
        training.load(hooks.start["training"])
        done = EpochSummary(hooks.start["epoch"], hooks.start["loss"], tuple(hooks.start["bad"]))
    following = _timed(batches(start_step=done.epoch * steps, num_steps=(epochs - done.epoch) * steps))
    for epoch in range(done.epoch, epochs):
        total, bad = 0.0, set(done.bad)
        for step in range(epoch * steps, (epoch + 1) * steps):
            batch, wait = next(following)
            loss = training.step(step, batch)
            total += loss
            bad.update(batch.bad)
            if hooks.advance is not None:
                hooks.advance(batch.num_images, f"loss {loss:.3f}  data-wait {wait:.0%}")
        done = EpochSummary(epoch + 1, total / steps, tuple(sorted(bad)))
        if hooks.save is not None:
            hooks.save(done.epoch, {**done._asdict(), "bad": list(done.bad), "training": training.state()})
    return done


def _timed(batches: Iterator[B]) -> Iterator[tuple[B, float]]:
    """Batches, each with the share of the time since the first one came that was spent waiting for them."""
    begun, waited, asked = None, 0.0, 0.0
    for batch in batches:
        came = time.monotonic()
        if begun is None:
            begun = came
        else:
            waited += came - asked
        yield batch, waited / (came - begun) if waited else 0.0
        asked = time.monotonic()


@dataclass(frozen=True)
class Task(Scorer):
    """A task that networks are trained for, and tested after the last epoch; a subclass says how.

    Attributes:
        source: Whose networks.
        options: Of the sweep over them.
        save_every: Epochs from one checkpoint to the next.
    """

    source: ModelSource
    options: SweepOptions
    save_every: int

    done = "trained"

    @abstractmethod
    def evaluate(self, name: str, work: Path) -> Outcome:
        """Train a network, with checkpoints in ``work``, and test it; write the model and what else there is."""

    def score(self, names: Sequence[str], work: Path, progress: Progress) -> Iterator[tuple[str, Outcome | UserError]]:  # noqa: ARG002
        """Train and test networks; the training of some may diverge."""
        for name in names:
            try:
                outcome: Outcome | UserError = self.told(name, self.evaluate(name, work))
            except NonFinite as error:  # after other errors the checkpoint is worth keeping, and all trainings end
                outcome = error
            yield name, outcome

    @property
    def of_the_others(self) -> str:
        """Without a test there are no scores."""
        return super().of_the_others if "test" in self.identities else "The models were trained on the others."

    @property
    def folder(self) -> Path:
        """Of all results."""
        return results_file(self.source, self.name, self.options.name).parent

    @property
    def console(self) -> Console:
        """Where to show progress."""
        return self.options.console or plain_console(stderr=True)

    @property
    def origin(self) -> Origin:
        """Where the networks come from and what they were trained on, for model cards."""
        before, identity = self.source.origin(), self.identities["train"]
        pretraining = {f"pre-training: {what}": text for what, text in before.facts.items()}
        trained = {"trained on": f"{places(identity.source)}, {identity.text}", "settings": in_words(self.choices)}
        return replace(before, facts={**pretraining, **trained})

    def told(self, name: str, outcome: Outcome) -> Outcome:
        """The same scores, once they are on the card of the model."""
        sources = {what: identity.source for what, identity in self.identities.items()}
        texts = {what: identity.text for what, identity in self.identities.items()}
        if outcome.scores:
            how = how_scored(texts, sources)
            put_scores(self.folder / "models" / name, Evaluation(self.name, how, outcome.scores, outcome.intervals()))
        return outcome

    @contextmanager
    def hooks(self, name: str, work: Path, *, epochs: int, images: int) -> Iterator[Hooks]:
        """Checkpoints of a training of ``images`` an epoch in ``work``, and a bar of those that are left."""
        settings = json.loads(json.dumps(self.settings))
        start = unfinished(work, settings=settings, what="training")
        left = epochs - (0 if start is None else start["epoch"])
        with bar(f"{name} images", total=left * images, console=self.console) as advance:
            yield Hooks(start, saver(work, settings=settings, every=self.save_every, last=epochs), advance)


def adamw(backbone: nn.Module, new: Sequence[nn.Module], settings: Segmentation | Detection) -> torch.optim.Optimizer:
    """AdamW; the layers of a timm backbone learn the more slowly the earlier they come, or not at all if frozen."""
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
