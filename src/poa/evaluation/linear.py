"""Linear classification of frozen features, of all training images or of a few a class."""

import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from poa.errors import UserError
from poa.evaluation.logistic import LogisticFit, fit_logistic
from poa.evaluation.rows import check_features, check_labels, check_widths

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
        correct: Whether each test image's class comes first, on the CPU.
    """

    top1: float
    top5: float
    strength: float
    correct: Bool[Tensor, " test"]

    def scores(self) -> dict[str, float]:
        """The numbers as one flat mapping: ``top1``, ``top5``, ``strength``."""
        return {"top1": self.top1, "top5": self.top5, "strength": self.strength}


@dataclass(frozen=True, slots=True)
class FewShotResult:
    """Accuracy in percent over several draws of training images.

    Attributes:
        top1: Mean over the draws.
        top5: Mean over the draws.
        top1_spread: Standard deviation over the draws (of a sample); 0 for a single draw.
        top5_spread: As ``top1_spread``.
        draws: The result of each.
    """

    top1: float
    top5: float
    top1_spread: float
    top5_spread: float
    draws: tuple[LinearResult, ...]

    def scores(self) -> dict[str, float]:
        """The means and spreads as one flat mapping: ``top1``, ``top5``, ``top1_spread``, ``top5_spread``."""
        names = ("top1", "top5", "top1_spread", "top5_spread")
        return {name: getattr(self, name) for name in names}


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
    data = _check(train_features, train_labels, test_features, test_labels, num_classes=num_classes, device=device)
    strengths = _check_strengths(strengths, data.num_classes)
    folds = _folds(data.labels, seed=seed, num_folds=FOLDS)
    if len(strengths) > 1 and int(folds.max()) < 0:
        raise UserError(
            "Every class has a single training image, so that none can be held out to choose a strength by. "
            "Give one strength, or more images a class."
        )
    return _fit_and_test(data, [folds == 0], strengths)


def few_shot(
    train_features: Float[Tensor, "train width"],
    train_labels: Int[Tensor, " labels"],
    test_features: Float[Tensor, "test test_width"],
    test_labels: Int[Tensor, " test_labels"],
    *,
    num_classes: int,
    per_class: int | None = None,
    share: float | None = None,
    draws: int = 5,
    strengths: Sequence[float] | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> FewShotResult:
    """``linear_scores`` from a few training images of each class, drawn several times.

    In each draw the strength is chosen by cross validation over the images drawn (five folds, or as many as the
    largest class has images). Where no class has two images, ``default_strength`` is taken.

    Args:
        train_features: One row a training image, to draw from.
        train_labels: Classes from 0 to ``num_classes - 1``.
        test_features: One row a test image; all are used in every draw.
        test_labels: As ``train_labels``.
        num_classes: Number of classes.
        per_class: Images drawn of each class. Either this or ``share`` is given.
        share: Share of each class's images that is drawn, between 0 and 1; at least one of each class.
        draws: How often to draw.
        strengths: To choose from; None for ``usual_strengths``. A single one is taken as it is.
        seed: Of the first draw; the others have the numbers after it.
        device: Where to compute; that of the training features if None.

    Raises:
        UserError: The features, the labels, the number of images or of draws or the strengths cannot be used.
    """
    data = _check(train_features, train_labels, test_features, test_labels, num_classes=num_classes, device=device)
    strengths = _check_strengths(strengths, data.num_classes)
    wanted = _images_to_draw(data, per_class=per_class, share=share)
    if draws < 1:
        raise UserError(f"Few-shot classification needs at least one draw, got {draws}. Usual are 5.")
    results = tuple(_draw_and_test(data, wanted, strengths, seed=seed + draw) for draw in range(draws))
    top1, top5 = [result.top1 for result in results], [result.top5 for result in results]
    spread1, spread5 = (statistics.stdev(values) if draws > 1 else 0.0 for values in (top1, top5))
    return FewShotResult(statistics.fmean(top1), statistics.fmean(top5), spread1, spread5, results)


@dataclass(frozen=True, slots=True)
class _Data:
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


def _check(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    num_classes: int,
    device: torch.device | None,
) -> _Data:
    check_features(train_features, name="training", least=2)
    check_features(test_features, name="test")
    check_labels(train_features, train_labels, name="training", num_classes=num_classes)
    check_labels(test_features, test_labels, name="test", num_classes=num_classes)
    check_widths(train_features, test_features, names=("training", "test"))
    classes, labels = torch.unique(train_labels.cpu().long(), return_inverse=True)
    if len(classes) < 2:
        raise UserError(
            f"All training images are of one class ({int(classes)}), so that there is nothing to tell apart. "
            "Give images of two classes or more."
        )
    wanted = test_labels.cpu().long().contiguous()
    places = torch.searchsorted(classes, wanted).clamp_max(len(classes) - 1)
    known = torch.where(classes[places] == wanted, places, -1)
    return _Data(train_features, labels, test_features, known, classes, device or train_features.device)


def _check_strengths(strengths: Sequence[float] | None, num_classes: int) -> tuple[float, ...]:
    chosen = usual_strengths(num_classes) if strengths is None else tuple(sorted(set(strengths)))
    if not chosen or not all(0 < strength < float("inf") for strength in chosen):
        raise UserError(
            f"Strengths of the penalty are numbers above 0, got {', '.join(map(str, chosen)) or 'none'}. "
            f"Usual for {num_classes} classes are {usual_strengths(num_classes)[0]:.1g} to "
            f"{usual_strengths(num_classes)[-1]:.1g}."
        )
    return chosen


def _places_in_class(labels: Int[Tensor, " images"], *, seed: int) -> Int[Tensor, " images"]:
    """Place of each image among those of its class in a random order, from 0."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = shuffled[labels[shuffled].argsort(stable=True)]
    counts = labels.bincount()
    firsts = counts.cumsum(dim=0) - counts
    places = torch.empty_like(labels)
    places[order] = torch.arange(len(labels)) - firsts[labels[order]]
    return places


def _folds(labels: Int[Tensor, " images"], *, seed: int, num_folds: int) -> Int[Tensor, " images"]:
    """Fold of each image, every class spread evenly over them; -1 for the image of a class with only one."""
    is_alone = labels.bincount()[labels] == 1
    return torch.where(is_alone, -1, _places_in_class(labels, seed=seed) % num_folds)


def _images_to_draw(data: _Data, *, per_class: int | None, share: float | None) -> Int[Tensor, " classes"]:
    """How many images of each class."""
    counts = data.labels.bincount()
    if (per_class is None) == (share is None):
        raise UserError(
            "Few-shot classification needs either a number of images per class or a share of them, "
            f"got {per_class} images and a share of {share}. Usual are 1, 5 or 10 images, or a share of 0.01 or 0.1."
        )
    if share is not None:
        if not 0 < share <= 1:
            raise UserError(f"The share of training images goes from 0 to 1, got {share}. Usual are 0.01 and 0.1.")
        return (share * counts).round().long().clamp_min(1)
    fewest = int(counts.argmin())
    if per_class is None or not 0 < per_class <= int(counts[fewest]):
        raise UserError(
            f"{per_class} images per class are not possible: class {int(data.classes[fewest])} has "
            f"{int(counts[fewest])} training images, the fewest. Ask for 1 to {int(counts[fewest])} images, or a share."
        )
    return torch.full_like(counts, per_class)


def _draw_and_test(
    data: _Data, wanted: Int[Tensor, " classes"], strengths: tuple[float, ...], *, seed: int
) -> LinearResult:
    drawn = (_places_in_class(data.labels, seed=seed) < wanted[data.labels]).nonzero()[:, 0]
    few = _Data(
        data.features[drawn.to(data.features.device)],
        data.labels[drawn],
        data.test_features,
        data.test_labels,
        data.classes,
        data.device,
    )
    num_folds = min(FOLDS, int(wanted.max()))
    if num_folds == 1:
        return _fit_and_test(few, [], strengths if len(strengths) == 1 else (default_strength(few.num_classes),))
    folds = _folds(few.labels, seed=seed, num_folds=num_folds)
    return _fit_and_test(few, [folds == fold for fold in range(num_folds)], strengths)


def _fit_and_test(
    data: _Data, held_out: Sequence[Bool[Tensor, " train"]], strengths: tuple[float, ...]
) -> LinearResult:
    strength = strengths[0] if len(strengths) == 1 else _choose(data, held_out, strengths)
    fit = _fit(data.features, data.labels, (strength,), data)
    ranks = _ranks(fit, data.test_features, data.test_labels)[0]
    top1, top5 = (100.0 * float((ranks < places).double().mean()) for places in (1, 5))
    return LinearResult(top1, top5, strength, ranks < 1)


def _choose(data: _Data, held_out: Sequence[Bool[Tensor, " train"]], strengths: tuple[float, ...]) -> float:
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


def _fit(features: Tensor, labels: Tensor, strengths: tuple[float, ...], data: _Data) -> LogisticFit:
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
