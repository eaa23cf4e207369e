"""Weighted k-nearest-neighbour classification of frozen features (POA, Sec. 4.1; official code, after DINO)."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from poa.errors import UserError
from poa.evaluation.protocol import (
    Outcome,
    Protocol,
    Rows,
    check_features,
    check_labels,
    check_widths,
    full_precision,
    percent,
    unit_rows,
)

KS = (10, 20, 100, 200)
_ONE = 2.0**60  # a vote of weight 1 in fixed point
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KnnResult:
    """Accuracy in percent for each number of neighbours.

    Attributes:
        top1: Share of test images whose class has the most votes.
        top5: Share of test images whose class is among the five with the most votes.
        ranks: Place of each test image's class by votes from 0, on the CPU.
    """

    top1: Mapping[int, float]
    top5: Mapping[int, float]
    ranks: Mapping[int, Int[Tensor, " test"]] = field(default_factory=dict, compare=False, repr=False)

    def scores(self) -> dict[str, float]:
        """The same as one flat mapping: ``top1@10``, ``top5@10``, ``top1@20``, ..."""
        return {
            f"{name}@{k}": table[k] for k in self.top1 for name, table in (("top1", self.top1), ("top5", self.top5))
        }


def allowed_ks(ks: Sequence[int] | None, *, num_train: int) -> tuple[int, ...]:
    """Numbers of neighbours to score, ascending.

    Args:
        ks: Those asked for; None takes the usual ones (10, 20, 100, 200) as far as there are images.
        num_train: Number of training images.

    Raises:
        UserError: A number is not positive or above the number of training images, or none is left.
    """
    wrong = [k for k in ks or () if not 0 < k <= num_train]
    if wrong:
        raise UserError(
            f"k-NN with k={wrong[0]} is not possible: k goes from 1 to the number of labelled training images, "
            f"here {num_train}. Give another --k or more images."
        )
    wanted = KS if ks is None else tuple(ks)
    kept = tuple(sorted({k for k in wanted if k <= num_train}))
    if not kept:
        raise UserError(
            f"k-NN has no number of neighbours to score: got {num_train} training images and k of "
            f"{', '.join(map(str, wanted)) or 'none'}. Give --k of at most {num_train}, or more images."
        )
    dropped = [str(k) for k in KS if k not in kept] if ks is None else []
    if dropped:
        _log.info("k-NN leaves out k=%s: there are only %d training images.", ", ".join(dropped), num_train)
    return kept


def _flip_negatives(bits: Int[Tensor, "rows columns"]) -> Int[Tensor, "rows columns"]:
    """Bits of floats to whole numbers in the same order, and back: the size bits of negative ones are inverted."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _keys(similarities: Float[Tensor, "test train"], start: int) -> Int[Tensor, "test train"]:
    """Similarity in the upper and reversed image number in the lower 32 bits.

    All keys of a row differ, so the largest are the same on every device and for every chunk size; of equally similar
    images the first one wins.
    """
    ordered = _flip_negatives((similarities + 0.0).view(torch.int32))  # + 0.0 turns -0.0 into 0.0
    images = torch.arange(start, start + similarities.shape[1], device=similarities.device)
    return ordered.long().bitwise_left_shift_(32).bitwise_or_(0xFFFFFFFF - images)


def _read_keys(keys: Int[Tensor, "test k"]) -> tuple[Float[Tensor, "test k"], Int[Tensor, "test k"]]:
    similarities = _flip_negatives((keys >> 32).to(torch.int32)).view(torch.float32)
    return similarities, 0xFFFFFFFF - (keys & 0xFFFFFFFF)


def nearest_images(
    train_features: Float[Tensor, "train width"],
    test_features: Float[Tensor, "test width"],
    *,
    k: int,
    device: torch.device,
    chunk: int,
) -> tuple[Float[Tensor, "test k"], Int[Tensor, "test k"]]:
    """The k most similar training images of every test image by cosine, nearest first, ties by image number.

    Args:
        train_features: Any float type, on any device, also memory-mapped; read once, ``chunk`` rows at a time.
        test_features: As ``train_features``; held on ``device``.
        k: Number of neighbours, at most the number of training images.
        device: Where to compute.
        chunk: Rows of the blocks of similarities, in test images and in training images.

    Returns:
        Cosine similarities, and the numbers of the training images.
    """
    test = unit_rows(test_features, device)
    best = torch.empty(len(test), 0, dtype=torch.int64, device=device)
    for start in range(0, len(train_features), chunk):
        train = unit_rows(train_features[start : start + chunk], device)
        blocks = []
        for rows, known in zip(torch.split(test, chunk), torch.split(best, chunk), strict=True):
            with full_precision(device):
                similarities = rows @ train.T
            keys = torch.cat([known, _keys(similarities, start)], dim=1)
            blocks.append(keys.topk(min(k, keys.shape[1]), dim=1).values)
        best = torch.cat(blocks)
    return _read_keys(best)


def _ranks(votes: Int[Tensor, "test classes"], labels: Int[Tensor, " test"]) -> Int[Tensor, " test"]:
    """Place of the true class by votes from 0; ties go to the lower class, a class without votes has no place."""
    own = votes.gather(1, labels[:, None])
    lower = torch.arange(votes.shape[1], device=votes.device) < labels[:, None]
    place = ((votes > own) | ((votes == own) & lower)).sum(dim=1)
    return torch.where(own[:, 0] > 0, place, votes.shape[1] + 5)


def _ranks_by_k(
    similarities: Float[Tensor, "test k"],
    classes: Int[Tensor, "test k"],
    labels: Int[Tensor, " test"],
    *,
    ks: Sequence[int],
    temperature: float,
    num_classes: int,
) -> Int[Tensor, "ks test"]:
    # Whole numbers add up exactly in any order, so that equal votes stay equal also with atomic adds on a GPU.
    weights = (torch.softmax(similarities / temperature, dim=1) * _ONE).to(torch.int64)
    votes = torch.zeros(len(labels), num_classes, dtype=torch.int64, device=labels.device)
    ranks, done = [], 0
    for k in ks:
        votes.scatter_add_(1, classes[:, done:k], weights[:, done:k])
        ranks.append(_ranks(votes, labels))
        done = k
    return torch.stack(ranks)


@torch.inference_mode()
def knn_scores(
    train_features: Float[Tensor, "train width"],
    train_labels: Int[Tensor, " labels"],
    test_features: Float[Tensor, "test other_width"],
    test_labels: Int[Tensor, " test_labels"],
    *,
    ks: Sequence[int] | None = None,
    temperature: float = 0.07,
    num_classes: int,
    device: torch.device | None = None,
    chunk: int = 2048,
) -> KnnResult:
    """Classify test images by the weighted votes of their nearest training images.

    ``votes[c] = sum of w_j over the first k neighbours j of class c``, where ``w`` is the softmax of
    ``cosine / temperature`` over the ``max(ks)`` nearest (official code, after DINO; k = 10, 20, 100, 200 and
    temperature 0.07 as published). All in float32. Equal similarities are decided by image number, equal votes by
    class number.

    Args:
        train_features: One row a training image, not yet normalised.
        train_labels: Classes from 0 to ``num_classes - 1``.
        test_features: One row a test image, not yet normalised.
        test_labels: As ``train_labels``.
        ks: Numbers of neighbours; None for the published ones as far as there are training images.
        temperature: Of the softmax.
        num_classes: Number of classes.
        device: Where to compute; that of the training features if None.
        chunk: Rows of the blocks of similarities in both directions, which bound the memory: about ``32 * chunk**2``
            bytes besides the test features.

    Raises:
        UserError: A k, the labels or the features cannot be used.
    """
    check_features(train_features, name="training")
    check_features(test_features, name="test")
    check_labels(train_features, train_labels, name="training", num_classes=num_classes)
    check_labels(test_features, test_labels, name="test", num_classes=num_classes)
    check_widths(train_features, test_features, names=("training", "test"))
    ks = allowed_ks(ks, num_train=len(train_features))
    device = train_features.device if device is None else device
    similarities, images = nearest_images(train_features, test_features, k=ks[-1], device=device, chunk=chunk)
    classes, labels = train_labels.to(device, torch.int64)[images], test_labels.to(device, torch.int64)
    parts = zip(*(torch.split(rows, chunk) for rows in (similarities, classes, labels)), strict=True)
    found = [_ranks_by_k(*part, ks=ks, temperature=temperature, num_classes=num_classes) for part in parts]
    ranks = dict(zip(ks, torch.cat(found, dim=1).cpu(), strict=True))
    top1, top5 = (
        {k: 100.0 * float((places < most).sum()) / len(labels) for k, places in ranks.items()} for most in (1, 5)
    )
    return KnnResult(top1, top5, ranks)


@dataclass(frozen=True)
class Knn(Protocol):
    """Weighted k-nearest neighbours; see ``knn_scores``.

    Attributes:
        ks: Numbers of neighbours; None for the published ones as far as there are training images.
        temperature: Of the votes.
    """

    ks: tuple[int, ...] | None = None
    temperature: float = 0.07

    name: ClassVar[str] = "knn"
    headline: ClassVar[str] = "top1@20"

    def settled(self, train_labels: Int[Tensor, " train"], test_labels: Int[Tensor, " test"]) -> "Knn":  # noqa: ARG002
        """With numbers of neighbours, each of them possible."""
        if not 0 < self.temperature < float("inf"):
            raise UserError(f"The temperature of votes is a number above 0, got {self.temperature}. Usual is 0.07.")
        return replace(self, ks=allowed_ks(self.ks, num_train=len(train_labels)))

    def __call__(self, train: Rows, test: Rows, *, num_classes: int, device: torch.device) -> Outcome:
        """Accuracy for each number of neighbours."""
        result = knn_scores(
            train.features,
            train.labels,
            test.features,
            test.labels,
            ks=self.ks,
            temperature=self.temperature,
            num_classes=num_classes,
            device=device,
        )
        places = {"top1": 1, "top5": 5}
        values = {
            f"{name}@{k}": percent(ranks < most) for k, ranks in result.ranks.items() for name, most in places.items()
        }
        return Outcome(result.scores(), values)
