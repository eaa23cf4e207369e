"""Linear classification of all widths in one run, with a classifier for each or one that all share (SlimCLR)."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from poa.errors import UserError
from poa.evaluation.linear import FOLDS, classes_of, folds_of
from poa.evaluation.protocols import Outcome, Protocol, Rows, percent
from poa.evaluation.rows import check_features, class_ranks
from poa.evaluation.switchable import ProbeTraining, WidthClassifiers, slimmable_probe, switchable_probe

LEARNING_RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
"""To choose from, for standardised features. (Published: 0.4 or 60, for features as they are.)"""


@dataclass(frozen=True)
class WidthProbe(Protocol):
    """Linear classifiers of all networks, trained side by side by SGD (SlimCLR, official linear evaluation).

    The loss is summed over networks; smaller ones also learn from the largest. The learning rate is the one with which
    the largest network does best on a held-out fifth of each class. Features are taken once, without augmentation.

    Attributes:
        learning_rates: To choose from; a single one is taken as it is.
        schedule: ``cosine``, or ``steps`` (published after MoCo v2), as in ``ProbeTraining``.
        epochs: Passes over the images.
        batch_size: Images a step.
        distilled: Whether smaller networks learn from the largest.
        standardise: Scale each feature to mean 0 and deviation 1 over the training images.
        seed: Of the choice of held-out images, of initial weights and of the order of images.
    """

    learning_rates: tuple[float, ...] = LEARNING_RATES
    schedule: Literal["cosine", "steps"] = "cosine"
    epochs: int = 90
    batch_size: int = 256
    distilled: bool = True
    standardise: bool = True
    seed: int = 0

    headline: ClassVar[str] = "top1"
    joint: ClassVar[bool] = True

    @abstractmethod
    def fit(
        self, features: Sequence[Tensor], labels: Int[Tensor, " images"], training: ProbeTraining, *, num_classes: int
    ) -> WidthClassifiers:
        """Train the classifiers.

        Args:
            features: One row an image for each network, the largest first.
            labels: One class an image.
            training: How.
            num_classes: Number of classes.
        """

    def settled(self, train_labels: Int[Tensor, " train"], test_labels: Int[Tensor, " test"]) -> "WidthProbe":  # noqa: ARG002
        """The same, once there are learning rates, and images to choose one by."""
        if not self.learning_rates or not all(0 < lr < float("inf") for lr in self.learning_rates):
            given = ", ".join(map(str, self.learning_rates)) or "none"
            raise UserError(f"Learning rates are numbers above 0, got {given}. Usual ones are 0.0003 to 0.1.")
        if min(self.epochs, self.batch_size) < 1:
            raise UserError(
                f"Classifiers need at least one epoch and one image a step, got {self.epochs} and {self.batch_size}."
            )
        _, labels = classes_of(train_labels)
        if len(self.learning_rates) > 1 and int(labels.bincount().max()) < 2:
            raise UserError(
                "Every class has a single training image, so that none can be held out to choose a learning rate by. "
                "Give one learning rate, or more images a class."
            )
        return replace(self, learning_rates=tuple(sorted(set(self.learning_rates))))

    def __call__(self, train: Rows, test: Rows, *, num_classes: int, device: torch.device) -> Outcome:
        """Accuracy of one network by itself."""
        return self._together({"": (train, test)}, num_classes=num_classes, device=device)[""]

    def outcomes(
        self, rows: Mapping[str, tuple[Rows, Rows]], *, num_classes: int, device: torch.device
    ) -> Iterator[tuple[str, Outcome | UserError]]:
        """All networks, or why none can be scored: they are trained together."""
        try:
            found: Mapping[str, Outcome | UserError] = self._together(rows, num_classes=num_classes, device=device)
        except UserError as error:
            found = dict.fromkeys(rows, error)
        yield from found.items()

    def _together(
        self, rows: Mapping[str, tuple[Rows, Rows]], *, num_classes: int, device: torch.device
    ) -> dict[str, Outcome]:
        names = sorted(rows, key=lambda name: rows[name][0].features.shape[1], reverse=True)
        labels, wanted = (part.labels for part in rows[names[0]])
        for name in names:
            for part, which in zip(rows[name], ("training", "test"), strict=True):
                check_features(part.features, name=f"{which} ({name})" if name else which)
        pairs = [self._scaled(rows[name][0].features, rows[name][1].features, device) for name in names]
        train, test = [list(part) for part in zip(*pairs, strict=True)]
        lr = self._choose(train, labels, num_classes=num_classes)
        fitted = self.fit(train, labels, self._training(lr), num_classes=num_classes)
        losses = fitted.losses(train, labels)
        outcomes = {}
        for name, logits, loss in zip(names, fitted.logits(test), losses, strict=True):
            ranks = class_ranks(logits, wanted.to(device)).cpu()
            values = {f"top{places}": percent(ranks < places) for places in (1, 5)}
            scores = {top: float(hits.mean()) for top, hits in values.items()}
            outcomes[name] = Outcome(scores, values, {"lr": lr, "training_loss": loss})
        return outcomes

    def _training(self, lr: float) -> ProbeTraining:
        return ProbeTraining(lr, self.schedule, self.epochs, self.batch_size, seed=self.seed)

    def _scaled(
        self, train: Float[Tensor, "train width"], test: Float[Tensor, "test width"], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        train, test = train.to(device, torch.float32), test.to(device, torch.float32)
        if not self.standardise:
            return train, test
        mean, spread = train.mean(0), train.std(0, correction=0)
        spread = torch.where(spread > 0, spread, 1.0)
        return (train - mean) / spread, (test - mean) / spread

    def _choose(self, features: Sequence[Tensor], labels: Int[Tensor, " images"], *, num_classes: int) -> float:
        """The learning rate with the most hits of the largest network on held-out images; the lowest of equals."""
        if len(self.learning_rates) == 1:
            return self.learning_rates[0]
        held: Bool[Tensor, " images"] = folds_of(classes_of(labels)[1], seed=self.seed, num_folds=FOLDS) == 0
        parts = [rows[~held.to(rows.device)] for rows in features]
        others = [rows[held.to(rows.device)] for rows in features]
        hits = {}
        for lr in self.learning_rates:
            fitted = self.fit(parts, labels[~held], self._training(lr), num_classes=num_classes)
            hits[lr] = fitted.top1(others, labels[held])[0]
        return max(self.learning_rates, key=lambda lr: (hits[lr], -lr))


@dataclass(frozen=True)
class Switchable(WidthProbe):
    """A classifier for each network; see ``switchable_probe``."""

    name: ClassVar[str] = "linear-switchable"

    def fit(
        self, features: Sequence[Tensor], labels: Int[Tensor, " images"], training: ProbeTraining, *, num_classes: int
    ) -> WidthClassifiers:
        """Train the classifiers, each its own."""
        return switchable_probe(features, labels, num_classes=num_classes, training=training, distilled=self.distilled)


@dataclass(frozen=True)
class Slimmable(WidthProbe):
    """One classifier, of which a narrow network reads the first columns; see ``slimmable_probe``."""

    name: ClassVar[str] = "linear-slimmable"

    def fit(
        self, features: Sequence[Tensor], labels: Int[Tensor, " images"], training: ProbeTraining, *, num_classes: int
    ) -> WidthClassifiers:
        """Train the one classifier at all widths."""
        return slimmable_probe(features, labels, num_classes=num_classes, training=training, distilled=self.distilled)
