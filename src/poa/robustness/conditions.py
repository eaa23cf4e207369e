"""All ways in which test images are disturbed to see how well a network bears it, and which of them are asked for."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from poa.errors import UserError
from poa.robustness.backgrounds import MaskedImages, kept
from poa.robustness.classifiers import Kind
from poa.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from poa.robustness.corruptions import check as check_corruptions
from poa.robustness.occlusion import check_grid, hide, shuffle, swap_background, usual_grid

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
GRIDS = (2, 4, 8, 14)
"""Square ones of the published grids, as far as they divide the images."""
Pixels = UInt8[Tensor, "batch 3 side side"]
Normalised = Float[Tensor, "batch 3 side side"]


class Disturbed(NamedTuple):
    """Images after a disturbance.

    Attributes:
        images: As many as before.
        is_judged: Which of them count.
    """

    images: Pixels
    is_judged: Bool[Tensor, " batch"]


@dataclass(frozen=True)
class Disturbance(ABC):
    """One condition under which networks are judged."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the score."""

    def make(self, images: Pixels, numbers: Sequence[int]) -> Disturbed:
        """Disturb pixels; by default leave them.

        Args:
            images: As networks are shown them.
            numbers: Of the images in their index.
        """
        return Disturbed(self.pixels(images, numbers), torch.ones(len(images), dtype=torch.bool))

    def pixels(self, images: Pixels, numbers: Sequence[int]) -> Pixels:  # noqa: ARG002  # for subclasses
        """Images with the same rows."""
        return images

    def finish(self, images: Normalised, numbers: Sequence[int]) -> Normalised:  # noqa: ARG002
        """Disturb normalised images; by default leave them.

        Args:
            images: What ``make`` gave, normalised.
            numbers: Of the images in their index.
        """
        return images


@dataclass(frozen=True)
class Clean(Disturbance):
    """Images as they are."""

    @property
    def name(self) -> str:
        """Of the score."""
        return "clean"


@dataclass(frozen=True)
class Occluded(Disturbance):
    """A share of the cells of a grid has the mean colour; see ``occlusion.hide``."""

    share: float
    grid: int
    seed: int

    @property
    def name(self) -> str:
        """Of the score."""
        return f"occlusion {self.share:g}"

    def finish(self, images: Normalised, numbers: Sequence[int]) -> Normalised:
        """Hide the cells."""
        return hide(images, share=self.share, grid=self.grid, numbers=numbers, seed=self.seed)


@dataclass(frozen=True)
class Shuffled(Disturbance):
    """The cells of a grid are in random order; see ``occlusion.shuffle``."""

    grid: int
    seed: int

    @property
    def name(self) -> str:
        """Of the score."""
        return f"shuffle {self.grid}x{self.grid}"

    def pixels(self, images: Pixels, numbers: Sequence[int]) -> Pixels:
        """Put the cells elsewhere."""
        return shuffle(images, grid=self.grid, numbers=numbers, seed=self.seed)


@dataclass(frozen=True)
class Corrupted(Disturbance):
    """A common corruption; see ``corruptions.corrupt``."""

    corruption: str
    severity: int
    seed: int

    @property
    def name(self) -> str:
        """Of the score."""
        return f"{self.corruption} {self.severity}"

    def pixels(self, images: Pixels, numbers: Sequence[int]) -> Pixels:
        """Corrupt them."""
        return corrupt(images, self.corruption, self.severity, numbers=numbers, seed=self.seed)


@dataclass(frozen=True)
class OwnBackground(Disturbance):
    """Images as they are, of which those count that show their object."""

    masks: MaskedImages

    @property
    def name(self) -> str:
        """Of the score."""
        return "background own"

    def make(self, images: Pixels, numbers: Sequence[int]) -> Disturbed:
        """Leave out images without object."""
        return Disturbed(images, kept([self.masks.mask(number) for number in numbers]))


@dataclass(frozen=True)
class SwappedBackground(Disturbance):
    """The background comes from an image of another class; images count that show their object."""

    masks: MaskedImages

    @property
    def name(self) -> str:
        """Of the score."""
        return "background swapped"

    def make(self, images: Pixels, numbers: Sequence[int]) -> Disturbed:
        """Swap backgrounds."""
        masks = [self.masks.mask(number) for number in numbers]
        swapped = [
            swap_background(image, mask, *self.masks.background(number))
            for image, mask, number in zip(images, masks, numbers, strict=True)
        ]
        return Disturbed(torch.stack(swapped), kept(masks))


@dataclass(frozen=True)
class Robustness:
    """What is asked for.

    Attributes:
        occlusion: Shares of hidden cells, above 0 and below 1; none leaves occlusion out.
        grid: Rows and columns of cells that are hidden; None for ``occlusion.usual_grid``.
        shuffle: Rows and columns of shuffled cells; None for the usual ones that divide the images.
        corruptions: By name; none leaves them out.
        severities: Of the corruptions, from 1 to 5.
        judge: The classifier of frozen features.
        k: Number of neighbours of ``knn``.
        seed: Of all that is drawn.
    """

    occlusion: tuple[float, ...] = SHARES
    grid: int | None = None
    shuffle: tuple[int, ...] | None = None
    corruptions: tuple[str, ...] = tuple(CORRUPTIONS)
    severities: tuple[int, ...] = SEVERITIES
    judge: Kind = "knn"
    k: int = 20
    seed: int = 0

    def settled(self, side: int) -> "Robustness":
        """The same with every setting as it will be used, without repetitions.

        Args:
            side: Of the images, in pixels.

        Raises:
            UserError: A setting makes no sense, or does not suit images of that side.
        """
        wrong = [share for share in self.occlusion if not 0 < share < 1]
        if wrong:
            raise UserError(f"Shares of hidden cells lie between 0 and 1, got {wrong[0]:g}. Such as --occlusion 0.5.")
        if self.seed < 0:
            raise UserError(f"A seed is 0 or more, got {self.seed}.")
        if self.corruptions and not self.severities:
            raise UserError("Corruptions need at least one severity from 1 to 5.")
        check_corruptions(self.corruptions, self.severities)
        grid = usual_grid(side) if self.grid is None else self.grid
        shuffles = tuple(each for each in GRIDS if side % each == 0) if self.shuffle is None else self.shuffle
        check_grid(grid, side, setting="--grid")
        for each in shuffles:
            check_grid(each, side, setting="--shuffle")
        return replace(
            self,
            occlusion=tuple(sorted(set(self.occlusion))),
            grid=grid,
            shuffle=tuple(sorted(set(shuffles))),
            corruptions=tuple(dict.fromkeys(self.corruptions)),
            severities=tuple(sorted(set(self.severities))),
        )

    def conditions(self, masks: MaskedImages | None = None) -> tuple[Disturbance, ...]:
        """All conditions, clean images first; of settled settings.

        Args:
            masks: The test images with masks, if backgrounds are swapped as well.
        """
        assert self.grid is not None
        assert self.shuffle is not None
        backgrounds = () if masks is None else (OwnBackground(masks), SwappedBackground(masks))
        return (
            Clean(),
            *(Occluded(share, self.grid, self.seed) for share in self.occlusion),
            *(Shuffled(grid, self.seed) for grid in self.shuffle),
            *(Corrupted(name, severity, self.seed) for name in self.corruptions for severity in self.severities),
            *backgrounds,
        )
