"""Which patches are hidden from the students (block-wise, as in BEiT and iBOT), and which they do not compute."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from poa.errors import UserError

TRIES = 10
SELECTION_STREAM = 2  # keeps the choice of crops apart from the crop parameters drawn with the same seed


@dataclass(frozen=True, slots=True)
class Masking:
    """How much of which global crops is hidden."""

    grid: int
    """Rows (and columns) of patches in a global crop."""
    share: float = 0.5
    """Of the global crops that get a mask."""
    ratio: tuple[float, float] = (0.1, 0.5)
    """Least and greatest share of the patches of a masked crop that are hidden."""
    min_block: int = 4
    """Least area of one block, in patches."""
    max_block: float = 0.5
    """Greatest area of one block, as a share of all patches."""
    dropped: float = 0.0
    """Share of the patches of every global crop that the students do not compute; no crop has a mask then."""
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    """Least and greatest height-to-width ratio of a block."""

    def __post_init__(self) -> None:
        if self.grid < 2:
            raise UserError(f"Masks need at least 2x2 patches, got a {self.grid}x{self.grid} grid. Use larger crops.")
        if not 0 <= self.share <= 1:
            raise UserError(f"The share of masked crops must lie in 0 ... 1, got {self.share}.")
        if not 0 <= self.ratio[0] <= self.ratio[1] <= 1:
            raise UserError(f"The mask ratio must be two ascending numbers in 0 ... 1, got {self.ratio}.")
        if self.min_block < 1 or not 0 < self.max_block <= 1:
            raise UserError(
                f"Blocks need min_block >= 1 and 0 < max_block <= 1, got {self.min_block} and {self.max_block}."
            )
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise UserError(f"The aspect of blocks must be two ascending numbers above 0, got {self.aspect}.")


def masks_for(
    positions: Sequence[int], *, masking: Masking, batch_size: int, seed: int, step: int
) -> Bool[Tensor, "crops patches"]:
    """Masks of the global crops of some images of a batch.

    A share of the global crops of the *whole* batch get a mask, and their targets cover the range of ratios evenly.
    Which crop gets which interval is one permutation for each step, and each mask has random numbers of its own, so
    a process draws only its own rows and the result does not depend on the number of processes. (In the official code
    each process spreads the intervals over its own crops; the numbers are those of iBOT and DINOv2.)

    Args:
        positions: Of the images in the global batch.
        masking: How much is hidden.
        batch_size: Images of the global batch.
        seed: Of the run.
        step: Of the training.

    Returns:
        True where a patch is hidden; a row for the first crop of each image, then a row for the second of each.
    """
    num_crops = 2 * batch_size
    num_masked = 0 if masking.dropped else int(num_crops * masking.share)
    edges = np.linspace(*masking.ratio, num_masked + 1)
    order = _permutation(num_crops, seed=seed, step=step)
    masks = np.zeros((2 * len(positions), masking.grid, masking.grid), dtype=np.bool_)
    for row, crop in enumerate(_crops(positions, batch_size)):
        interval = order[crop]
        if interval >= num_masked:
            continue
        generator = random.Random(f"mask {seed} {step} {crop}")
        ratio = generator.uniform(edges[interval], edges[interval + 1])
        masks[row] = block_mask(max(1, int(masking.grid**2 * ratio)), masking=masking, generator=generator)
    return torch.from_numpy(masks.reshape(len(masks), -1))


def kept_for(
    positions: Sequence[int], *, masking: Masking, batch_size: int, seed: int, step: int
) -> Int[Tensor, "crops kept"] | None:
    """The patches of the global crops of some images that students compute, ascending; None for all.

    As many of each crop, chosen by chance with random numbers of the crop, in the rows of :func:`masks_for`.
    """
    if not masking.dropped:
        return None
    patches, number = masking.grid**2, num_kept(masking.grid, masking.dropped)
    generators = [random.Random(f"kept {seed} {step} {crop}") for crop in _crops(positions, batch_size)]
    rows = [sorted(generator.sample(range(patches), number)) for generator in generators]
    return torch.tensor(rows).view(len(rows), number)


def num_kept(grid: int, dropped: float) -> int:
    """How many patches of a crop students compute if a share of them is left out."""
    return max(1, round(grid**2 * (1.0 - dropped)))


def block_mask(target: int, *, masking: Masking, generator: random.Random) -> npt.NDArray[np.bool_]:
    """Hide rectangles until ``target`` patches are hidden or no further rectangle fits.

    The target is never exceeded, at times missed. Where it is less than ``min_block``, as on small grids, blocks may be
    as small as the target. Numbers are drawn in the order of the official code: area, log-aspect, top, left.
    """
    mask = np.zeros((masking.grid, masking.grid), dtype=np.bool_)
    largest = max(1, int(masking.grid**2 * masking.max_block))
    smallest = min(masking.min_block, target)
    remaining = target
    while remaining > 0:
        added = _add_block(mask, smallest=smallest, limit=min(remaining, largest), masking=masking, generator=generator)
        if added == 0:
            break
        remaining -= added
    return mask


def _add_block(
    mask: npt.NDArray[np.bool_], *, smallest: int, limit: int, masking: Masking, generator: random.Random
) -> int:
    """Hide one more rectangle in place; number of patches it added, at most ``limit``, 0 if none fits."""
    log_aspect = math.log(masking.aspect[0]), math.log(masking.aspect[1])
    for _ in range(TRIES):
        area = generator.uniform(smallest, limit)
        aspect = math.exp(generator.uniform(*log_aspect))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= masking.grid or width >= masking.grid:
            continue
        top = generator.randint(0, masking.grid - height)
        left = generator.randint(0, masking.grid - width)
        block = mask[top : top + height, left : left + width]
        added = height * width - int(np.count_nonzero(block))
        if 0 < added <= limit:
            block[:] = True
            return added
    return 0


def _crops(positions: Sequence[int], batch_size: int) -> list[int]:
    """Numbers of the global crops of some images in the global batch: first views, then second views."""
    return [view * batch_size + position for view in range(2) for position in positions]


def _permutation(length: int, *, seed: int, step: int) -> npt.NDArray[np.int64]:
    """A random order of ``length`` crops that all processes agree on."""
    bits = np.random.Philox(key=np.array([seed, step], dtype=np.uint64), counter=[0, 0, 0, SELECTION_STREAM])
    return np.random.Generator(bits).permutation(length)
