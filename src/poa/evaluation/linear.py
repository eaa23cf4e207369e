"""Linear classification of frozen features by logistic regression."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from poa.errors import UserError
from poa.evaluation.logistic import LogisticFit, fit_logistic
from poa.evaluation.protocol import Outcome, Protocol, Rows, check_features, check_labels, check_widths, percent

FOLDS = 5
_LOGITS = 2**24  # held at once when images are classified
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LinearResult:
    """Accuracy in percent of one classifier.

    Attributes:
        top1: Share of test images whose class comes first.
        top5: Share of test images whose class is among the first five.
        strength: Of the penalty, as ``logistic.py`` defines it.
        ranks: Place of each test image's class from 0, on the CPU.
    """

    top1: float
    top5: float
    strength: float
    ranks: Int[Tensor, " test"]

    @property
    def correct(self) -> Bool[Tensor, " test"]:
        """Whether each test image's class comes first."""
        return self.ranks < 1

    def scores(self) -> dict[str, float]:
        """The numbers as one flat mapping: ``top1``, ``top5``, ``strength``."""
        return {"top1": self.top1, "top5": self.top5, "strength": self.strength}


def usual_strengths(num_classes: int) -> tuple[float, ...]:
    """Strengths from ``0.001 / num_classes`` to ``100 / num_classes``, two a decade.

    With all classes equally likely the loss curves by about ``1 / num_classes`` along each weight, so that these are
    the strengths at which the penalty matters, whatever the number of images or classes.

    Args:
        num_classes: Number of classes with training images.
    """
    return tuple(10 ** (exponent / 2) / num_classes for exponent in range(-6, 5))


def default_strength(num_classes: int) -> float:
    """What is taken where no image can be spared to choose a strength: ``1 / num_classes``.

    Args:
        num_classes: Number of classes with training images.
    """
    return 1 / num_classes


def linear_scores(
    train_features: Float[Tensor, "train width"],
    train_labels: Int[Tensor, " labels"],
    test_features: Float[Tensor, "test test_width"],
    test_labels: Int[Tensor, " test_labels"],
    *,
    num_classes: int,
    strengths: Sequence[float] | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> LinearResult:
    """Logistic regression on standardised features, with the strength of its penalty chosen on held-out images.

    A fifth of each class's training images (rounded up; none of a class with one image) is held out, the strength with
    the most hits on them is taken, the smallest of equally good ones, and a classifier is fitted to all training
    images. The test images have no part in this. Equal logits are decided by class number.

    Args:
        train_features: One row a training image.
        train_labels: Classes from 0 to ``num_classes - 1``.
        test_features: One row a test image.
        test_labels: As ``train_labels``; images of a class without training images count as wrong.
        num_classes: Number of classes.
        strengths: To choose from; None for ``usual_strengths``. A single one is taken as it is.
        seed: Of the choice of held-out images.
        device: Where to compute; that of the training features if None. It holds up to two float32 copies of them.

    Raises:
        UserError: The features, the labels or the strengths cannot be used.
    """
    data = checked(train_features, train_labels, test_features, test_labels, num_classes=num_classes, device=device)
    strengths = check_strengths(strengths, data.num_classes)
    _check_choice(data.labels, strengths)
    folds = folds_of(data.labels, seed=seed, num_folds=FOLDS)
    return fit_and_test(data, [folds == 0], strengths)


@dataclass(frozen=True, slots=True)
class Data:
    """Checked features; classes are numbered anew so that each has training images.

    Attributes:
        labels: Of the training images, on the CPU.
        test_labels: -1 for a class without training images.
        classes: Old number of each class.
    """

    features: Float[Tensor, "train width"]
    labels: Int[Tensor, " train"]
    test_features: Float[Tensor, "test width"]
    test_labels: Int[Tensor, " test"]
    classes: Int[Tensor, " classes"]
    device: torch.device

    @property
    def num_classes(self) -> int:
        """Number of classes with training images."""
        return len(self.classes)


def checked(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    num_classes: int,
    device: torch.device | None,
) -> Data:
    """Features and labels that a classifier can be fitted to.

    Args:
        train_features: One row a training image.
        train_labels: Classes from 0 to ``num_classes - 1``.
        test_features: One row a test image.
        test_labels: As ``train_labels``.
        num_classes: Number of classes.
        device: Where to compute; that of the training features if None.

    Raises:
        UserError: They cannot be used.
    """
    check_features(train_features, name="training", least=2)
    check_features(test_features, name="test")
    check_labels(train_features, train_labels, name="training", num_classes=num_classes)
    check_labels(test_features, test_labels, name="test", num_classes=num_classes)
    check_widths(train_features, test_features, names=("training", "test"))
    classes, labels = classes_of(train_labels)
    wanted = test_labels.cpu().long().contiguous()
    places = torch.searchsorted(classes, wanted).clamp_max(len(classes) - 1)
    known = torch.where(classes[places] == wanted, places, -1)
    return Data(train_features, labels, test_features, known, classes, device or train_features.device)


def classes_of(labels: Int[Tensor, " images"]) -> tuple[Int[Tensor, " classes"], Int[Tensor, " images"]]:
    """The classes that have images, and the number of each image's class among them.

    Args:
        labels: One class an image, from 0.

    Raises:
        UserError: There is a single class.
    """
    classes, numbers = torch.unique(labels.cpu().long(), return_inverse=True)
    if len(classes) < 2:
        raise UserError(
            f"All training images are of one class ({', '.join(map(str, classes.tolist()))}), so that there is nothing "
            "to tell apart. Give images of two classes or more."
        )
    return classes, numbers


def _check_choice(labels: Int[Tensor, " images"], strengths: tuple[float, ...]) -> None:
    if len(strengths) > 1 and int(labels.bincount().max()) < 2:
        raise UserError(
            "Every class has a single training image, so that none can be held out to choose a strength by. "
            "Give one strength, or more images a class."
        )


def check_strengths(strengths: Sequence[float] | None, num_classes: int) -> tuple[float, ...]:
    """Strengths to choose from, ascending.

    Args:
        strengths: Those asked for; None for ``usual_strengths``.
        num_classes: Number of classes with training images.

    Raises:
        UserError: One is not above 0, or there are none.
    """
    chosen = usual_strengths(num_classes) if strengths is None else tuple(sorted(set(strengths)))
    if not chosen or not all(0 < strength < float("inf") for strength in chosen):
        raise UserError(
            f"Strengths of the penalty are numbers above 0, got {', '.join(map(str, chosen)) or 'none'}. "
            f"Usual for {num_classes} classes are {usual_strengths(num_classes)[0]:.1g} to "
            f"{usual_strengths(num_classes)[-1]:.1g}."
        )
    return chosen


def places_in_class(labels: Int[Tensor, " images"], *, seed: int) -> Int[Tensor, " images"]:
    """Place of each image among those of its class in a random order, from 0.

    Args:
        labels: One class an image.
        seed: Of the order.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    firsts = counts.cumsum(dim=0) - counts
    places = torch.empty_like(labels)
    places[order] = torch.arange(len(labels)) - firsts[labels[order]]
    return places


def folds_of(labels: Int[Tensor, " images"], *, seed: int, num_folds: int) -> Int[Tensor, " images"]:
    """Fold of each image, every class spread evenly over them; -1 for the image of a class with only one.

    Args:
        labels: One class an image.
        seed: Of the order.
        num_folds: How many folds.
    """
    is_alone = labels.bincount()[labels] == 1
    return torch.where(is_alone, -1, places_in_class(labels, seed=seed) % num_folds)


def fit_and_test(data: Data, held_out: Sequence[Bool[Tensor, " train"]], strengths: tuple[float, ...]) -> LinearResult:
    """Choose a strength on held-out images, fit a classifier to all training images, and test it.

    Args:
        data: Features and labels.
        held_out: Training images that are held out in turn.
        strengths: To choose from; a single one is taken as it is.
    """
    strength = strengths[0] if len(strengths) == 1 else _choose(data, held_out, strengths)
    fit = _fit(data.features, data.labels, (strength,), data)
    ranks = _ranks(fit, data.test_features, data.test_labels)[0]
    top1, top5 = (100.0 * float((ranks < places).double().mean()) for places in (1, 5))
    return LinearResult(top1, top5, strength, ranks)


def _choose(data: Data, held_out: Sequence[Bool[Tensor, " train"]], strengths: tuple[float, ...]) -> float:
    """The strength with the most hits on images that were held out in turn; the smallest of equally good ones."""
    hits = torch.zeros(len(strengths), dtype=torch.int64)
    for held in held_out:
        rows, others = (mask.nonzero()[:, 0] for mask in (held, ~held))
        at = data.features.device
        fit = _fit(data.features[others.to(at)], data.labels[others], strengths, data)
        hits += (_ranks(fit, data.features[rows.to(at)], data.labels[rows]) < 1).sum(dim=1)
    best = max(range(len(strengths)), key=lambda number: (int(hits[number]), -strengths[number]))
    _log.debug("held-out hits by strength: %s", dict(zip(strengths, hits.tolist(), strict=True)))
    return strengths[best]


def _fit(features: Tensor, labels: Tensor, strengths: tuple[float, ...], data: Data) -> LogisticFit:
    return fit_logistic(features, labels, strengths=strengths, num_classes=data.num_classes, device=data.device)


@torch.inference_mode()
def _ranks(
    fit: LogisticFit, features: Float[Tensor, "images width"], labels: Int[Tensor, " images"]
) -> Int[Tensor, "strengths images"]:
    """Place of the true class by logits from 0, ties by class number; beyond all places for unknown classes."""
    num_strengths, num_classes = fit.bias.shape
    numbers = torch.arange(num_classes, device=fit.bias.device)
    at_once = max(1, _LOGITS // (num_strengths * num_classes + features.shape[1]))
    ranks = []
    for rows, true in zip(torch.split(features, at_once), torch.split(labels, at_once), strict=True):
        logits, wanted = fit.logits(rows), true.to(fit.bias.device)[:, None]
        own = logits.gather(2, wanted.clamp_min(0).expand(num_strengths, -1, 1))
        before = (logits > own) | ((logits == own) & (numbers < wanted))
        ranks.append(torch.where(wanted[:, 0] < 0, num_classes + 5, before.sum(dim=2)).cpu())
    return torch.cat(ranks, dim=1)


@dataclass(frozen=True)
class Linear(Protocol):
    """A linear classifier on all training images; see ``linear_scores``.

    Attributes:
        fit: How it is fitted: ``lbfgs`` minimises logistic regression to the end.
        strengths: Of the penalty, to choose from; None for ``usual_strengths``.
        seed: Of the choice of held-out images.
    """

    fit: Literal["lbfgs"] = "lbfgs"
    strengths: tuple[float, ...] | None = None
    seed: int = 0

    name: ClassVar[str] = "linear"
    headline: ClassVar[str] = "top1"

    def settled(self, train_labels: Int[Tensor, " train"], test_labels: Int[Tensor, " test"]) -> "Linear":  # noqa: ARG002
        """With strengths, and images to choose one of them by."""
        classes, labels = classes_of(train_labels)
        strengths = check_strengths(self.strengths, len(classes))
        _check_choice(labels, strengths)
        return replace(self, strengths=strengths)

    def __call__(self, train: Rows, test: Rows, *, num_classes: int, device: torch.device) -> Outcome:
        """Accuracy of the classifier with the chosen strength."""
        result = linear_scores(
            train.features,
            train.labels,
            test.features,
            test.labels,
            num_classes=num_classes,
            strengths=self.strengths,
            seed=self.seed,
            device=device,
        )
        values = {"top1": percent(result.correct), "top5": percent(result.ranks < 5)}
        return Outcome({"top1": result.top1, "top5": result.top5}, values, {"strength": result.strength})
