"""Linear classifiers of frozen features of all widths, trained in one run (SlimCLR, arXiv 2209.15525, Sec. 3)."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from poa.errors import UserError
from poa.evaluation.linear import FOLDS, classes_of, folds_of
from poa.evaluation.protocol import (
    Outcome,
    Protocol,
    Rows,
    check_features,
    check_labels,
    class_ranks,
    full_precision,
    percent,
)

_INITIAL_SPREAD = 0.01


class _Classifier(NamedTuple):
    weight: Float[Tensor, "classes width"]
    bias: Float[Tensor, " classes"]


@dataclass(frozen=True, slots=True)
class ProbeTraining:
    """How the classifiers are trained: SGD, with the official code's settings after MoCo v3 as usual ones.

    Attributes:
        lr: Learning rate at the start; 60 after MoCo v2, 0.4 after MoCo v3 and SimCLR.
        schedule: ``cosine`` falls to 0 step by step; ``steps`` divides by 10 after 60 % and 80 % of the epochs.
        epochs: Passes over the images.
        batch_size: Images a step; the last batch of an epoch may be smaller.
        momentum: Without Nesterov's correction.
        weight_decay: Of weights and biases.
        seed: Of initial weights and of the order of images.
    """

    lr: float = 0.4
    schedule: Literal["cosine", "steps"] = "cosine"
    epochs: int = 90
    batch_size: int = 1024
    momentum: float = 0.9
    weight_decay: float = 0.0
    seed: int = 0

    def lr_at(self, progress: float) -> float:
        """Learning rate.

        Args:
            progress: Share of the run that is over, below 1.
        """
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * progress)) / 2
        return self.lr * 0.1 ** sum(progress >= share for share in (0.6, 0.8))


@dataclass(frozen=True, slots=True)
class WidthClassifiers:
    """One linear classifier for each width.

    Attributes:
        weights: Of each width.
        biases: Of each width.
    """

    weights: tuple[Float[Tensor, "classes _"], ...]
    biases: tuple[Float[Tensor, " classes"], ...]

    def logits(self, features: Sequence[Tensor]) -> tuple[Float[Tensor, "images classes"], ...]:
        """Logits of each width.

        Args:
            features: One row an image, for each width.
        """
        device = self.weights[0].device
        with full_precision(device):
            return tuple(
                F.linear(rows.to(device, torch.float32), weight, bias)
                for rows, weight, bias in zip(features, self.weights, self.biases, strict=True)
            )

    def losses(self, features: Sequence[Tensor], labels: Int[Tensor, " images"]) -> tuple[float, ...]:
        """Mean cross-entropy of each width.

        Args:
            features: One row an image, for each width.
            labels: One class an image.
        """
        return tuple(float(F.cross_entropy(rows, labels.to(rows.device))) for rows in self.logits(features))

    def top1(self, features: Sequence[Tensor], labels: Int[Tensor, " images"]) -> tuple[float, ...]:
        """Accuracy of each width in percent.

        Args:
            features: One row an image, for each width.
            labels: One class an image.
        """
        hits = [rows.argmax(1) == labels.to(rows.device) for rows in self.logits(features)]
        return tuple(100 * float(right.double().mean()) for right in hits)


def switchable_probe(
    features: Sequence[Tensor],
    labels: Int[Tensor, " images"],
    *,
    num_classes: int,
    training: ProbeTraining,
    distilled: bool = True,
    device: torch.device | None = None,
) -> WidthClassifiers:
    """A classifier of its own for each width, all trained side by side.

    The loss is the sum over widths of the cross-entropy; of widths but the first, where ``distilled``, half of it is
    against the first width's probabilities, through which no gradient flows. The features are taken as they are.

    Args:
        features: One row an image for each width, the full width first; the same images in the same order.
        labels: One class an image, from 0 to ``num_classes - 1``.
        num_classes: Number of classes.
        training: How to train.
        distilled: Whether narrow widths learn from the full one as well.
        device: Where to compute; that of the first features if None. It holds float32 copies of all of them.

    Raises:
        UserError: The features or labels cannot be used.
    """
    _check(features, labels, num_classes=num_classes)
    device = features[0].device if device is None else device
    own = [_fresh(rows.shape[1], num_classes, place=place, seed=training.seed) for place, rows in enumerate(features)]
    classifiers = [_Classifier(*(tensor.to(device).requires_grad_() for tensor in each)) for each in own]
    leaves = [tensor for each in classifiers for tensor in each]
    return _train(lambda: classifiers, leaves, features, labels, training=training, distilled=distilled)


def slimmable_probe(
    features: Sequence[Tensor],
    labels: Int[Tensor, " images"],
    *,
    num_classes: int,
    training: ProbeTraining,
    distilled: bool = True,
    device: torch.device | None = None,
) -> WidthClassifiers:
    """One classifier for all widths: a width reads the first columns of the weight, and all share the bias.

    Trained as ``switchable_probe``, which can only fit better: what is best for one width is among what it can be.

    Args:
        features: One row an image for each width, the full width, which is the largest, first.
        labels: One class an image, from 0 to ``num_classes - 1``.
        num_classes: Number of classes.
        training: How to train.
        distilled: Whether narrow widths learn from the full one as well.
        device: Where to compute; that of the first features if None. It holds float32 copies of all of them.

    Raises:
        UserError: The features or labels cannot be used.
    """
    _check(features, labels, num_classes=num_classes)
    widths = [rows.shape[1] for rows in features]
    if max(widths) > widths[0]:
        raise UserError(
            f"A slimmable classifier reads its first columns for narrow widths, but features have widths "
            f"{', '.join(map(str, widths))}. Put those of the full width first."
        )
    device = features[0].device if device is None else device
    full = _fresh(widths[0], num_classes, place=0, seed=training.seed)
    weight, bias = (tensor.to(device).requires_grad_() for tensor in full)
    return _train(
        lambda: [_Classifier(weight[:, :width], bias) for width in widths],
        [weight, bias],
        features,
        labels,
        training=training,
        distilled=distilled,
    )


def _fresh(width: int, num_classes: int, *, place: int, seed: int) -> _Classifier:
    generator = torch.Generator().manual_seed(seed + place)
    weight = torch.randn(num_classes, width, generator=generator, device="cpu")
    return _Classifier(_INITIAL_SPREAD * weight, torch.zeros(num_classes, device="cpu"))


def _train(
    classifiers: Callable[[], Sequence[_Classifier]],
    leaves: Sequence[Tensor],
    features: Sequence[Tensor],
    labels: Int[Tensor, " images"],
    *,
    training: ProbeTraining,
    distilled: bool,
) -> WidthClassifiers:
    device = leaves[0].device
    rows, targets = [each.to(device, torch.float32) for each in features], labels.to(device, torch.int64)
    optimizer = torch.optim.SGD(leaves, lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay)
    order = torch.Generator().manual_seed(training.seed)
    steps = -(-len(labels) // training.batch_size)
    with full_precision(device):
        for epoch in range(training.epochs):
            shuffled = torch.randperm(len(labels), generator=order, device="cpu").to(device)
            for step, batch in enumerate(torch.split(shuffled, training.batch_size)):
                optimizer.param_groups[0]["lr"] = training.lr_at((epoch + step / steps) / training.epochs)
                optimizer.zero_grad()
                logits = [F.linear(each[batch], *own) for each, own in zip(rows, classifiers(), strict=True)]
                _loss(logits, targets[batch], distilled=distilled).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    found = [_Classifier(*(tensor.detach().clone() for tensor in each)) for each in classifiers()]
    return WidthClassifiers(tuple(each.weight for each in found), tuple(each.bias for each in found))


def _loss(
    logits: Sequence[Float[Tensor, "batch classes"]], labels: Int[Tensor, " batch"], *, distilled: bool
) -> Float[Tensor, ""]:
    total = F.cross_entropy(logits[0], labels)
    teacher = logits[0].detach().softmax(1)
    for narrow in logits[1:]:
        loss = F.cross_entropy(narrow, labels)
        total = total + ((loss + F.cross_entropy(narrow, teacher)) / 2 if distilled else loss)
    return total


def _check(features: Sequence[Tensor], labels: Int[Tensor, " images"], *, num_classes: int) -> None:
    if not features:
        raise UserError("There are no features to classify. Give those of at least one width.")
    for place, rows in enumerate(features):
        name = "training" if len(features) == 1 else f"training (width {place + 1} of {len(features)})"
        check_features(rows, name=name)
        check_labels(rows, labels, name=name, num_classes=num_classes)


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
