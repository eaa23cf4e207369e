"""Which patches of two images a network holds for the same, and how often it is right about two views of one image."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from poa.data.views import Box
from poa.pictures.attention import grid_of

SHOWN = 12
"""Lines between two images (POA official code)."""


class Match(NamedTuple):
    """Two patches, and how alike they are.

    Attributes:
        first: Number of the patch in the first image.
        second: Number in the second.
        cosine: Of their features.
    """

    first: int
    second: int
    cosine: float


class Region(NamedTuple):
    """Where a view lies in its image, in shares of the image's sides.

    Attributes:
        top: First row.
        left: First column.
        height: Of the region.
        width: Of the region.
        flipped: Whether left and right are exchanged.
    """

    top: float
    left: float
    height: float
    width: float
    flipped: bool


def region_of(box: Box, *, side: int, flipped: bool) -> Region:
    """A crop of a square image as a region.

    Args:
        box: The crop, in pixels.
        side: Of the image.
        flipped: Whether the crop was mirrored.
    """
    return Region(box.top / side, box.left / side, box.height / side, box.width / side, flipped)


def matches(
    first: Float[Tensor, "patches width"], second: Float[Tensor, "others width"], *, most: int = SHOWN
) -> list[Match]:
    """Pairs of patches that are each other's nearest by cosine, the most alike first.

    Args:
        first: Patch features of an image.
        second: Of another.
        most: How many pairs.
    """
    cosines = F.normalize(first.double().cpu(), dim=1) @ F.normalize(second.double().cpu(), dim=1).T
    forth, back = cosines.argmax(dim=1), cosines.argmax(dim=0)
    mutual = [place for place in range(len(forth)) if int(back[forth[place]]) == place]
    found = [Match(place, int(forth[place]), float(cosines[place, forth[place]])) for place in mutual]
    return sorted(found, key=lambda match: (-match.cosine, match.first))[:most]


def same_point(first: Region, second: Region, *, grid: int) -> tuple[Int[Tensor, " patches"], Bool[Tensor, " patches"]]:
    """For each patch of a view, the patch of another view that covers the same point of the image.

    Args:
        first: Where the view lies.
        second: Where the other view lies.
        grid: Rows and columns of patches of both.

    Returns:
        Numbers of patches of the other view, and whether it shows the point at all. The point is a patch's middle.
    """
    middles = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    rows, columns = torch.meshgrid(middles, middles, indexing="ij")
    columns = 1 - columns if first.flipped else columns
    down = (first.top + rows * first.height - second.top) / second.height
    right = (first.left + columns * first.width - second.left) / second.width
    right = 1 - right if second.flipped else right
    is_seen = (down >= 0) & (down < 1) & (right >= 0) & (right < 1)
    places = (down * grid).floor().clamp(0, grid - 1) * grid + (right * grid).floor().clamp(0, grid - 1)
    return places.long().flatten(), is_seen.flatten()


def right_matches(
    first: Float[Tensor, "patches width"], second: Float[Tensor, "patches width"], regions: tuple[Region, Region]
) -> Bool[Tensor, " seen"]:
    """For each patch that both views show: whether its nearest patch in the other view covers the same point.

    Args:
        first: Patch features of a view.
        second: Of another view of the same image.
        regions: Where the views lie.
    """
    wanted, is_seen = same_point(*regions, grid=grid_of(len(first)))
    nearest = (F.normalize(first.double().cpu(), dim=1) @ F.normalize(second.double().cpu(), dim=1).T).argmax(dim=1)
    return (nearest == wanted)[is_seen]
