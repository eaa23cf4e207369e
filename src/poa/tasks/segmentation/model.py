"""Segmentation networks: the maps of a backbone, and a head that makes of them scores of each class for each pixel."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from poa.config.segmentation import Segmentation
from poa.tasks.maps import Level, Maps, Pyramid

POOLED = (1, 2, 3, 6)
"""Cells along a side to which pyramid pooling averages the last map."""
DROPOUT = 0.1
AUXILIARY_LEVEL = 2
"""Which level the second head of an UperNet sees, from 0."""

Levels = Sequence[Float[Tensor, "batch _channels _height _width"]]
Logits = Float[Tensor, "batch classes _high _wide"]


def side_by_side(maps: Levels) -> Float[Tensor, "batch _all _high _wide"]:
    """All maps at the resolution of the first, the finest, their channels one after the other."""
    size = maps[0].shape[2:]
    return torch.cat([_grown(each, size) for each in maps], dim=1)


class LinearHead(nn.Module):
    """BatchNorm and a 1x1 convolution on maps side by side (POA official code, its linear segmentation).

    Its ``layers`` are a plain ``torch.nn.Sequential``, so that anybody can load the weights into one.
    """

    def __init__(self, levels: Sequence[Level], *, num_classes: int) -> None:
        super().__init__()
        channels = sum(level.channels for level in levels)
        convolution = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(convolution.weight, std=0.01)
        nn.init.constant_(convolution.bias, 0.0)  # type: ignore[arg-type]
        self.layers = nn.Sequential(nn.BatchNorm2d(channels), convolution)

    def forward(self, maps: Levels) -> Logits:
        """Scores at the resolution of the finest level, which comes first."""
        scores: Tensor = self.layers(side_by_side(maps))
        return scores


class UperNetHead(nn.Module):
    """Pyramid pooling of the last level, top-down fusion of all four, and a classifier (arXiv 1807.10221).

    The maps of a plain transformer go through a ``Pyramid`` first.
    """

    def __init__(self, levels: Sequence[Level], *, channels: int, num_classes: int) -> None:
        super().__init__()
        self.pyramid = Pyramid(levels)
        inputs = [level.channels for level in self.pyramid.levels]
        self.pooled = nn.ModuleList(Conv2dNormActivation(inputs[-1], channels, 1) for _ in POOLED)
        self.context = Conv2dNormActivation(inputs[-1] + len(POOLED) * channels, channels, 3)
        self.lateral = nn.ModuleList(Conv2dNormActivation(each, channels, 1) for each in inputs[:-1])
        self.smooth = nn.ModuleList(Conv2dNormActivation(channels, channels, 3) for _ in inputs[:-1])
        self.fuse = Conv2dNormActivation(len(inputs) * channels, channels, 3)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Levels) -> Logits:
        """Scores at the resolution of the finest level."""
        levels = self.pyramid(maps)
        down = [self._with_context(levels[-1])]
        for lateral, level in reversed(list(zip(self.lateral, levels[:-1], strict=True))):
            down.append(lateral(level) + _grown(down[-1], level.shape[2:]))
        fine = [smooth(each) for smooth, each in zip(self.smooth, reversed(down[1:]), strict=True)]
        scores: Tensor = self.classify(self.dropout(self.fuse(side_by_side([*fine, down[0]]))))
        return scores

    def _with_context(self, last: Tensor) -> Tensor:
        pooled = [
            _grown(conv(F.adaptive_avg_pool2d(last, cells)), last.shape[2:])
            for conv, cells in zip(self.pooled, POOLED, strict=True)
        ]
        context: Tensor = self.context(torch.cat([last, *pooled], dim=1))
        return context


class AuxiliaryHead(nn.Module):
    """A 3x3 convolution and a classifier on one map, used in training alone."""

    def __init__(self, level: Level, *, channels: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Conv2dNormActivation(level.channels, channels, 3),
            nn.Dropout2d(DROPOUT),
            nn.Conv2d(channels, num_classes, 1),
        )

    def forward(self, maps: Levels) -> Logits:
        """Scores at the resolution of the one map."""
        (only,) = maps
        scores: Tensor = self.layers(only)
        return scores


def _grown(maps: Tensor, size: torch.Size) -> Tensor:
    return maps if maps.shape[2:] == size else F.interpolate(maps, size=size, mode="bilinear")


class Scores(NamedTuple):
    """Of the head that is kept, and of the second one, where there is one."""

    main: Float[Tensor, "batch classes height width"]
    auxiliary: Float[Tensor, "batch classes height width"] | None


class Segmenter(nn.Module):
    """A backbone's maps and a head on those of the levels ``seen``; its weights are drawn by the seed."""

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
        """Scores of each class for each pixel of normalised images of any size."""
        return self._at_pixels(self.head, self.seen, self._maps(images), images)

    def scores(self, images: Float[Tensor, "batch 3 height width"]) -> Scores:
        """The same by both heads."""
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
