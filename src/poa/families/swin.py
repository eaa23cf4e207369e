"""Swin transformers: any plain one that timm builds from its constructor."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from timm.layers import DropPath
from timm.models.swin_transformer import SwinTransformer, WindowAttention, get_relative_position_index
from torch import Tensor, nn

from poa.elastic.space import Size
from poa.errors import UserError
from poa.families.base import Backbone, Family, Features, Stage, check_multiple, check_widths, doubled


class SwinBackbone(Backbone):
    """A timm ``SwinTransformer`` and its mask token, which replaces cells of the embedded patches."""

    model: SwinTransformer

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """All blocks of all stages."""
        return tuple(block for stage in self.model.layers for block in stage.blocks)

    def forward(
        self, images: Float[Tensor, "batch channels height width"], mask: Bool[Tensor, "batch patches"] | None = None
    ) -> Features:
        """The mean of the normed last map, and its cells on a grid twice as fine."""
        swin = self.model
        maps = swin.norm(swin.layers(self.hide(swin.patch_embed(images), mask)))
        return Features(swin.forward_head(maps), doubled(maps))


@dataclass(frozen=True)
class Swin(Family):
    """Settings that all sizes of one elastic Swin share; a size is its first stage's width and its third's depth.

    Where POA's official Swin cannot be a plain timm model, this is the timm model: the norm after the patch embedding
    covers the kept channels, blocks shift by their own number, and a map that fits into one window is not shifted.

    Attributes:
        patch_size: Side of a patch, in pixels.
        window_size: Side of an attention window, in patches of each stage.
        head_dim: Channels of an attention head; widths are multiples of it.
        mlp_ratio: Hidden width of a block's MLP over its width.
        depths: Blocks of the stages; the third is elastic.
    """

    architecture: str = "swin_base_patch4_window7_224"
    patch_size: int = 4
    window_size: int = 7
    head_dim: int = 16
    mlp_ratio: float = 4.0
    depths: tuple[int, ...] = (2, 2, 18, 2)

    width_unit: ClassVar[int] = 16
    attention: ClassVar[tuple[type[nn.Module], ...]] = (WindowAttention,)
    network: ClassVar[type[nn.Module]] = SwinTransformer
    published: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "width_min": 96,
            "width_max": 128,
            "depth_min": (6,),
            "depth_max": (18,),
            "drop_path": 0.2,
            "sampling_bias": 2.0,
        }
    )
    beyond: ClassVar[tuple[str, ...]] = ("norm.",)
    elastic: ClassVar[tuple[int, ...]] = (2,)

    def __post_init__(self) -> None:
        settings = "--model.width-min, --model.width-max or --model.width-step, or --model.head-dim"
        check_widths(self.space, self.head_dim, what="the head dimension", settings=settings)
        self.check_image_size(self.image_size, setting="views.global-size")

    @classmethod
    def read(cls, model: nn.Module) -> dict[str, Any]:
        """Settings of a Swin with the same windows in all stages."""
        assert isinstance(model, SwinTransformer)
        depths = tuple(len(stage.blocks) for stage in model.layers)
        firsts = [stage.blocks[0] for stage in model.layers]
        attention = firsts[0].attn
        window = attention.window_size[0]
        if [block.window_size[0] for block in firsts] != [min(window, block.input_resolution[0]) for block in firsts]:
            raise UserError("its windows differ from stage to stage")
        return {
            "width_max": model.embed_dim,
            "depth_max": (depths[2],),
            "depths": depths,
            "patch_size": model.patch_embed.patch_size[0],
            "window_size": window,
            "head_dim": model.embed_dim // attention.num_heads,
            "mlp_ratio": float(model.layers[0].blocks[0].mlp_ratio),
        }

    def check_image_size(self, size: int, *, setting: str) -> None:
        """Images are cut into whole patches; maps that do not fill their windows are padded."""
        check_multiple(size, self.patch_size, setting=setting)

    def _depths(self, size: Size) -> tuple[int, ...]:
        return (*self.depths[:2], size.depths[0], *self.depths[3:])

    def stages(self, size: Size) -> tuple[Stage, ...]:
        """Four."""
        return tuple(Stage(f"layers.{number}.blocks.", blocks) for number, blocks in enumerate(self._depths(size)))

    def arguments(self, size: Size) -> dict[str, Any]:
        """Of timm's ``SwinTransformer``."""
        return {
            "img_size": self.image_size,
            "patch_size": self.patch_size,
            "window_size": self.window_size,
            "embed_dim": size.width,
            "depths": self._depths(size),
            "num_heads": tuple(size.width * 2**stage // self.head_dim for stage in range(4)),
            "mlp_ratio": self.mlp_ratio,
            "strict_img_size": False,
        }

    def build(self, size: Size, *, drop_path: float = 0.0) -> SwinBackbone:
        """A freshly initialised Swin of that size, on the current default device.

        Args:
            size: Width of the first stage and depth of the third.
            drop_path: Rate of the last block; it grows evenly from 0 at the first.
        """
        model = self.create(size, drop_path_rate=0.0)
        if torch.get_default_device().type == "meta":  # the index tables are not parameters: a skeleton needs them
            for module in model.modules():
                if isinstance(module, WindowAttention):
                    module.relative_position_index = get_relative_position_index(*module.window_size, device="cpu")
        backbone = SwinBackbone(model, hidden_width=size.width)
        for block, rate in zip(backbone.blocks, self.drop_path_rates(size, drop_path), strict=True):
            if rate > 0.0:
                block.drop_path1, block.drop_path2 = DropPath(rate), DropPath(rate)
        return backbone

    def groups(self, name: str) -> tuple[int, ...]:
        """Fused rows of q, k, v; four neighbouring patches side by side where patches are merged."""
        if ".attn.qkv." in name:
            return (3,)
        if ".downsample.reduction." in name:
            return (1, 4)
        return (4,) if ".downsample.norm." in name else ()

    def mask_grid(self, image_size: int) -> int:
        """Twice the cells along a side of the last map."""
        return 2 * -(-image_size // (8 * self.patch_size))
