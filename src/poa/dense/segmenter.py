"""A backbone with a head: scores of each class for each pixel of a batch of images."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from poa.dense.maps import Maps
from poa.dense.segmentation_heads import AUXILIARY_LEVEL, AuxiliaryHead, LinearHead, UperNetHead
from poa.dense.segmentation_settings import Segmentation


class Scores(NamedTuple):
    """What the heads make of images.

    Attributes:
        main: Of the head that is kept.
        auxiliary: Of the second head, where there is one.
    """

    main: Float[Tensor, "batch classes height width"]
    auxiliary: Float[Tensor, "batch classes height width"] | None


class Segmenter(nn.Module):
    """A backbone's maps and a head on them.

    Args:
        maps: Of a backbone, which stays frozen or is trained as the settings say.
        settings: Which head; its weights are drawn by their seed.
        num_classes: Number of classes.

    Attributes:
        seen: Numbers of the levels that the head sees.
    """

    def __init__(self, maps: Maps, settings: Segmentation, *, num_classes: int) -> None:
        super().__init__()
        self.maps = maps.requires_grad_(not settings.frozen)
        self._is_frozen = settings.frozen
        self._third = min(AUXILIARY_LEVEL, len(maps.levels) - 1)
        channels, has_pyramid = settings.channels, settings.head == "upernet"
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(settings.seed)
            if has_pyramid:
                self.seen = tuple(range(len(maps.levels)))
                self.head: nn.Module = UperNetHead(maps.levels, channels=channels, num_classes=num_classes)
            else:
                self.seen = maps.different if settings.taps == "all" else (len(maps.levels) - 1,)
                self.head = LinearHead([maps.levels[number] for number in self.seen], num_classes=num_classes)
            self.auxiliary = (
                AuxiliaryHead(maps.levels[self._third], channels=channels, num_classes=num_classes)
                if has_pyramid and settings.auxiliary
                else None
            )

    @property
    def trained(self) -> nn.ModuleDict:
        """The parts that training changes, by name."""
        parts = {"maps": self.maps, "head": self.head, "auxiliary": self.auxiliary}
        frozen = ("maps",) if self._is_frozen else ()
        return nn.ModuleDict({name: part for name, part in parts.items() if part is not None and name not in frozen})

    def train(self, mode: bool = True) -> "Segmenter":
        """Training or evaluation mode; a frozen backbone stays in the latter."""
        super().train(mode)
        self.maps.train(mode and not self._is_frozen)
        return self

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes height width"]:
        """Scores of each class for each pixel.

        Args:
            images: Normalised, of any size.
        """
        return self._at_pixels(self.head, self.seen, self._maps(images), images)

    def scores(self, images: Float[Tensor, "batch 3 height width"]) -> Scores:
        """Scores of each class for each pixel, by both heads.

        Args:
            images: Normalised, of any size.
        """
        maps = self._maps(images)
        second = self.auxiliary
        return Scores(
            self._at_pixels(self.head, self.seen, maps, images),
            None if second is None else self._at_pixels(second, (self._third,), maps, images),
        )

    def _maps(self, images: Tensor) -> tuple[Tensor, ...]:
        """Maps of images that are made larger, to the right and below, by as little as the backbone needs."""
        height, width = images.shape[2:]
        padded = F.pad(images, (0, -width % self.maps.multiple, 0, -height % self.maps.multiple))
        found: tuple[Tensor, ...] = self.maps(padded)
        return found

    def _at_pixels(self, head: nn.Module, seen: Sequence[int], maps: Sequence[Tensor], images: Tensor) -> Tensor:
        scores = head([maps[number] for number in seen])
        height, width = images.shape[2:]
        sides = (height + -height % self.maps.multiple, width + -width % self.maps.multiple)
        return F.interpolate(scores, size=sides, mode="bilinear")[:, :, :height, :width]
