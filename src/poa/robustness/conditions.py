"""The conditions under which networks are tested: clean images, and those that are corrupted or lack some part."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from poa.config.protocols import RobustnessSettings
from poa.data.images import Preprocessing
from poa.data.index import ImageIndex
from poa.data.loader import read_or_none
from poa.data.resize import centre_crop
from poa.data.workers import Plan, prepare
from poa.errors import UserError
from poa.robustness.corruptions import CORRUPTIONS, check_corruptions, corrupt
from poa.robustness.occlusion import MaskedImages, check_grid, hide, shuffle, usual_grid

GRIDS = (2, 4, 8, 14)
"""Square ones of the published grids, as far as they divide the images."""
_MOST = 128
"""Images at a time."""
_BYTES = 2**27
"""Of images under all conditions that a worker hands over at a time."""


Change = Callable[..., Tensor]
"""What a condition does to images: ``change(images, numbers=...)``, whose numbers in their index key what is drawn."""


def unchanged(images: Tensor, *, numbers: Sequence[int]) -> Tensor:  # noqa: ARG001  # as others
    """Images as they are."""
    return images


@dataclass(frozen=True)
class Condition:
    """What is done to test images.

    Attributes:
        name: Of the score.
        pixels: What is done to the pixels, by workers.
        normalised: What is done to the normalised images.
        needs_object: Whether only images count whose crop shows their object.
    """

    name: str
    pixels: Change = unchanged
    normalised: Change = unchanged
    needs_object: bool = False


def occluded(share: float, grid: int, seed: int) -> Condition:
    """A share of the cells of a grid has the mean colour."""
    return Condition(f"occlusion {share:g}", normalised=partial(hide, share=share, grid=grid, seed=seed))


def shuffled(grid: int, seed: int) -> Condition:
    """The cells of a grid are in random order."""
    return Condition(f"shuffle {grid}x{grid}", partial(shuffle, grid=grid, seed=seed))


def corrupted(name: str, severity: int, seed: int) -> Condition:
    """A common corruption."""
    return Condition(f"{name} {severity}", partial(corrupt, name=name, severity=severity, seed=seed))


class Robustness(RobustnessSettings):
    """Conditions and classifier."""

    def resolved(self, side: int) -> "Robustness":
        """The same with every setting as it will be used on images of ``side`` pixels, without repetitions.

        Raises:
            UserError: A setting is invalid, or does not fit images of that side.
        """
        corruptions = tuple(CORRUPTIONS) if self.corruptions is None else self.corruptions
        if corruptions and not self.severities:
            raise UserError("Corruptions need at least one severity from 1 to 5.")
        check_corruptions(corruptions, self.severities)
        grid = usual_grid(side) if self.grid is None else self.grid
        shuffles = tuple(each for each in GRIDS if side % each == 0) if self.shuffle is None else self.shuffle
        check_grid(grid, side, setting="--grid")
        for each in shuffles:
            check_grid(each, side, setting="--shuffle")
        return self.changed(
            occlusion=tuple(sorted(set(self.occlusion))),
            grid=grid,
            shuffle=tuple(sorted(set(shuffles))),
            corruptions=tuple(dict.fromkeys(corruptions)),
            severities=tuple(sorted(set(self.severities))),
        )

    def conditions(self, masked: MaskedImages | None = None) -> tuple[Condition, ...]:
        """All conditions, clean images first; of resolved settings. With masks, backgrounds are swapped as well."""
        assert self.grid is not None
        assert self.shuffle is not None
        assert self.corruptions is not None
        own = Condition("background own", needs_object=True)
        return (
            Condition("clean"),
            *(occluded(share, self.grid, self.seed) for share in self.occlusion),
            *(shuffled(grid, self.seed) for grid in self.shuffle),
            *(corrupted(name, severity, self.seed) for name in self.corruptions for severity in self.severities),
            *(() if masked is None else (own, replace(own, name="background swapped", pixels=masked.swapped))),
        )


class ConditionBatch(NamedTuple):
    """Some test images under all conditions.

    Attributes:
        numbers: Which images of the index; bad ones are left out.
        images: Condition by condition, still without ``Condition.normalised``.
        counts: Which of them count.
        num_tried: Images read, bad ones among them.
    """

    numbers: tuple[int, ...]
    images: UInt8[Tensor, "conditions batch 3 side side"]
    counts: Bool[Tensor, "conditions batch"]
    num_tried: int


def condition_batches(
    index: ImageIndex,
    conditions: tuple[Condition, ...],
    preprocessing: Preprocessing,
    *,
    masked: MaskedImages | None = None,
    workers: int = 0,
) -> Iterator[ConditionBatch]:
    """All images of an index in order, each decoded once, as its central crop under every condition."""
    return prepare(_Batches(index, conditions, preprocessing, masked), workers=workers)


@dataclass(frozen=True, eq=False)
class _Batches(Plan[ConditionBatch]):
    """What a worker does."""

    index: ImageIndex
    conditions: tuple[Condition, ...]
    preprocessing: Preprocessing
    masked: MaskedImages | None

    @property
    def at_once(self) -> int:
        return max(1, min(_MOST, _BYTES // (len(self.conditions) * 3 * self.preprocessing.image_size**2)))

    def __len__(self) -> int:
        return -(-len(self.index) // self.at_once)

    def make(self, number: int) -> ConditionBatch:
        wanted = range(number * self.at_once, min((number + 1) * self.at_once, len(self.index)))
        side, resize = self.preprocessing.image_size, self.preprocessing.resize
        crops = {}
        for each in wanted:
            image = read_or_none(self.index, each)
            if image is not None:
                crops[each] = centre_crop(image, size=side, resize_to=resize)
        if not crops:
            none = torch.empty(len(self.conditions), 0, 3, side, side, dtype=torch.uint8)
            return ConditionBatch((), none, torch.empty(len(self.conditions), 0, dtype=torch.bool), len(wanted))
        clean, numbers = torch.cat(list(crops.values())), tuple(crops)
        images = torch.stack([condition.pixels(clean, numbers=numbers) for condition in self.conditions])
        counts = torch.ones(len(self.conditions), len(numbers), dtype=torch.bool)
        if self.masked is not None:
            counts[[condition.needs_object for condition in self.conditions]] = self.masked.show_object(numbers)
        return ConditionBatch(numbers, images, counts, len(wanted))
