"""Patch features as colours, as nearest neighbours, and as matches, which are drawn as lines between two images."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from poa.data.views import Box
from poa.errors import UserError
from poa.evaluation.knn import nearest_images
from poa.pictures.attention import grid_of
from poa.plots.figure import INK, SHEET_DPI, printable, save

_TAIL = 0.02  # of the values at either end, which are clipped


def components(patches: Float[Tensor, "images patches width"]) -> Float[Tensor, "images patches 3"]:
    """The first three principal components of all patches of all images.

    A component has no sign of its own: the one is taken for which the largest entry of its direction is positive.
    """
    rows = patches.flatten(0, 1).double().cpu()
    if min(rows.shape) < 3:
        raise UserError(
            f"Principal components need three patches of three values or more, got {rows.shape[0]} of {rows.shape[1]}."
        )
    if not bool(rows.isfinite().all()):
        raise UserError(
            "The patch features contain NaN or infinity, so they cannot be drawn. The network may have diverged."
        )
    centred = rows - rows.mean(dim=0)
    _, axes = torch.linalg.eigh(centred.T @ centred)
    directions = axes[:, -3:].flip(1)
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    found: Tensor = centred @ (directions * largest.sign())
    return found.view(*patches.shape[:2], 3).float()


def colours(patches: Float[Tensor, "images patches width"]) -> list[npt.NDArray[np.uint8]]:
    """RGB pictures with a pixel a patch; the first three principal components over all images fill 0 to 255."""
    found = components(patches)
    grid = grid_of(patches.shape[1])
    ends = torch.quantile(found.flatten(0, 1).double(), torch.tensor([_TAIL, 1 - _TAIL], dtype=torch.float64), dim=0)
    scaled = ((found - ends[0]) / (ends[1] - ends[0]).clamp(min=1e-12)).clamp(0, 1)
    pixels = (scaled * 255).round().to(torch.uint8).view(-1, grid, grid, 3)
    return [each.numpy() for each in pixels]


SHOWN = 12
"""Lines between two images (POA official code)."""


class Match(NamedTuple):
    """Numbers of two patches, each in its image, and the cosine of their features."""

    first: int
    second: int
    cosine: float


class Region(NamedTuple):
    """Where a view lies in its image, in shares of the image's sides, and whether it is mirrored."""

    top: float
    left: float
    height: float
    width: float
    flipped: bool


def region_of(box: Box, *, side: int, flipped: bool) -> Region:
    """A crop of a square image as a region."""
    return Region(box.top / side, box.left / side, box.height / side, box.width / side, flipped)


def matches(
    first: Float[Tensor, "patches width"], second: Float[Tensor, "others width"], *, most: int = SHOWN
) -> list[Match]:
    """Pairs of patches of two images that are each other's nearest by cosine, the most alike first."""
    cosines = F.normalize(first.double().cpu(), dim=1) @ F.normalize(second.double().cpu(), dim=1).T
    forth, back = cosines.argmax(dim=1), cosines.argmax(dim=0)
    mutual = [place for place in range(len(forth)) if int(back[forth[place]]) == place]
    found = [Match(place, int(forth[place]), float(cosines[place, forth[place]])) for place in mutual]
    return sorted(found, key=lambda match: (-match.cosine, match.first))[:most]


def same_point(first: Region, second: Region, *, grid: int) -> tuple[Int[Tensor, " patches"], Bool[Tensor, " patches"]]:
    """For the middle of each patch of a view, the patch of another view there, and whether that view shows it."""
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
    """For each patch that both views show: whether its nearest patch in the other view covers the same point."""
    wanted, is_seen = same_point(*regions, grid=grid_of(len(first)))
    nearest = (F.normalize(first.double().cpu(), dim=1) @ F.normalize(second.double().cpu(), dim=1).T).argmax(dim=1)
    return (nearest == wanted)[is_seen]


NEIGHBOURS = 5
_CHUNK = 2048


def neighbours(
    features: Float[Tensor, "images width"], queries: Sequence[int], *, k: int = NEIGHBOURS
) -> tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]:
    """Cosines and numbers of the k images nearest to each query, which is one of the images itself; nearest first."""
    if len(features) <= k:
        raise UserError(f"{k} neighbours need more than {k} images, got {len(features)}. Give more images.")
    if not bool(features.isfinite().all()):
        raise UserError(
            "The features contain NaN or infinity, so they have no neighbours. The network may have diverged."
        )
    wanted = torch.tensor(list(queries))
    cosines, images = nearest_images(features, features[wanted], k=k + 1, device=features.device, chunk=_CHUNK)
    is_other = images.cpu() != wanted[:, None]
    is_other[is_other.all(dim=1), -1] = False  # copies of the query came before it: the last one goes
    return cosines.cpu()[is_other].view(-1, k), images.cpu()[is_other].view(-1, k)


_CELL, _GAP = 2.3, 0.5  # inches
_TURN = (5**0.5 - 1) / 2  # of the colour wheel: the golden section spreads any number of hues well


class Pair(NamedTuple):
    """Two square RGB images with the matches of one network between them, and a caption above."""

    caption: str
    first: npt.NDArray[np.uint8]
    second: npt.NDArray[np.uint8]
    matches: Sequence[Match]
    grid: int
    """Rows and columns of patches of both images."""
    is_wrong: Sequence[bool] = ()
    """Whether a match is known to be wrong, for each; drawn dashed."""


def pairs(found: Sequence[Pair], *, out: Path, columns: int = 2) -> None:
    """Draw the matches of each network between two images, some networks side by side.

    The line and the dots of a pair of patches have one colour, as different as possible from those before it.
    """
    columns = min(columns, len(found))
    rows = -(-len(found) // columns)
    width, height = columns * (2 * _CELL + _GAP + 0.25) + 0.1, rows * (_CELL + 0.34) + 0.06
    figure = Figure(figsize=(width, height))
    for number, pair in enumerate(found):
        row, column = divmod(number, columns)
        left, bottom = 0.1 + column * (2 * _CELL + _GAP + 0.25), height - (row + 1) * (_CELL + 0.34)
        box = (left / width, bottom / height, (2 * _CELL + _GAP) / width, _CELL / height)
        _draw(figure.add_axes(box), pair)
    save(figure, out, dpi=SHEET_DPI)


def _draw(axes: Axes, pair: Pair) -> None:
    """In units of an image's side: the first image from 0 to 1, the second behind the gap."""
    start = 1 + _GAP / _CELL
    axes.imshow(pair.first, extent=(0, 1, 1, 0), interpolation="nearest")
    axes.imshow(pair.second, extent=(start, start + 1, 1, 0), interpolation="nearest")
    axes.set_xlim(0, start + 1)
    axes.set_ylim(1, 0)
    axes.axis("off")
    axes.set_title(printable(pair.caption), loc="left", fontsize=9, color=INK, pad=3, parse_math=False)
    dashed = pair.is_wrong or [False] * len(pair.matches)
    for number, (match, is_dashed) in enumerate(zip(pair.matches, dashed, strict=True)):
        (top, left), (low, right) = (divmod(patch, pair.grid) for patch in (match.first, match.second))
        ends = (
            [(left + 0.5) / pair.grid, start + (right + 0.5) / pair.grid],
            [(each + 0.5) / pair.grid for each in (top, low)],
        )
        colour = colormaps["hsv"](number * _TURN % 1)
        line = "--" if is_dashed else "-"
        if not is_dashed:
            axes.plot(*ends, color="white", linewidth=2.2, alpha=0.6, solid_capstyle="round")
        axes.plot(
            *ends,
            color=colour,
            linestyle=line,
            linewidth=1.3,
            marker="o",
            markersize=4.5,
            markeredgecolor="white",
            markeredgewidth=0.7,
        )
