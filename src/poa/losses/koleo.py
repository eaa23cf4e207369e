"""Kozachenko-Leonenko regulariser: features of different images keep apart."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

_EPSILON = 1e-8


@torch.no_grad()
def _nearest(
    rows: Float[Tensor, "rows width"], candidates: Float[Tensor, "candidates width"], *, offset: int
) -> Int[Tensor, "rows"]:
    assert offset + len(rows) <= len(candidates), "own rows must be among the candidates"
    similarity = rows @ candidates.T
    similarity.diagonal(offset).fill_(-torch.inf)
    return similarity.argmax(1)


def koleo(
    features: Float[Tensor, "rows width"],
    *,
    neighbours: Float[Tensor, "candidates width"] | None = None,
    offset: int = 0,
) -> Float[Tensor, ""]:
    """``-mean(log(distance to the nearest other row))`` on the unit sphere (Sablayrolles et al. 2019; DINOv2).

    Computes in float32 (float64 stays), also under autocast. Where two rows coincide, value and gradient are large but
    finite. With a single row there is no neighbour, and the loss is 0, still connected to its input.

    Args:
        features: One row an image, of one view: two views of an image would be neighbours.
        neighbours: Rows to look among, such as those of all processes; the features themselves if not given.
        offset: Where in ``neighbours`` the features' own rows start.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        rows = F.normalize(features.to(dtype), dim=1, eps=_EPSILON)
        candidates = rows if neighbours is None else F.normalize(neighbours.to(dtype), dim=1, eps=_EPSILON)
        if len(rows) == 0 or len(candidates) < 2:
            return rows.sum() * 0.0
        nearest = candidates[_nearest(rows, candidates, offset=offset)]
        distances = F.pairwise_distance(rows, nearest, eps=_EPSILON)
        return -(distances + _EPSILON).log().mean()
