"""Retrieval by cosine: how early the images of a query's class come among all images of the gallery."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
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

KS = (1, 5, 10)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RetrievalResult:
    """Scores in percent over the queries whose class is in the gallery.

    Attributes:
        mean_average_precision: Mean of ``average_precision``.
        recall: For each k, share of queries with an image of their class among the first k.
        average_precision: Percent for each of these queries, in their order.
        first: Place of the first image of its class for each of these queries, from 0.
        num_left_out: Queries whose class has no image in the gallery.
    """

    mean_average_precision: float
    recall: Mapping[int, float]
    average_precision: Float[Tensor, " queries"]
    first: Int[Tensor, " queries"]
    num_left_out: int

    def scores(self) -> dict[str, float]:
        """The same as one flat mapping: ``map``, ``recall@1``, ``recall@5``, ..."""
        return {"map": self.mean_average_precision} | {f"recall@{k}": share for k, share in self.recall.items()}


@torch.inference_mode()
def retrieval_scores(
    gallery_features: Float[Tensor, "gallery width"],
    gallery_labels: Int[Tensor, " labels"],
    query_features: Float[Tensor, "queries other_width"],
    query_labels: Int[Tensor, " query_labels"],
    *,
    ks: Sequence[int] | None = None,
    device: torch.device | None = None,
    pairs: int = 2**24,
) -> RetrievalResult:
    """Order the gallery by cosine to each query, and score where the images of the query's class stand.

    Average precision is the mean, over the gallery's images of the query's class, of the share of that class among all
    images up to that one. Equal similarities are decided by image number. All in float32, shares in float64.

    Args:
        gallery_features: One row an image, not yet normalised; held on ``device``.
        gallery_labels: One class for each, from 0.
        query_features: One row an image, of the same network; no image of the gallery.
        query_labels: As ``gallery_labels``.
        ks: For recall; None takes 1, 5, 10 as far as the gallery has images.
        device: Where to compute; that of the gallery if None.
        pairs: Pairs of query and gallery image looked at together, which bounds the memory: about 40 bytes each.

    Raises:
        UserError: The features, the labels or a k cannot be used, or no query has its class in the gallery.
    """
    check_features(gallery_features, name="gallery")
    check_features(query_features, name="query")
    check_labels(gallery_features, gallery_labels, name="gallery")
    check_labels(query_features, query_labels, name="query")
    check_widths(gallery_features, query_features, names=("gallery", "query"))
    ks = _allowed_ks(ks, num_gallery=len(gallery_features))
    device = gallery_features.device if device is None else device
    gallery, classes = unit_rows(gallery_features, device), gallery_labels.to(device, torch.int32)
    kept = torch.isin(query_labels.cpu(), gallery_labels.cpu()).nonzero()[:, 0]
    if len(kept) == 0:
        raise UserError(
            "No query has an image of its class in the gallery, so that there is nothing to find. "
            "Give a gallery with the classes of the queries, numbered alike."
        )
    precisions, firsts = [], []
    for part in torch.split(kept, max(1, pairs // len(gallery))):
        queries = unit_rows(query_features[part.to(query_features.device)], device)
        relevant = _relevant_in_order(
            gallery, classes, queries, query_labels[part.to(query_labels.device)].to(device, torch.int32)
        )
        precisions.append(_average_precision(relevant).cpu())
        firsts.append(relevant.to(torch.uint8).argmax(dim=1).cpu())
    average_precision, first = 100.0 * torch.cat(precisions), torch.cat(firsts)
    recall = {k: 100.0 * float((first < k).double().mean()) for k in ks}
    left_out = len(query_features) - len(kept)
    return RetrievalResult(float(average_precision.mean()), recall, average_precision, first, left_out)


def _relevant_in_order(
    gallery: Float[Tensor, "gallery width"],
    classes: Int[Tensor, " gallery"],
    queries: Float[Tensor, "part width"],
    labels: Int[Tensor, " part"],
) -> Bool[Tensor, "part gallery"]:
    """Which images have the query's class, most similar first."""
    with full_precision(gallery.device):
        similarities = queries @ gallery.T
    order = similarities.argsort(dim=1, descending=True, stable=True)
    return classes[order] == labels[:, None]


def _average_precision(relevant: Bool[Tensor, "part gallery"]) -> Float[Tensor, " part"]:
    places = torch.arange(1, relevant.shape[1] + 1, device=relevant.device)
    found = relevant.cumsum(dim=1, dtype=torch.int32)
    shares = found.double().div_(places).mul_(relevant)
    return shares.sum(dim=1) / found[:, -1]


def _allowed_ks(ks: Sequence[int] | None, *, num_gallery: int) -> tuple[int, ...]:
    wrong = [k for k in ks or () if not 0 < k <= num_gallery]
    if wrong or (ks is not None and not ks):
        raise UserError(
            f"Recall at {wrong[0] if wrong else 'no k'} is not possible: k goes from 1 to the number of images in the "
            f"gallery, here {num_gallery}. Give another k or more images."
        )
    kept = tuple(sorted({k for k in (KS if ks is None else ks) if k <= num_gallery}))
    if ks is None and len(kept) < len(KS):
        _log.info("Retrieval leaves out recall at some of %s: there are only %d gallery images.", KS, num_gallery)
    return kept


@dataclass(frozen=True)
class Retrieval(Protocol):
    """Find images of the class of each test image among the training images; see ``retrieval_scores``.

    Attributes:
        ks: For recall; None for the usual ones as far as there are training images.
    """

    ks: tuple[int, ...] | None = None

    name: ClassVar[str] = "retrieval"
    headline: ClassVar[str] = "map"

    def settled(self, train_labels: Int[Tensor, " train"], test_labels: Int[Tensor, " test"]) -> "Retrieval":  # noqa: ARG002
        """With numbers of images for recall, each of them possible."""
        return replace(self, ks=_allowed_ks(self.ks, num_gallery=len(train_labels)))

    def __call__(self, train: Rows, test: Rows, *, num_classes: int, device: torch.device) -> Outcome:  # noqa: ARG002
        """Mean average precision and recall; test images whose class has no image in the gallery are left out."""
        result = retrieval_scores(train.features, train.labels, test.features, test.labels, ks=self.ks, device=device)
        values = {"map": result.average_precision}
        values |= {f"recall@{k}": percent(result.first < k) for k in result.recall}
        return Outcome(result.scores(), values, {"left_out": float(result.num_left_out)})
