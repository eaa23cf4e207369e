"""The contrastive losses of MoCo v2, MoCo v3 and SimCLR by their names, each made of its similarities."""

from jaxtyping import Float
from torch import Tensor

from poa.losses.contrastive import batch_similarities, contrast, pair_similarities, queue_similarities


def info_nce(
    queries: Float[Tensor, "rows width"],
    keys: Float[Tensor, "rows width"],
    queue: Float[Tensor, "queued width"],
    *,
    temperature: float = 0.2,
) -> Float[Tensor, ""]:
    """MoCo v2: cross-entropy of ``[q.k, queue @ q] / temperature`` with the own key as the right answer."""
    return contrast(queue_similarities(queries, keys, queue), temperature=temperature)


def moco_v3(
    queries: Float[Tensor, "rows width"], keys: Float[Tensor, "rows width"], *, temperature: float = 1.0
) -> Float[Tensor, ""]:
    """MoCo v3, Algorithm 1, one pairing: ``2 * temperature`` times the cross-entropy of ``keys @ q / temperature``."""
    return 2 * temperature * contrast(batch_similarities(queries, keys), temperature=temperature)


def nt_xent(
    first: Float[Tensor, "batch width"], second: Float[Tensor, "batch width"], *, temperature: float = 0.1
) -> Float[Tensor, ""]:
    """SimCLR, Sec. 2.1: cross-entropy of each row's similarities to all others, the image's other view being right."""
    return contrast(pair_similarities(first, second), temperature=temperature)
