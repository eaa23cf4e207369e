"""Maps of several levels out of any plain timm model, for heads that predict something for every place of an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, log2
from typing import Any

import torch
from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from poa.errors import UserError

LEVELS = 4
_DEPTHS = (Fraction(1, 3), Fraction(1, 2), Fraction(2, 3), Fraction(1))
"""Shares of the blocks of a plain transformer after which there is a map."""


@dataclass(frozen=True, slots=True)
class Level:
    """One map: its channels, and the pixels of the image from one cell to the next."""

    channels: int
    stride: float


def level_blocks(num_blocks: int) -> tuple[int, int, int, int]:
    """Which blocks of a plain transformer give the four maps, from 0: after 1/3, 1/2, 2/3 and all of them.

    At depth 12 these are 3, 5, 7 and 11 (POA official code, from iBOT and BEiT). Below six blocks some come twice.
    """
    first, second, third, last = (ceil(share * num_blocks) - 1 for share in _DEPTHS)
    return first, second, third, last


class Maps(nn.Module):
    """Runs a timm model and gives maps of up to four levels, the finest first.

    Of a plain transformer (ViT, DINOv3) these are the patch tokens after the blocks that ``level_blocks`` names, each
    through the network's last norm, all of one stride; of other networks the outputs of the last four stages, the very
    last one normalised where the network does so.

    Args:
        model: Any timm model that hands out intermediate layers; it stays a part of this module, in the mode it is in.
        image_size: Height and width of images to try, in pixels. Give two different ones if images need not be square.

    Attributes:
        indices: What timm's ``forward_intermediates`` is asked for.
        levels: Channels and strides of the maps.
        multiple: Sides of images are multiples of this, in pixels.

    Raises:
        UserError: The network provides no intermediate layers, or cannot process images of that size.
    """

    model: Any
    indices: tuple[int, ...]
    levels: tuple[Level, ...]
    multiple: int

    def __init__(self, model: nn.Module, *, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        infos = getattr(model, "feature_info", ())
        if not infos or not callable(getattr(model, "forward_intermediates", None)):
            raise UserError(
                f"{type(model).__name__} provides no intermediate layers (timm's forward_intermediates), which "
                "segmentation and detection need. Choose a ViT, Swin, ResNet, ConvNeXt or the like."
            )
        strides = [int(info["reduction"]) for info in infos]
        is_plain = len(set(strides)) == 1
        self._places = level_blocks(len(infos)) if is_plain else tuple(range(len(infos)))[-LEVELS:]
        self.indices = tuple(sorted(set(self._places)))
        self.multiple = max(strides)
        self.levels = tuple(
            Level(found.shape[1], float(strides[place]))
            for place, found in zip(self._places, self._try(image_size, strides), strict=True)
        )

    @property
    def different(self) -> tuple[int, ...]:
        """Numbers of the levels whose maps are not that of a level before; all four unless a transformer is short."""
        return tuple(self._places.index(place) for place in self.indices)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch _channels _height _width"], ...]:
        """Maps of normalised images whose sides are multiples of ``multiple``."""
        found = self.model.forward_intermediates(images, indices=list(self.indices), norm=True, intermediates_only=True)
        named = dict(zip(self.indices, found, strict=True))
        return tuple(named[place] for place in self._places)

    @torch.no_grad()
    def _try(self, image_size: tuple[int, int], strides: list[int]) -> tuple[Tensor, ...]:
        height, width = (ceil(side / self.multiple) * self.multiple for side in image_size)
        parameter, was_training = next(self.model.parameters()), self.model.training
        self.model.eval()  # BatchNorm cannot train on one image
        images = torch.zeros(1, 3, height, width, device=parameter.device, dtype=parameter.dtype)
        try:
            maps: tuple[Tensor, ...] = self(images)
            expected = [(height // strides[place], width // strides[place]) for place in self._places]
            assert [tuple(each.shape[2:]) for each in maps] == expected, "its maps have other sizes than timm says"
        except Exception as error:  # some of timm's networks cannot do what others can, and each says so differently
            raise UserError(
                f"{type(self.model).__name__} cannot process images of {height}x{width} pixels "
                f"({f'{type(error).__name__}: {error}'.splitlines()[0]}). Try square images of the size that it is "
                "made for, or choose another network."
            ) from error
        finally:
            self.model.train(was_training)
        return maps


STRIDES = (4, 8, 16, 32)


class Pyramid(nn.Module):
    """Turns maps into four with strides of about 4, 8, 16 and 32 pixels; what has the right stride stays as it is.

    Of a ViT with patches of 16 pixels, the first map goes through two deconvolutions with a norm and a GELU between
    them, the second through one, the third stays, and the fourth is max-pooled. Other patch sizes get the factors,
    always powers of two, that come next to the strides: patches of 14 pixels strides from 3.5 to 28, patches of 4 only
    pooling. Maps of the stages of Swin, ResNet or ConvNeXt pass unchanged.

    The official code has BatchNorm over all processes here; this norm, over channels, needs no large batch.

    It takes the levels of one map, which is used for all, or of four; its attribute ``levels`` is that of the results.
    """

    levels: tuple[Level, ...]

    def __init__(self, levels: Sequence[Level]) -> None:
        super().__init__()
        if len(levels) not in (1, LEVELS):
            raise UserError(
                f"A pyramid is made of one or {LEVELS} maps, got {len(levels)}. Choose a network with four "
                "stages, or a transformer whose maps have one resolution."
            )
        given = tuple(levels) * (LEVELS // len(levels))
        doublings = [round(log2(level.stride / stride)) for level, stride in zip(given, STRIDES, strict=True)]
        self.levels = tuple(
            Level(level.channels, level.stride / 2.0**times) for level, times in zip(given, doublings, strict=True)
        )
        self.steps = nn.ModuleList(
            _resampling(level.channels, times) for level, times in zip(given, doublings, strict=True)
        )

    def forward(
        self, maps: Sequence[Float[Tensor, "batch _channels _height _width"]]
    ) -> tuple[Float[Tensor, "batch _channels2 _height2 _width2"], ...]:
        """Four maps, the finest first, of one or four as the levels say."""
        given = tuple(maps) * (LEVELS // len(maps))
        return tuple(step(each) for step, each in zip(self.steps, given, strict=True))


def _resampling(channels: int, doublings: int) -> nn.Module:
    """Doubles the sides of a map so many times; halves them where the number is negative."""
    if doublings < 0:
        return nn.MaxPool2d(2**-doublings, ceil_mode=True)  # so that something is left of small maps
    layers: list[nn.Module] = []
    for number in range(doublings):
        layers += [LayerNorm2d(channels), nn.GELU()] if number else []
        layers.append(nn.ConvTranspose2d(channels, channels, 2, stride=2))
    return nn.Sequential(*layers)
