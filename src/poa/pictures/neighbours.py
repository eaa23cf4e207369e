"""The images that a network finds most alike."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from poa.errors import UserError
from poa.evaluation.knn import nearest_images

NEIGHBOURS = 5
_CHUNK = 2048


def neighbours(
    features: Float[Tensor, "images width"], queries: Sequence[int], *, k: int = NEIGHBOURS
) -> tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]:
    """The k nearest other images by cosine, nearest first.

    Args:
        features: Of all images.
        queries: For which of them.
        k: How many.

    Returns:
        Cosines, and numbers of images.

    Raises:
        UserError: There are no more than k images, or features are not finite.
    """
    if len(features) <= k:
        raise UserError(f"{k} neighbours need more than {k} images, got {len(features)}. Give more images.")
    if not bool(features.isfinite().all()):
        raise UserError("The features hold NaN or infinity, and have no neighbours. Has the network diverged?")
    wanted = torch.tensor(list(queries))
    cosines, images = nearest_images(features, features[wanted], k=k + 1, device=features.device, chunk=_CHUNK)
    is_other = images.cpu() != wanted[:, None]
    is_other[is_other.all(dim=1), -1] = False  # copies of the query came before it: the last one goes
    return cosines.cpu()[is_other].view(-1, k), images.cpu()[is_other].view(-1, k)
