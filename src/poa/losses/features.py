"""How far features are from a teacher's: in its space, or by which patches of an image are alike, in any space."""

from math import isqrt

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from poa.machine.precision import wide


def feature_distance(
    given: Float[Tensor, "rows width"], asked: Float[Tensor, "rows width"], *, smooth_l1: float
) -> Float[Tensor, ""]:
    """Cosine distance and smooth L1, as AM-RADIO takes them (arXiv 2312.06709, Sec. 3).

    Mean over rows of ``(1 - s) * (1 - cos(given, asked)) + s * mean over channels of h(given - asked)``.

    ``s`` is ``smooth_l1`` and ``h(x) = x * x / 2`` where ``|x| < 1``, else ``|x| - 1/2``. It computes in float32
    (float64 stays), also under autocast; without rows it is 0, still connected to its inputs.

    Args:
        given: A student's features in the teacher's space.
        asked: The teacher's; no gradient reaches them.
        smooth_l1: Share of the second term.
    """
    with torch.autocast(given.device.type, enabled=False):
        given, asked = wide(given), wide(asked.detach())
        angles = (1 - F.cosine_similarity(given, asked, dim=1)).sum() / max(len(given), 1)
        lengths = F.smooth_l1_loss(given, asked, reduction="sum") / max(given.numel(), 1)
        return (1 - smooth_l1) * angles + smooth_l1 * lengths


def gram_distance(
    given: Float[Tensor, "images patches width"], asked: Float[Tensor, "images patches other_width"]
) -> Float[Tensor, ""]:
    """Mean over images and pairs of patches of ``(cos(given_i, given_j) - cos(asked_i, asked_j)) ** 2``.

    The Gram matrix of an image's patches has no width (DINOv3's Gram anchoring, arXiv 2508.10104, Sec. 4; the mean is
    that of its code). It computes in float32 (float64 stays), also under autocast.

    Args:
        given: A student's features.
        asked: A teacher's, of the same patches; no gradient reaches them.
    """
    with torch.autocast(given.device.type, enabled=False):
        directions = (F.normalize(wide(rows), dim=2) for rows in (given, asked.detach()))
        ours, theirs = (rows @ rows.mT for rows in directions)
        return F.mse_loss(ours, theirs)


def resized_grid(
    patches: Float[Tensor, "batch patches width"], number: int
) -> Float[Tensor, "batch other_patches width"]:
    """A square grid of patches with another number of them: means over areas if that is smaller, else bilinear."""
    if patches.shape[1] == number:
        return patches
    before, after = isqrt(patches.shape[1]), isqrt(number)
    assert (before**2, after**2) == (patches.shape[1], number), "grids are square"
    maps = patches.mT.reshape(len(patches), -1, before, before)
    if after < before:
        return F.adaptive_avg_pool2d(maps, after).flatten(2).mT
    return F.interpolate(maps, size=(after, after), mode="bilinear").flatten(2).mT
