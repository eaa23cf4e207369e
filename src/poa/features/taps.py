"""Features of several layers of a network and averaged patches, side by side in one row, for linear probes."""

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from poa.errors import UserError
from poa.families.base import Features

LAYERS = 4
PATCHES = "patches"
"""Name of the columns that hold the mean of the last layer's patch tokens."""
_SEEN_AS_EQUAL = 1e-4


class Variant(NamedTuple):
    """Part of a wide row that a classifier gets.

    Attributes:
        num_layers: Class tokens of how many layers.
        with_patches: Whether the mean of the last layer's patch tokens is there too.
        ranges: First column and the one after the last, of each piece.
    """

    num_layers: int
    with_patches: bool
    ranges: tuple[tuple[int, int], ...]

    @property
    def name(self) -> str:
        """In words, such as ``4 layers + patches``."""
        layers = "1 layer" if self.num_layers == 1 else f"{self.num_layers} layers"
        return f"{layers} + {PATCHES}" if self.with_patches else layers


def probed_blocks(num_blocks: int) -> tuple[int, ...]:
    """Blocks of a transformer that a probe gets: ``round(num_blocks / 4 * i)`` for i = 1, 2, 3, and the last.

    Halves go to the even number (POA official code); in short networks fewer than four are left.
    """
    last = num_blocks - 1
    return tuple(sorted({min(round(num_blocks / LAYERS * i), last) for i in range(1, LAYERS)} | {last}))


def variants_of(columns: Mapping[str, tuple[int, int]]) -> tuple[Variant, ...]:
    """What the published probe chooses from: the last layer or all that are tapped, without or with patches."""
    layers = tuple(columns[name] for name in columns if name != PATCHES)
    patches = tuple(columns[name] for name in columns if name == PATCHES)
    found: list[Variant] = []
    for chosen in dict.fromkeys((layers[-1:], layers)):
        found.append(Variant(len(chosen), False, chosen))
        found += [Variant(len(chosen), True, (*chosen, *patches))] if patches else []
    return tuple(found)


def whole_rows(width: int) -> tuple[Variant, ...]:
    """The one variant of rows of that width which were made without taps."""
    return (Variant(1, False, ((0, width),)),)


class Taps(nn.Module):
    """Runs a network and gives what a linear probe gets, as ``Features`` with one wide row an image.

    The row holds the features of the tapped layers one after the other, then the mean of the last layer's patches.

    The layers are the blocks that ``probed_blocks`` names where tokens keep their number (ViT and its kin), else the
    last four stages. Tokens of a block go through the network's own last norm and pooling; maps of earlier stages are
    averaged. The last layer's features are those that the network itself returns, to the bit. Where these are the mean
    of the patches (Swin, ResNet), the mean is not given a second time.

    A run's position tables are resized as timm does it, also where the run was set to the official way.

    The network, a timm model or a module around one, is taken over and put into evaluation mode. ``columns`` are the
    first column and the one after the last of each piece of a row, in order.

    Raises:
        UserError: The network does not give intermediate layers.
    """

    columns: Mapping[str, tuple[int, int]]

    def __init__(self, network: nn.Module, *, image_size: int, channels: int = 3) -> None:
        super().__init__()
        self.model: Any = timm_model(network).eval()
        intermediates: Any = self.model.forward_intermediates
        self._has_tokens = "return_prefix_tokens" in inspect.signature(intermediates).parameters
        self._pools_patches = False
        parameter = next(self.model.parameters())
        images = torch.randn(2, channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
        layers, patches = self._try(images.to(parameter.device, parameter.dtype))
        last = next(reversed(layers.values()))
        mean = patches.mean(dim=1)
        self._pools_patches = last.shape == mean.shape and torch.allclose(last, mean, _SEEN_AS_EQUAL, _SEEN_AS_EQUAL)
        widths = {name: piece.shape[1] for name, piece in layers.items()}
        widths |= {} if self._pools_patches else {PATCHES: mean.shape[1]}
        self.columns = MappingProxyType(_placed(widths))

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What a classifier may get."""
        return variants_of(self.columns)

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Features:
        """Features of a batch of images."""
        layers, patches = self._pieces(images)
        means = () if self._pools_patches else (patches.mean(dim=1),)
        return Features(torch.cat([*layers.values(), *means], dim=1), patches)

    @torch.inference_mode()
    def _try(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        try:
            return self._pieces(images)
        except Exception as error:  # some of timm's networks cannot do what others can, and each says so differently
            raise UserError(
                f"timm's forward_intermediates gives no layers of {type(self.model).__name__} ({error}). Score "
                "it by k-NN or by logistic regression, or choose another network."
            ) from error

    def _pieces(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Features of the layers by name, and the patches of the last."""
        return self._of_blocks(images) if self._has_tokens else self._of_stages(images)

    def _of_blocks(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        chosen = probed_blocks(len(self.model.feature_info))
        last, found = self.model.forward_intermediates(
            images, indices=list(chosen), return_prefix_tokens=True, norm=True, output_fmt="NLC"
        )
        # networks without prefix tokens give patches alone
        pairs = [pair if isinstance(pair, tuple) else (pair, pair[:, :0]) for pair in found]
        tokens = [torch.cat([prefix, patches], dim=1) for patches, prefix in pairs[:-1]]
        pooled = [self.model.forward_head(each, pre_logits=True) for each in (*tokens, last)]
        names = (f"block {number}" for number in chosen)
        return dict(zip(names, pooled, strict=True)), pairs[-1][0]

    def _of_stages(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        num_stages = min(LAYERS, len(self.model.feature_info))
        last, maps = self.model.forward_intermediates(images, indices=num_stages, norm=True)
        pooled = [*(each.mean(dim=(2, 3)) for each in maps[:-1]), self.model.forward_head(last, pre_logits=True)]
        return {f"stage {number}": each for number, each in enumerate(pooled)}, maps[-1].flatten(2).mT


def timm_model(network: nn.Module) -> nn.Module:
    """The timm model inside a network, or the network itself if it is one.

    Raises:
        UserError: There is none, or it does not give intermediate layers.
    """
    for module in network.modules():
        if callable(getattr(module, "forward_intermediates", None)):
            return module
    raise UserError(
        f"{type(network).__name__} provides no intermediate layers (timm's forward_intermediates), which this "
        "probe needs. Score it by k-NN or by logistic regression, or choose another network."
    )


def _placed(widths: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    placed, start = {}, 0
    for name, width in widths.items():
        placed[name] = (start, start + width)
        start += width
    return placed
