"""Patch features as colours: their first three principal components over a set of images are red, green and blue."""

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from poa.errors import UserError
from poa.pictures.attention import grid_of

_TAIL = 0.02  # of the values at either end, which are clipped


def components(patches: Float[Tensor, "images patches width"]) -> Float[Tensor, "images patches 3"]:
    """The first three principal components of all patches of all images.

    A component has no sign of its own: the one is taken for which the largest entry of its direction is positive.

    Args:
        patches: Features.

    Raises:
        UserError: They have fewer than three values, or are not finite.
    """
    rows = patches.flatten(0, 1).double().cpu()
    if min(rows.shape) < 3:
        raise UserError(f"Three colours need three patches of three values, got {rows.shape[0]} of {rows.shape[1]}.")
    if not bool(rows.isfinite().all()):
        raise UserError("The patch features hold NaN or infinity, and have no colours. Has the network diverged?")
    centred = rows - rows.mean(dim=0)
    _, axes = torch.linalg.eigh(centred.T @ centred)
    directions = axes[:, -3:].flip(1)
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    found: Tensor = centred @ (directions * largest.sign())
    return found.view(*patches.shape[:2], 3).float()


def colours(patches: Float[Tensor, "images patches width"]) -> list[npt.NDArray[np.uint8]]:
    """RGB pictures with a pixel a patch; each component fills the range from 0 to 255 over all images.

    Args:
        patches: Features of some images.

    Raises:
        UserError: As of ``components``.
    """
    found = components(patches)
    grid = grid_of(patches.shape[1])
    ends = torch.quantile(found.flatten(0, 1).double(), torch.tensor([_TAIL, 1 - _TAIL], dtype=torch.float64), dim=0)
    scaled = ((found - ends[0]) / (ends[1] - ends[0]).clamp(min=1e-12)).clamp(0, 1)
    pixels = (scaled * 255).round().to(torch.uint8).view(-1, grid, grid, 3)
    return [each.numpy() for each in pixels]
