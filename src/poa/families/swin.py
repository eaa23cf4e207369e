"""Swin transformers: any plain one that timm builds from its constructor."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from timm.models.swin_transformer import (
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
    get_relative_position_index,
)
from torch import Tensor, nn

from poa.elastic.space import Size
from poa.errors import UserError
from poa.families.base import Backbone, Features, FourStages, Patches, doubled, published_space, set_drop_path


class SwinBackbone(Backbone):
    """A timm ``SwinTransformer`` and its mask token, which replaces cells of the embedded patches."""

    model: SwinTransformer
    repeated = (SwinTransformerBlock,)

    def forward(
        self, images: Float[Tensor, "batch channels height width"], mask: Bool[Tensor, "batch patches"] | None = None
    ) -> Features:
        """The mean of the normed last map, and its cells on a grid twice as fine."""
        swin = self.model
        maps = swin.norm(swin.layers(self.hide(swin.patch_embed(images), mask)))
        return Features(swin.forward_head(maps), doubled(maps))


@dataclass(frozen=True)
class Swin(FourStages, Patches):
    """Settings that all sizes of one elastic Swin share; a size is its first stage's width and its third's depth.

    Where POA's official Swin cannot be a plain timm model, this is the timm model: the norm after the patch embedding
    covers the kept channels, blocks shift by their own number, and a map that fits into one window is not shifted.

    Attributes:
        window_size: Side of an attention window, in patches of each stage.
        mlp_ratio: Hidden width of a block's MLP over its width.
    """

    architecture: str = "swin_base_patch4_window7_224"
    patch_size: int = 4
    window_size: int = 7
    head_dim: int = 16
    mlp_ratio: float = 4.0
    depths: tuple[int, ...] = (2, 2, 18, 2)

    width_unit = 16
    attention = (WindowAttention,)
    network = SwinTransformer
    published = published_space(width=(96, 128), depth=((6,), (18,)), drop_path=0.2, sampling_bias=2.0)
    elastic = (2,)
    stage_names = tuple(f"layers.{number}.blocks." for number in range(4))

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

    def arguments(self, size: Size) -> dict[str, Any]:
        """Of timm's ``SwinTransformer``."""
        return {
            "img_size": self.image_size,
            "patch_size": self.patch_size,
            "window_size": self.window_size,
            "embed_dim": size.width,
            "depths": self.blocks_of(size),
            "num_heads": tuple(size.width * 2**stage // self.head_dim for stage in range(4)),
            "mlp_ratio": self.mlp_ratio,
            "strict_img_size": False,
        }

    def build(self, size: Size, *, drop_path: float = 0.0) -> SwinBackbone:
        """A freshly initialised Swin; drop path rates grow evenly over the blocks of the intact network."""
        model = self.create(size, drop_path_rate=0.0)
        if torch.get_default_device().type == "meta":  # the index tables are not parameters: a skeleton needs them
            for module in model.modules():
                if isinstance(module, WindowAttention):
                    module.relative_position_index = get_relative_position_index(*module.window_size, device="cpu")
        backbone = SwinBackbone(model, hidden_width=size.width)
        set_drop_path(backbone.blocks, self.drop_path_rates(size, drop_path))
        return backbone

    def groups(self, name: str) -> tuple[int, ...]:
        """Fused rows of q, k, v; four neighbouring patches side by side where patches are merged."""
        if ".downsample.reduction." in name:
            return (1, 4)
        return (4,) if ".downsample.norm." in name else super().groups(name)

    def mask_grid(self, image_size: int) -> int:
        """Twice the cells along a side of the last map, which is padded to whole windows."""
        return 2 * -(-image_size // (8 * self.patch_size))
