"""Vision transformers: any plain ViT that timm builds from its constructor."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.layers import Attention, DropPath, Mlp, SwiGLUPacked
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from poa.elastic.plan import even_blocks
from poa.elastic.space import SearchSpace, Size
from poa.errors import UserError
from poa.families.base import Backbone, Features

_BLOCK = re.compile(r"\bblocks\.(\d+)\.")


class SubsetDropBlock(Block):  # type: ignore[misc]  # timm is untyped
    """A transformer block whose drop path computes each residual branch for the kept images only.

    Above a rate of 0.1 a fixed number of images is kept and scaled up, which saves the work of the dropped ones
    (DINOv2's efficient stochastic depth, which POA trains with); below, timm's drop path is used as it is.
    """

    drop_path1: DropPath

    def forward(
        self, x: Float[Tensor, "batch tokens width"], attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Float[Tensor, "batch tokens width"]:
        """One block; the options are timm's."""
        rate = self.drop_path1.drop_prob
        if not self.training or rate <= 0.1:
            whole: Tensor = super().forward(x, attn_mask, is_causal)
            return whole
        x = self._on_subset(x, self.norm1, self.attn, self.ls1, rate=rate)
        return self._on_subset(x, self.norm2, self.mlp, self.ls2, rate=rate)

    @staticmethod
    def _on_subset(x: Tensor, norm: nn.Module, branch: nn.Module, layer_scale: nn.Module, *, rate: float) -> Tensor:
        batch = x.shape[0]
        kept = max(int(batch * (1.0 - rate)), 1)
        chosen = torch.randperm(batch, device=x.device)[:kept]
        residual = layer_scale(branch(norm(x[chosen])))
        added: Tensor = torch.index_add(x, 0, chosen, residual.to(x.dtype), alpha=batch / kept)
        return added


def official_positions(
    table: Float[Tensor, "1 positions width"], *, old: tuple[int, int], new: tuple[int, int], prefix: int
) -> Float[Tensor, "1 resized width"]:
    """Resize a position table as DINOv2's and POA's official code do.

    Bicubic without antialiasing, by scale factors ``(new + 0.1) / old`` instead of by target size, which samples at
    slightly other points than timm's resizing.

    Args:
        table: Positions of the prefix tokens, then of the patches row by row.
        old: Rows and columns of the table.
        new: Rows and columns wanted.
        prefix: Number of prefix positions, copied as they are.
    """
    if old == new:
        return table
    patches = table[:, prefix:].float().view(1, *old, -1).permute(0, 3, 1, 2)
    scale = ((new[0] + 0.1) / old[0], (new[1] + 0.1) / old[1])
    patches = F.interpolate(patches, scale_factor=scale, mode="bicubic")
    return torch.cat([table[:, :prefix], patches.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], dim=1)


class ViTBackbone(Backbone):
    """A timm ``VisionTransformer`` and its mask token.

    Args:
        model: Any ViT with a class token and dynamic image size.
        resize_positions: ``timm`` as the handed-out model will do it, or ``official`` as POA's code does it.
    """

    model: VisionTransformer

    def __init__(self, model: VisionTransformer, *, resize_positions: Literal["timm", "official"] = "timm") -> None:
        super().__init__()
        self.model = model
        self.mask_token = nn.Parameter(torch.zeros(model.embed_dim))
        self.resize_positions = resize_positions

    @property
    def num_features(self) -> int:
        """Width of the tokens."""
        return int(self.model.num_features)

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """The transformer blocks."""
        return tuple(self.model.blocks)

    def _embed(self, patches: Tensor) -> Tensor:
        if self.resize_positions == "timm":
            embedded: Tensor = self.model._pos_embed(patches)
            return embedded
        vit, (rows, columns) = self.model, patches.shape[1:3]
        prefix = [token.expand(len(patches), -1, -1) for token in (vit.cls_token, vit.reg_token) if token is not None]
        tokens = torch.cat([*prefix, patches.flatten(1, 2)], dim=1)
        old = tuple(vit.patch_embed.grid_size)
        return tokens + official_positions(vit.pos_embed, old=old, new=(rows, columns), prefix=vit.num_prefix_tokens)

    def forward(
        self, images: Float[Tensor, "batch channels height width"], mask: Bool[Tensor, "batch patches"] | None = None
    ) -> Features:
        """Features after the final norm; masked patches are replaced before positions are added."""
        vit = self.model
        x = vit.patch_embed(images)  # [B, rows, columns, D]
        if mask is not None:
            x = torch.where(mask.view(*x.shape[:3], 1), self.mask_token.to(x.dtype), x)
        x = vit.norm(vit.blocks(vit.norm_pre(self._embed(x))))
        return Features(x[:, 0], x[:, vit.num_prefix_tokens :])


@dataclass(frozen=True)
class ViT:
    """Settings that all sizes of one elastic ViT share.

    Attributes:
        space: All sizes.
        image_size: Side of the square images the position table is made for, in pixels.
        patch_size: Side of a patch, in pixels.
        head_dim: Channels of an attention head; widths are multiples of it.
        mlp_ratio: Hidden width of a block's MLP over its width.
        layer_scale: Initial LayerScale, or None for none.
        register_tokens: Number of register tokens.
        swiglu: Gated SiLU in place of GELU in the MLPs, the hidden width two thirds of ``mlp_ratio``.
        channels: Channels of the images.
        resize_positions: How position tables are resized for other image sizes (``timm`` or ``official``).
        fused_attention: Use the fused attention kernel.
    """

    space: SearchSpace
    image_size: int = 224
    patch_size: int = 16
    head_dim: int = 64
    mlp_ratio: float = 4.0
    layer_scale: float | None = 1e-5
    register_tokens: int = 0
    swiglu: bool = False
    channels: int = 3
    resize_positions: Literal["timm", "official"] = "timm"
    fused_attention: bool = True

    def __post_init__(self) -> None:
        uneven = [size.width for size in self.space.sizes if size.width % self.head_dim]
        if uneven:
            raise UserError(
                f"Widths of a ViT are multiples of the head dimension {self.head_dim}, got {uneven[0]}. "
                f"Change --model.width-min, --model.width-max or --model.width-step, or --model.head-dim."
            )
        self.check_image_size(self.image_size, setting="views.global-size")

    def check_image_size(self, size: int, *, setting: str) -> None:
        """See that square images can be cut into patches.

        Args:
            size: Side, in pixels.
            setting: Where it was set.

        Raises:
            UserError: It is not a multiple of the patch size.
        """
        below = size // self.patch_size * self.patch_size
        if size != below:
            choices = " or ".join(str(near) for near in (below, below + self.patch_size) if near)
            raise UserError(
                f"The image size {size} is not a multiple of the patch size {self.patch_size}. "
                f"Set --{setting} to {choices}, or change --model.patch-size."
            )

    @property
    def num_layers(self) -> int:
        """Number of blocks of the intact network."""
        return self.space.intact.depths[0]

    def _mlp_ratio(self, width: int) -> float:
        if not self.swiglu:
            return self.mlp_ratio
        hidden = (int(self.mlp_ratio * width * 2 / 3) + 7) // 8 * 8  # DINOv2's rule for gated MLPs
        return (2 * hidden + 0.5) / width  # timm truncates ratio * width; the half keeps rounding from losing one

    def _arguments(self, size: Size) -> dict[str, Any]:
        return {
            "img_size": self.image_size,
            "patch_size": self.patch_size,
            "in_chans": self.channels,
            "embed_dim": size.width,
            "depth": size.depths[0],
            "num_heads": size.width // self.head_dim,
            "mlp_ratio": self._mlp_ratio(size.width),
            "init_values": self.layer_scale,
            "reg_tokens": self.register_tokens,
            "dynamic_img_size": True,
            "num_classes": 0,
        }

    def build(self, size: Size, *, drop_path: float = 0.0) -> ViTBackbone:
        """A freshly initialised ViT of that size, on the current default device.

        Args:
            size: Width and depth.
            drop_path: Rate, the same in every block.
        """
        model = VisionTransformer(
            **self._arguments(size),
            mlp_layer=SwiGLUPacked if self.swiglu else Mlp,
            act_layer=nn.SiLU if self.swiglu else None,
            block_fn=SubsetDropBlock if drop_path > 0.0 else Block,
            # a skeleton has nothing to initialise, which would take most of its time
            weight_init="skip" if torch.get_default_device().type == "meta" else "",
        )
        for block in model.blocks if drop_path > 0.0 else ():  # timm's own rates would grow with depth
            block.drop_path1, block.drop_path2 = DropPath(drop_path), DropPath(drop_path)
        for module in model.modules():
            if isinstance(module, Attention):
                module.fused_attn = module.fused_attn and self.fused_attention
        return ViTBackbone(model, resize_positions=self.resize_positions)

    def source(self, name: str, size: Size) -> str:
        """Name of the intact parameter: block numbers are mapped to the evenly spread blocks that are kept."""
        kept = even_blocks(self.num_layers, size.depths[0])
        return _BLOCK.sub(lambda match: f"blocks.{kept[int(match[1])]}.", name)

    def groups(self, name: str) -> tuple[int, ...]:
        """Fused rows: q, k, v of attention; gate and value of a SwiGLU."""
        if ".attn.qkv." in name:
            return (3,)
        return (2,) if self.swiglu and ".mlp.fc1." in name else ()

    def layer(self, name: str) -> int | None:
        """0 for tokens, positions and patch embedding, ``i + 1`` for block ``i``, None for the final norm."""
        block = _BLOCK.search(name)
        if block:
            return int(block[1]) + 1
        return None if ".norm." in name else 0

    def mask_grid(self, image_size: int) -> int:
        """Patches along a side."""
        return image_size // self.patch_size

    def timm_config(self, size: Size) -> tuple[str, Mapping[str, Any]]:
        """A registered architecture and the arguments that turn it into this size."""
        architecture = "vit_giant_patch14_dinov2" if self.swiglu else "vit_base_patch16_224"
        return architecture, self._arguments(size)
