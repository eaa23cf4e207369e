"""Linear classification of frozen features by logistic regression, on all training images or on a few of each class."""

import logging
import statistics
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from poa.config.protocols import FewShotSettings, LinearSettings
from poa.data.sampler import check_per_class, folds_of, places_in_class
from poa.errors import UserError
from poa.evaluation.logistic import LogisticFit, fit_logistic
from poa.evaluation.protocol import (
    Outcome,
    Protocol,
    Rows,
    check_held_out,
    check_rows,
    class_ranks,
    classes_of,
    numbers_among,
)

FOLDS = 5
_LOGITS = 2**24  # held at once when images are classified
_log = logging.getLogger(__name__)


class Linear(LinearSettings, Protocol):
    """Logistic regression on standardised features, with the strength of its penalty chosen on held-out images.

    A fifth of each class's training images (rounded up; none of a class with one image) is held out, the strength with
    the most hits on them is taken, the smallest of equally good ones, and a classifier is fitted to all training
    images. The test images have no part in this; those of a class without training images count as wrong. Equal logits
    are decided by class number.
    """

    name: ClassVar[str] = "linear"
    headline: ClassVar[str] = "top1"

    def resolved(self, train_labels: Int[Tensor, " train"], test_labels: Int[Tensor, " test"]) -> "Linear":  # noqa: ARG002
        """With strengths, and images to choose one of them by."""
        classes, labels = classes_of(train_labels)
        return self.changed(strengths=self._strengths(labels, len(classes)))

    def __call__(self, train: Rows, test: Rows, *, num_classes: int, device: torch.device) -> Outcome:
        """Accuracy of the classifier with the chosen strength."""
        data = _checked(train, test, num_classes=num_classes, device=device)
        strengths = self._strengths(data.labels, data.num_classes)
        held = folds_of(data.labels, seed=self.seed, num_folds=FOLDS) == 0
        return _fit_and_test(data, [held], strengths)

    def _strengths(self, labels: Int[Tensor, " train"], num_classes: int) -> tuple[float, ...]:
        strengths = _ascending(self.strengths, num_classes)
        if len(strengths) > 1:
            check_held_out(labels, what="strength")
        return strengths


class FewShot(FewShotSettings, Protocol):
    """``Linear`` from a few training images of each class, drawn several times.

    In each draw the strength is chosen by cross validation over the images drawn (five folds, or as many as the
    largest class has images). Where no class has two images, ``default_strength`` is taken.
    """

    name: ClassVar[str] = "few-shot"
    headline: ClassVar[str] = "top1"

    def resolved(self, train_labels: Int[Tensor, " train"], test_labels: Int[Tensor, " test"]) -> "FewShot":  # noqa: ARG002
        """With strengths, and as many images of each class as are to be drawn."""
        classes, labels = classes_of(train_labels)
        self._images_to_draw(labels, classes)
        return self.changed(strengths=_ascending(self.strengths, len(classes)))

    def __call__(self, train: Rows, test: Rows, *, num_classes: int, device: torch.device) -> Outcome:
        """Mean accuracy over the draws, and its spread; an image's value is the share of draws that get it right."""
        data = _checked(train, test, num_classes=num_classes, device=device)
        strengths = _ascending(self.strengths, data.num_classes)
        wanted = self._images_to_draw(data.labels, data.classes)
        draws = [_draw_and_test(data, wanted, strengths, seed=self.seed + draw) for draw in range(self.draws)]
        columns = {name: [draw.scores[name] for draw in draws] for name in draws[0].scores}
        scores = {name: statistics.fmean(values) for name, values in columns.items()}
        if self.draws > 1:
            scores |= {f"{name}_spread": statistics.stdev(values) for name, values in columns.items()}
        return Outcome(
            scores, {name: torch.stack([draw.values[name] for draw in draws]).mean(dim=0) for name in columns}
        )

    def _images_to_draw(
        self, labels: Int[Tensor, " images"], classes: Int[Tensor, " classes"]
    ) -> Int[Tensor, " classes"]:
        """How many images of each class."""
        counts = labels.bincount()
        if (self.per_class is None) == (self.share is None):
            raise UserError(
                f"Few-shot classification needs either --per-class or --share, got {self.per_class} and {self.share}. "
                "Usual are 1, 5 or 10 images per class, or a share of 0.01 or 0.1."
            )
        if self.share is not None:
            return (self.share * counts).round().long().clamp_min(1)
        assert self.per_class is not None
        check_per_class(self.per_class, classes[labels].tolist())
        return torch.full_like(counts, self.per_class)


def usual_strengths(num_classes: int) -> tuple[float, ...]:
    """Strengths from ``0.001 / num_classes`` to ``100 / num_classes``, two a decade.

    With all classes equally likely the loss curves by about ``1 / num_classes`` along each weight, so that these are
    the strengths at which the penalty matters, whatever the number of images or classes.
    """
    return tuple(10 ** (exponent / 2) / num_classes for exponent in range(-6, 5))


def default_strength(num_classes: int) -> float:
    """What is taken where no image can be spared to choose a strength: ``1 / num_classes``."""
    return 1 / num_classes


def _ascending(strengths: tuple[float, ...] | None, num_classes: int) -> tuple[float, ...]:
    return usual_strengths(num_classes) if strengths is None else tuple(sorted(set(strengths)))


class _Data(NamedTuple):
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
        return len(self.classes)

    def take(self, drawn: Int[Tensor, " drawn"]) -> "_Data":
        """With some of the training images."""
        return self._replace(features=self.features[drawn.to(self.features.device)], labels=self.labels[drawn])


def _checked(train: Rows, test: Rows, *, num_classes: int, device: torch.device) -> _Data:
    check_rows(train, test, num_classes=num_classes, least=2)
    classes, labels = classes_of(train.labels)
    return _Data(train.features, labels, test.features, numbers_among(classes, test.labels), classes, device)


def _draw_and_test(data: _Data, wanted: Int[Tensor, " classes"], strengths: tuple[float, ...], *, seed: int) -> Outcome:
    few = data.take((places_in_class(data.labels, seed=seed) < wanted[data.labels]).nonzero()[:, 0])
    num_folds = min(FOLDS, int(wanted.max()))
    if num_folds == 1:
        return _fit_and_test(few, [], strengths if len(strengths) == 1 else (default_strength(few.num_classes),))
    folds = folds_of(few.labels, seed=seed, num_folds=num_folds)
    return _fit_and_test(few, [folds == fold for fold in range(num_folds)], strengths)


def _fit_and_test(data: _Data, held_out: Sequence[Bool[Tensor, " train"]], strengths: tuple[float, ...]) -> Outcome:
    """Choose a strength on images that are held out in turn, fit a classifier to all training images, and test it."""
    strength = strengths[0] if len(strengths) == 1 else _choose(data, held_out, strengths)
    ranks = _ranks(_fit(data, (strength,)), data.test_features, data.test_labels)[0]
    return Outcome.of_ranks(ranks, {"strength": strength})


def _choose(data: _Data, held_out: Sequence[Bool[Tensor, " train"]], strengths: tuple[float, ...]) -> float:
    """The strength with the most hits on images that were held out in turn; the smallest of equally good ones."""
    hits = torch.zeros(len(strengths), dtype=torch.int64)
    for held in held_out:
        tested = data.take(held.nonzero()[:, 0])
        fit = _fit(data.take((~held).nonzero()[:, 0]), strengths)
        hits += (_ranks(fit, tested.features, tested.labels) < 1).sum(dim=1)
    best = max(range(len(strengths)), key=lambda number: (int(hits[number]), -strengths[number]))
    _log.debug("correct held-out images by strength: %s", dict(zip(strengths, hits.tolist(), strict=True)))
    return strengths[best]


def _fit(data: _Data, strengths: tuple[float, ...]) -> LogisticFit:
    return fit_logistic(
        data.features, data.labels, strengths=strengths, num_classes=data.num_classes, device=data.device
    )


@torch.inference_mode()
def _ranks(
    fit: LogisticFit, features: Float[Tensor, "images width"], labels: Int[Tensor, " images"]
) -> Int[Tensor, "strengths images"]:
    at_once = max(1, _LOGITS // (fit.bias.numel() + features.shape[1]))
    parts = zip(torch.split(features, at_once), torch.split(labels, at_once), strict=True)
    return torch.cat([class_ranks(fit.logits(rows), true.to(fit.bias.device)).cpu() for rows, true in parts], dim=1)
