"""Images of which part is missing or out of place: hidden cells, shuffled patches, and another image's background.

The first two after Naseer et al. 2021 ("Intriguing Properties of Vision Transformers", Sec. 3.1 and 3.3) as POA's
official code runs them, the last after Xiao et al. 2021 ("Noise or Signal", Mixed-Rand).
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage
from torch import Tensor

from poa.errors import UserError
from poa.robustness.corruptions import generator_of

GRID = 14
"""Rows and columns of the published grid: patches of 16 pixels at 224."""
_HIDING, _SHUFFLING = 101, 102


def usual_grid(side: int) -> int:
    """Rows (and columns) of cells: the most that divide images of ``side`` pixels evenly, up to the published 14."""
    return max(grid for grid in range(1, GRID + 1) if side % grid == 0)


def check_grid(grid: int, side: int, *, setting: str) -> None:
    """See that images of ``side`` pixels can be cut into cells.

    Raises:
        UserError: They cannot; ``setting`` is the flag to change.
    """
    if grid < 1 or side % grid:
        fitting = ", ".join(str(each) for each in range(2, min(side, 32) + 1) if side % each == 0)
        raise UserError(
            f"Images of {side} pixels cannot be cut into {grid} x {grid} equal cells. "
            f"Set {setting} to one of {fitting}."
        )


def hide(
    images: Float[Tensor, "batch 3 side side"], *, share: float, grid: int, numbers: Sequence[int], seed: int = 0
) -> Float[Tensor, "batch 3 side side"]:
    """Set a share of the cells of each image to 0, which after normalisation is the mean colour.

    Cells are drawn for each image; those hidden at a share are hidden at all greater ones. As published, the number of
    cells is rounded down. (There one draw serves a batch of images.)

    Args:
        images: Normalised.
        share: Of the cells, from 0 to 1.
        grid: Rows and columns of cells; divides the side.
        numbers: Of the images in their set.
        seed: Of the choice.
    """
    count = int(share * grid * grid + 1e-9)  # 0.3 of 10 is 3, whatever floats make of it
    order = np.stack([generator_of(seed, number, stream=_HIDING).permutation(grid * grid) for number in numbers])
    places = torch.from_numpy(order).argsort(dim=1)
    kept = (places >= count).view(-1, 1, grid, grid).to(images.device)
    cell = images.shape[-1] // grid
    return images * kept.repeat_interleave(cell, 2).repeat_interleave(cell, 3)


def shuffle(
    images: UInt8[Tensor, "batch 3 side side"], *, grid: int, numbers: Sequence[int], seed: int = 0
) -> UInt8[Tensor, "batch 3 side side"]:
    """Cut each image into ``grid`` x ``grid`` cells and put them together in random order, each image in its own."""
    batch, channels, side, _ = images.shape
    cell = side // grid
    cells = images.view(batch, channels, grid, cell, grid, cell).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    order = np.stack([generator_of(seed, number, stream=_SHUFFLING).permutation(grid * grid) for number in numbers])
    rows = torch.arange(batch, device=images.device)[:, None]
    mixed = cells[rows, torch.from_numpy(order).to(images.device)].view(batch, grid, grid, channels, cell, cell)
    return mixed.permute(0, 3, 1, 4, 2, 5).reshape(images.shape)


def swap_background(
    image: UInt8[Tensor, "3 side side"],
    mask: Bool[Tensor, "side side"],
    other: UInt8[Tensor, "3 side side"],
    other_mask: Bool[Tensor, "side side"],
) -> UInt8[Tensor, "3 side side"]:
    """The object of an image before the background of another one.

    Where the other image shows its own object, its nearest background pixel takes the place, so that nothing of that
    object is left but its outline. (The published set tiles the largest rectangle of background.) Masks are true where
    the objects are.
    """
    nearest = ndimage.distance_transform_edt(other_mask.numpy(), return_distances=False, return_indices=True)
    filled = other[:, torch.from_numpy(nearest[0]).long(), torch.from_numpy(nearest[1]).long()]
    return torch.where(mask, image, filled)
