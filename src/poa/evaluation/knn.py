"""Weighted k-nearest-neighbour classification of frozen features (POA, Sec. 4.1; official code, after DINO)."""

import logging
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from poa.config.protocols import KnnSettings
from poa.errors import UserError, counted
from poa.evaluation.protocol import (
    Outcome,
    Protocol,
    Rows,
    beyond,
    check_rows,
    class_ranks,
    full_precision,
    means,
    percent,
    top_k,
    unit_rows,
)
from poa.features.whitening import Whitening, whitening_of

KS = (10, 20, 100, 200)
_CHUNK = 2048
"""Rows of the blocks of similarities in both directions, which bound the memory: about ``32 * chunk**2`` bytes."""
_ONE = 2.0**60  # a vote of weight 1 in fixed point
_log = logging.getLogger(__name__)


class Knn(KnnSettings, Protocol):
    """Classify test images by the weighted votes of their nearest training images.

    ``votes[c] = sum of w_j over the first k neighbours j of class c``, where ``w`` is the softmax of
    ``cosine / temperature`` over the ``max(ks)`` nearest (official code, after DINO; k = 10, 20, 100, 200 and
    temperature 0.07 as published). All in float32. Equal similarities are decided by image number, equal votes by
    class number.
    """

    name: ClassVar[str] = "knn"
    headline: ClassVar[str] = "top1@20"

    def resolved(self, train_labels: Int[Tensor, " train"], test_labels: Int[Tensor, " test"]) -> "Knn":  # noqa: ARG002
        """With numbers of neighbours, each of them possible."""
        return self.changed(ks=allowed_ks(self.ks, num_train=len(train_labels)))

    @torch.inference_mode()
    def __call__(self, train: Rows, test: Rows, *, num_classes: int, device: torch.device) -> Outcome:
        """Accuracy for each number of neighbours."""
        check_rows(train, test, num_classes=num_classes)
        ks = allowed_ks(self.ks, num_train=len(train.features))
        whitening = None if self.whiten is None else whitening_of(train.features, damping=self.whiten)
        similarities, images = nearest_images(
            train.features, test.features, k=ks[-1], device=device, chunk=_CHUNK, whitening=whitening
        )
        classes, labels = train.labels.to(device, torch.int64)[images], test.labels.to(device, torch.int64)
        weights = torch.softmax(similarities / self.temperature, dim=1)
        parts = zip(*(torch.split(rows, _CHUNK) for rows in (weights, classes, labels)), strict=True)
        ranks = torch.cat([_ranks_by_k(*part, ks=ks, num_classes=num_classes) for part in parts], dim=1).cpu()
        values = {
            f"{name}@{k}": percent(hits)
            for k, of_k in zip(ks, ranks, strict=True)
            for name, hits in top_k(of_k).items()
        }
        return Outcome(means(values), values)


def allowed_ks(ks: Sequence[int] | None, *, num_train: int) -> tuple[int, ...]:
    """Numbers of neighbours to score, ascending; None takes the usual ones as far as there are training images."""
    wrong = [k for k in ks or () if not 0 < k <= num_train]
    if wrong:
        raise UserError(
            f"k-NN with k={wrong[0]} is not possible: k must be from 1 to the number of labelled training "
            f"images, here {num_train}. Give another --k or more images."
        )
    wanted = KS if ks is None else tuple(ks)
    kept = tuple(sorted({k for k in wanted if k <= num_train}))
    if not kept:
        raise UserError(
            f"No number of neighbours is left for k-NN: got k of {', '.join(map(str, wanted)) or 'none'} and "
            f"{counted(num_train, 'training image')}. Give --k of at most {num_train}, or more images."
        )
    dropped = [str(k) for k in KS if k not in kept] if ks is None else []
    if dropped:
        _log.info("k-NN leaves out k=%s: the number of training images is only %d.", ", ".join(dropped), num_train)
    return kept


def nearest_images(
    train_features: Float[Tensor, "train width"],
    test_features: Float[Tensor, "test width"],
    *,
    k: int,
    device: torch.device,
    chunk: int,
    whitening: Whitening | None = None,
) -> tuple[Float[Tensor, "test k"], Int[Tensor, "test k"]]:
    """The k most similar training images of every test image by cosine, nearest first, ties by image number.

    Args:
        train_features: Any float type, on any device, also memory-mapped; read once, ``chunk`` rows at a time.
        test_features: As ``train_features``; held on ``device``.
        k: Number of neighbours, at most the number of training images.
        device: Where to compute.
        chunk: Rows of the blocks of similarities, in test images and in training images.
        whitening: Of all features, before they are compared.

    Returns:
        Cosine similarities, and the numbers of the training images.
    """
    test = unit_rows(test_features, device, whitening)
    best = torch.empty(len(test), 0, dtype=torch.int64, device=device)
    for start in range(0, len(train_features), chunk):
        train = unit_rows(train_features[start : start + chunk], device, whitening)
        blocks = []
        for rows, known in zip(torch.split(test, chunk), torch.split(best, chunk), strict=True):
            with full_precision(device):
                similarities = rows @ train.T
            keys = torch.cat([known, _keys(similarities, start)], dim=1)
            blocks.append(keys.topk(min(k, keys.shape[1]), dim=1).values)
        best = torch.cat(blocks)
    return _read_keys(best)


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


def _flip_negatives(bits: Int[Tensor, "rows columns"]) -> Int[Tensor, "rows columns"]:
    """Bits of floats to whole numbers in the same order, and back: the size bits of negative ones are inverted."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _ranks_by_k(
    weights: Float[Tensor, "test k"],
    classes: Int[Tensor, "test k"],
    labels: Int[Tensor, " test"],
    *,
    ks: Sequence[int],
    num_classes: int,
) -> Int[Tensor, "ks test"]:
    """Place of the true class by votes; a class without votes has none."""
    # Whole numbers add up exactly in any order, so that equal votes stay equal also with atomic adds on a GPU.
    counts = (weights * _ONE).to(torch.int64)
    votes = torch.zeros(len(labels), num_classes, dtype=torch.int64, device=labels.device)
    ranks, done = [], 0
    for k in ks:
        votes.scatter_add_(1, classes[:, done:k], counts[:, done:k])
        has_votes = votes.gather(1, labels[:, None])[:, 0] > 0
        ranks.append(torch.where(has_votes, class_ranks(votes, labels), beyond(num_classes)))
        done = k
    return torch.stack(ranks)
