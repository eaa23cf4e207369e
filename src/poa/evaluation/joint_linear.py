"""Linear classifiers of frozen features of all widths, trained in one run (SlimCLR, arXiv 2209.15525, Sec. 3)."""

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from poa.config.protocols import JointLinearSettings
from poa.data.sampler import folds_of
from poa.errors import UserError
from poa.evaluation.linear import FOLDS
from poa.evaluation.protocol import (
    Outcome,
    Protocol,
    Rows,
    check_features,
    check_held_out,
    check_labels,
    class_ranks,
    classes_of,
    full_precision,
    means,
    percent,
    top_k,
)
from poa.evaluation.results import size_of

_INITIAL_SPREAD = 0.01
_MOMENTUM = 0.9
"""Without Nesterov's correction."""
_WEIGHT_DECAY = 0.0
"""Of weights and biases; none, as in the official code."""


class Classifier(NamedTuple):
    """A linear classifier of one width."""

    weight: Float[Tensor, "classes width"]
    bias: Float[Tensor, " classes"]


class Classifiers(NamedTuple):
    """One linear classifier for each network."""

    each: tuple[Classifier, ...]

    def logits(self, features: Sequence[Tensor]) -> tuple[Float[Tensor, "images classes"], ...]:
        """Logits of each network from one row an image for each."""
        device = self.each[0].weight.device
        with full_precision(device):
            return tuple(
                F.linear(rows.to(device, torch.float32), *own) for rows, own in zip(features, self.each, strict=True)
            )

    def losses(self, features: Sequence[Tensor], labels: Int[Tensor, " images"]) -> tuple[float, ...]:
        """Mean cross-entropy of each network."""
        return tuple(float(F.cross_entropy(rows, labels.to(rows.device))) for rows in self.logits(features))

    def top1(self, features: Sequence[Tensor], labels: Int[Tensor, " images"]) -> tuple[float, ...]:
        """Accuracy of each network in percent."""
        hits = [rows.argmax(1) == labels.to(rows.device) for rows in self.logits(features)]
        return tuple(100 * float(right.double().mean()) for right in hits)


class JointLinear(JointLinearSettings, Protocol):
    """Linear classifiers of all networks, trained side by side by SGD (SlimCLR, official linear evaluation).

    The loss is summed over networks. The largest is that with the widest features; of equally wide ones that of the
    widest size, then of the deepest. Of networks but the largest, where ``distilled``, half of the cross-entropy is
    against the largest one's probabilities, through which no gradient flows. The learning rate is the one with which
    the largest network does best on a held-out fifth of each class. Features are taken once, without augmentation, and
    standardised; the published learning rates, 0.4 (after MoCo v3 and SimCLR) and 60 (after MoCo v2), are for features
    as they are.
    """

    headline: ClassVar[str] = "top1"
    joint: ClassVar[bool] = True

    @abstractmethod
    def parameters(self, widths: Sequence[int], num_classes: int) -> list[Classifier]:
        """Fresh classifiers that are trained, on the CPU; ``widths`` of the features, the largest first."""

    def views(self, trained: Sequence[Classifier], widths: Sequence[int]) -> list[Classifier]:  # noqa: ARG002
        """The classifier of each network, made of those that are trained."""
        return list(trained)

    def resolved(self, train_labels: Int[Tensor, " train"], test_labels: Int[Tensor, " test"]) -> "JointLinear":  # noqa: ARG002
        """With ascending learning rates, and images to choose one by."""
        _, labels = classes_of(train_labels)
        if len(self.learning_rates) > 1:
            check_held_out(labels, what="learning rate")
        return self.changed(learning_rates=tuple(sorted(set(self.learning_rates))))

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
        names = sorted(rows, key=lambda name: _largeness(name, rows[name][0]), reverse=True)
        labels, wanted = (part.labels for part in rows[names[0]])
        for name in names:
            for part, which in zip(rows[name], ("training", "test"), strict=True):
                check_features(part.features, name=f"{which} ({name})" if name else which)
        pairs = [self._scaled(rows[name][0].features, rows[name][1].features, device) for name in names]
        train, test = [list(part) for part in zip(*pairs, strict=True)]
        lr = self._choose(train, labels, num_classes=num_classes)
        fitted = self.fit(train, labels, lr=lr, num_classes=num_classes)
        outcomes = {}
        for name, logits, loss in zip(names, fitted.logits(test), fitted.losses(train, labels), strict=True):
            ranks = class_ranks(logits, wanted.to(device)).cpu()
            values = {top: percent(hits) for top, hits in top_k(ranks).items()}
            outcomes[name] = Outcome(means(values), values, {"lr": lr, "training_loss": loss})
        return outcomes

    def _scaled(
        self, train: Float[Tensor, "train width"], test: Float[Tensor, "test width"], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        train, test = train.to(device, torch.float32), test.to(device, torch.float32)
        if not self.standardise:
            return train, test
        mean, spread = train.mean(0), train.std(0, correction=0)  # in float32, unlike column_statistics
        spread = torch.where(spread > 0, spread, 1.0)
        return (train - mean) / spread, (test - mean) / spread

    def _choose(self, features: Sequence[Tensor], labels: Int[Tensor, " images"], *, num_classes: int) -> float:
        """The learning rate with the most hits of the largest network on held-out images; the lowest of equals."""
        if len(self.learning_rates) == 1:
            return self.learning_rates[0]
        held = folds_of(classes_of(labels)[1], seed=self.seed, num_folds=FOLDS) == 0
        parts = [rows[~held.to(rows.device)] for rows in features]
        others = [rows[held.to(rows.device)] for rows in features]
        hits = {}
        for lr in self.learning_rates:
            fitted = self.fit(parts, labels[~held], lr=lr, num_classes=num_classes)
            hits[lr] = fitted.top1(others, labels[held])[0]
        return max(self.learning_rates, key=lambda lr: (hits[lr], -lr))

    def fit(
        self, features: Sequence[Tensor], labels: Int[Tensor, " images"], *, lr: float, num_classes: int
    ) -> Classifiers:
        """Train the classifiers on the features as they are.

        Args:
            features: One row an image for each network, the largest first; the same images in the same order. Float32
                copies of all of them are held on the device of the first.
            labels: One class an image, from 0 to ``num_classes - 1``.
            lr: Learning rate at the start.
            num_classes: Number of classes.

        Raises:
            UserError: The features or labels cannot be used.
        """
        _check(features, labels, num_classes=num_classes)
        device, widths = features[0].device, [rows.shape[1] for rows in features]
        rows, targets = [each.to(device, torch.float32) for each in features], labels.to(device, torch.int64)
        trained = [
            Classifier(*(tensor.to(device).requires_grad_() for tensor in each))
            for each in self.parameters(widths, num_classes)
        ]
        leaves = [tensor for each in trained for tensor in each]
        optimizer = torch.optim.SGD(leaves, lr=lr, momentum=_MOMENTUM, weight_decay=_WEIGHT_DECAY)
        order = torch.Generator().manual_seed(self.seed)
        steps = -(-len(labels) // self.batch_size)
        with full_precision(device):
            for epoch in range(self.epochs):
                shuffled = torch.randperm(len(labels), generator=order, device="cpu").to(device)
                for step, batch in enumerate(torch.split(shuffled, self.batch_size)):
                    optimizer.param_groups[0]["lr"] = lr * self.decay((epoch + step / steps) / self.epochs)
                    optimizer.zero_grad()
                    views = self.views(trained, widths)
                    logits = [F.linear(each[batch], *own) for each, own in zip(rows, views, strict=True)]
                    _loss(logits, targets[batch], distilled=self.distilled).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
        views = self.views(trained, widths)
        return Classifiers(tuple(Classifier(*(tensor.detach().clone() for tensor in each)) for each in views))

    def decay(self, progress: float) -> float:
        """Share of the learning rate that is left after this share of the training, below 1."""
        if self.schedule == "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        return float(0.1 ** sum(progress >= share for share in (0.6, 0.8)))


class Switchable(JointLinear):
    """A classifier for each network."""

    name: ClassVar[str] = "linear-switchable"

    def parameters(self, widths: Sequence[int], num_classes: int) -> list[Classifier]:
        """One for each width."""
        return [_fresh(width, num_classes, seed=self.seed + place) for place, width in enumerate(widths)]


class Slimmable(JointLinear):
    """One classifier for all widths: a width reads the first columns of the weight, and all share the bias.

    ``Switchable`` can only fit better: what is best for one width is among what it can be.
    """

    name: ClassVar[str] = "linear-slimmable"

    def parameters(self, widths: Sequence[int], num_classes: int) -> list[Classifier]:
        """That of the full width."""
        if max(widths) > widths[0]:
            raise UserError(
                f"A slimmable classifier reads its first columns for narrow widths, but features have widths "
                f"{', '.join(map(str, widths))}. Put those of the full width first."
            )
        return [_fresh(widths[0], num_classes, seed=self.seed)]

    def views(self, trained: Sequence[Classifier], widths: Sequence[int]) -> list[Classifier]:
        """Its first columns."""
        (full,) = trained
        return [Classifier(full.weight[:, :width], full.bias) for width in widths]


def _largeness(name: str, rows: Rows) -> tuple[int, ...]:
    """Sorts networks by the width of their features, then by the width and the depth of the sizes they are named after.

    Features of many sizes are equally wide: those of all depths of a ViT, and all those of a ResNet.
    """
    size = size_of(name)
    return (rows.features.shape[1], *((size.width, sum(size.depths), *size.depths) if size else ()))


def _fresh(width: int, num_classes: int, *, seed: int) -> Classifier:
    weight = torch.randn(num_classes, width, generator=torch.Generator().manual_seed(seed), device="cpu")
    return Classifier(_INITIAL_SPREAD * weight, torch.zeros(num_classes, device="cpu"))


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
