"""Retrieval by cosine: how early the images of a query's class come among all images of the gallery."""

import logging
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from poa.config.protocols import RetrievalSettings
from poa.errors import UserError
from poa.evaluation.protocol import Outcome, Protocol, Rows, check_rows, full_precision, percent, unit_rows
from poa.features.whitening import whitening_of

KS = (1, 5, 10)
_PAIRS = 2**24
"""Pairs of query and gallery image looked at together, which bounds the memory: about 40 bytes each."""
_log = logging.getLogger(__name__)


class Retrieval(RetrievalSettings, Protocol):
    """Order the training images by cosine to each test image, and score where those of its class stand.

    Average precision is the mean, over the gallery's images of the query's class, of the share of that class among all
    images up to that one. Equal similarities are decided by image number. All in float32, shares in float64.
    """

    name: ClassVar[str] = "retrieval"
    headline: ClassVar[str] = "map"

    def resolved(self, train_labels: Int[Tensor, " train"], test_labels: Int[Tensor, " test"]) -> "Retrieval":  # noqa: ARG002
        """With numbers of images for recall, each of them possible."""
        return self.changed(ks=_allowed_ks(self.ks, num_gallery=len(train_labels)))

    @torch.inference_mode()
    def __call__(self, train: Rows, test: Rows, *, num_classes: int, device: torch.device) -> Outcome:  # noqa: ARG002
        """Mean average precision and recall; test images whose class has no image in the gallery are left out."""
        check_rows(train, test, num_classes=None, names=("gallery", "query"))
        ks = _allowed_ks(self.ks, num_gallery=len(train.features))
        whitening = None if self.whiten is None else whitening_of(train.features, damping=self.whiten)
        gallery, classes = unit_rows(train.features, device, whitening), train.labels.to(device, torch.int32)
        kept = torch.isin(test.labels.cpu(), train.labels.cpu()).nonzero()[:, 0]
        if len(kept) == 0:
            raise UserError(
                "No query image has its class in the gallery, so retrieval cannot be scored. Give a gallery "
                "with the classes of the queries, with the same numbers."
            )
        precisions, firsts = [], []
        for part in torch.split(kept, max(1, _PAIRS // len(gallery))):
            queries = unit_rows(test.features[part.to(test.features.device)], device, whitening)
            labels = test.labels[part.to(test.labels.device)].to(device, torch.int32)
            relevant = _relevant_in_order(gallery, classes, queries, labels)
            precisions.append(_average_precision(relevant).cpu())
            firsts.append(relevant.to(torch.uint8).argmax(dim=1).cpu())
        average_precision, first = 100.0 * torch.cat(precisions), torch.cat(firsts)
        scores = {f"recall@{k}": 100.0 * float((first < k).double().mean()) for k in ks}
        values = {"map": average_precision} | {f"recall@{k}": percent(first < k) for k in ks}
        left_out = float(len(test.features) - len(kept))
        return Outcome({"map": float(average_precision.mean())} | scores, values, {"left_out": left_out})


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
        _log.info(
            "Retrieval leaves out recall at some of %s: the number of gallery images is only %d.", KS, num_gallery
        )
    return kept
