"""A pyramid of four levels out of a network that has maps of one resolution (POA official code; ViTDet)."""

from collections.abc import Sequence
from math import log2

from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from poa.dense.maps import LEVELS, Level
from poa.errors import UserError

STRIDES = (4, 8, 16, 32)


class Pyramid(nn.Module):
    """Turns maps into four with strides of about 4, 8, 16 and 32 pixels; what has the right stride stays as it is.

    Of a ViT with patches of 16 pixels, the first map goes through two deconvolutions with a norm and a GELU between
    them, the second through one, the third stays, and the fourth is max-pooled. Other patch sizes get the factors,
    always powers of two, that come next to the strides: patches of 14 pixels strides from 3.5 to 28, patches of 4 only
    pooling. Maps of the stages of Swin, ResNet or ConvNeXt pass unchanged.

    The official code has BatchNorm over all processes here; this norm, over channels, needs no large batch.

    Args:
        levels: Of one map, which is taken for all, or of four.

    Attributes:
        levels: Of the maps that come out.

    Raises:
        UserError: There are neither one nor four.
    """

    levels: tuple[Level, ...]

    def __init__(self, levels: Sequence[Level]) -> None:
        super().__init__()
        if len(levels) not in (1, LEVELS):
            raise UserError(
                f"A pyramid is made of one or {LEVELS} maps, got {len(levels)}. Take a network with four stages, "
                "or a transformer whose maps have one resolution."
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
        """Four maps, the finest first.

        Args:
            maps: One or four, as was said when this was made.
        """
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
