"""Linear classification of frozen features from a few training images of each class."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from poa.errors import UserError
from poa.evaluation.linear import (
    FOLDS,
    Data,
    LinearResult,
    check_strengths,
    checked,
    classes_of,
    default_strength,
    fit_and_test,
    folds_of,
    places_in_class,
)
from poa.evaluation.protocol import Outcome, Protocol, Rows, percent


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
    data = checked(train_features, train_labels, test_features, test_labels, num_classes=num_classes, device=device)
    strengths = check_strengths(strengths, data.num_classes)
    wanted = _images_to_draw(data.labels, data.classes, per_class=per_class, share=share)
    _check_draws(draws)
    results = tuple(_draw_and_test(data, wanted, strengths, seed=seed + draw) for draw in range(draws))
    top1, top5 = [result.top1 for result in results], [result.top5 for result in results]
    spread1, spread5 = (statistics.stdev(values) if draws > 1 else 0.0 for values in (top1, top5))
    return FewShotResult(statistics.fmean(top1), statistics.fmean(top5), spread1, spread5, results)


def _check_draws(draws: int) -> None:
    if draws < 1:
        raise UserError(f"Few-shot classification needs at least one draw, got {draws}. Usual are 5.")


def _images_to_draw(
    labels: Int[Tensor, " images"], classes: Int[Tensor, " classes"], *, per_class: int | None, share: float | None
) -> Int[Tensor, " classes"]:
    """How many images of each class."""
    counts = labels.bincount()
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
            f"{per_class} images per class are not possible: class {int(classes[fewest])} has "
            f"{int(counts[fewest])} training images, the fewest. Ask for 1 to {int(counts[fewest])} images, or a share."
        )
    return torch.full_like(counts, per_class)


def _draw_and_test(
    data: Data, wanted: Int[Tensor, " classes"], strengths: tuple[float, ...], *, seed: int
) -> LinearResult:
    drawn = (places_in_class(data.labels, seed=seed) < wanted[data.labels]).nonzero()[:, 0]
    few = Data(
        data.features[drawn.to(data.features.device)],
        data.labels[drawn],
        data.test_features,
        data.test_labels,
        data.classes,
        data.device,
    )
    num_folds = min(FOLDS, int(wanted.max()))
    if num_folds == 1:
        return fit_and_test(few, [], strengths if len(strengths) == 1 else (default_strength(few.num_classes),))
    folds = folds_of(few.labels, seed=seed, num_folds=num_folds)
    return fit_and_test(few, [folds == fold for fold in range(num_folds)], strengths)


@dataclass(frozen=True)
class FewShot(Protocol):
    """Linear classifiers on a few images of each class, drawn several times; see ``few_shot``.

    Attributes:
        per_class: Images drawn of each class. Either this or ``share`` is given.
        share: Share of each class's images that is drawn.
        draws: How often to draw.
        strengths: Of the penalty, to choose from; None for ``usual_strengths``.
        seed: Of the first draw.
    """

    per_class: int | None = None
    share: float | None = None
    draws: int = 5
    strengths: tuple[float, ...] | None = None
    seed: int = 0

    name: ClassVar[str] = "few-shot"
    headline: ClassVar[str] = "top1"

    def settled(self, train_labels: Int[Tensor, " train"], test_labels: Int[Tensor, " test"]) -> "FewShot":  # noqa: ARG002
        """With strengths, and as many images of each class as are to be drawn."""
        classes, labels = classes_of(train_labels)
        _images_to_draw(labels, classes, per_class=self.per_class, share=self.share)
        _check_draws(self.draws)
        return replace(self, strengths=check_strengths(self.strengths, len(classes)))

    def __call__(self, train: Rows, test: Rows, *, num_classes: int, device: torch.device) -> Outcome:
        """Mean accuracy over the draws, and its spread; an image's value is the share of draws that get it right."""
        result = few_shot(
            train.features,
            train.labels,
            test.features,
            test.labels,
            num_classes=num_classes,
            per_class=self.per_class,
            share=self.share,
            draws=self.draws,
            strengths=self.strengths,
            seed=self.seed,
            device=device,
        )
        values = {
            name: torch.stack([percent(draw.ranks < places) for draw in result.draws]).mean(dim=0)
            for name, places in (("top1", 1), ("top5", 5))
        }
        scores = result.scores() if self.draws > 1 else {"top1": result.top1, "top5": result.top5}
        return Outcome(scores, values)
