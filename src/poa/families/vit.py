"""Vision transformers: any plain ViT that timm builds from its constructor."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.layers import Attention, DropPath, GluMlp, GroupNormAct, HybridEmbed, LayerScale
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from poa.elastic.space import Size
from poa.errors import UserError
from poa.families.base import Backbone, Features, Patches, published_space, set_drop_path

GATED = "vit_giant_patch14_dinov2"
"""An architecture with gated MLPs, and else like the plain one."""
CONVOLUTIONAL = ("vit_tiny_r_s16_p8_224", "vit_tiny_r_s16_p8_384")
"""Architectures that embed patches of the pooled map of a 7x7 convolution, and else like the plain one."""
STEM_STRIDE = 4
"""Pixels along a side of a cell of that map."""
STEM_PARTS = ["conv", "norm", "pool"]
"""What it consists of."""


class StemNorm(GroupNormAct):  # type: ignore[misc]  # timm is untyped
    """A group norm that brings maps of low precision with their channels last into the usual layout, and back.

    On a CPU torch takes ten times as long for such maps as they are, where a group has two channels (ADR 0048).
    """

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        """What timm's makes of the maps; they lie in memory as those given."""
        as_they_are = x.dtype == torch.float32 or x.is_contiguous()
        made: Tensor = super().forward(x if as_they_are else x.contiguous())
        return made if as_they_are else made.contiguous(memory_format=torch.channels_last)


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
        model: Any ViT with dynamic image size that pools without weights of its own.
        resize_positions: ``timm`` as the handed-out model will do it, or ``official`` as POA's code does it.
    """

    model: VisionTransformer
    repeated = (Block,)

    def __init__(self, model: VisionTransformer, *, resize_positions: Literal["timm", "official"] = "timm") -> None:
        super().__init__(model, hidden_width=model.embed_dim)
        self.resize_positions = resize_positions

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
        """Features after the final norm, wherever it is; masked patches are replaced before positions are added."""
        return self._features(self._embed(self.hide(self.model.patch_embed(images), mask)))

    def visible(
        self, images: Float[Tensor, "batch channels height width"], kept: Int[Tensor, "batch kept"]
    ) -> Features:
        """Patches are left out after positions are added, so that those that stay know where they are."""
        maps = self.model.patch_embed(images)
        nothing = kept.new_zeros(maps.shape[0], maps.shape[1] * maps.shape[2], dtype=torch.bool)
        tokens = self._embed(self.hide(maps, nothing))  # the mask token gets a gradient, as processes in step need it
        prefix, patches = tokens.tensor_split([self.model.num_prefix_tokens], dim=1)
        places = kept[:, :, None].expand(-1, -1, patches.shape[2])
        pooled, seen = self._features(torch.cat([prefix, patches.gather(1, places)], dim=1))
        return Features(pooled, seen.new_zeros(patches.shape).scatter(1, places, seen))

    def _features(self, tokens: Float[Tensor, "batch tokens width"]) -> Features:
        vit = self.model
        x = vit.norm(vit.blocks(vit.norm_pre(tokens)))
        return Features(vit.forward_head(x, pre_logits=True), x[:, vit.num_prefix_tokens :])


@dataclass(frozen=True)
class ViT(Patches):
    """Settings that all sizes of one elastic ViT share; a size is its width and its number of blocks.

    Attributes:
        mlp_ratio: Hidden width of a block's MLP over its width.
        layer_scale: Initial LayerScale; 0 for none.
        register_tokens: Number of register tokens.
        swiglu: Gated SiLU in place of GELU in the MLPs, the hidden width two thirds of ``mlp_ratio``.
        resize_positions: How position tables are resized for other image sizes (``timm`` or ``official``).
        global_pool: The image feature: the class token (``token``), or the mean of the patches (``avg``) in a network
            without one.
        fc_norm: With ``avg``, the final norm is after the mean instead of before it.
        stem: Patches are those of the image (``patch``), or (``conv``) of the map of a ResNet's stem: a convolution of
            7x7 and stride 2 to 64 channels, which all sizes share, group norm, ReLU and pooling (the smallest hybrid of
            Steiner et al., arXiv 2106.10270).
    """

    architecture: str = "vit_base_patch16_224"
    mlp_ratio: float = 4.0
    layer_scale: float = 1e-5
    register_tokens: int = 0
    swiglu: bool = False
    resize_positions: Literal["timm", "official"] = "timm"
    global_pool: Literal["token", "avg"] = "token"
    fc_norm: bool = False
    stem: Literal["patch", "conv"] = "patch"

    beyond = ("norm.", "fc_norm.")
    attention = (Attention,)
    network = VisionTransformer
    published = published_space(width=(384, 1024), depth=((12,), (24,)), drop_path=0.2, sampling_bias=3.0)

    @property
    def memory_format(self) -> torch.memory_format:
        """Channels last where there is a convolution to pool, which takes two thirds of the time so (ADR 0048)."""
        return torch.channels_last if self.stem == "conv" else torch.contiguous_format

    @property
    def _is_plain(self) -> bool:
        """No architecture was named."""
        return self.architecture == type(self).architecture

    def __post_init__(self) -> None:
        if self.fc_norm and self.global_pool == "token":
            raise UserError("--model.fc-norm moves the norm behind a mean of patches. Add --model.global-pool avg.")
        if self.stem == "conv" and self.patch_size % STEM_STRIDE:
            raise UserError(
                f"--model.stem conv needs a patch size that is a multiple of {STEM_STRIDE}, got {self.patch_size}. "
                f"Set --model.patch-size to such as {-(-self.patch_size // STEM_STRIDE) * STEM_STRIDE}, or add "
                "--model.stem patch."
            )
        if not self._is_plain and (self.stem == "conv") != (self.architecture in CONVOLUTIONAL):
            raise UserError(f"--model.stem cannot change the stem of {self.architecture}. Leave it out.")
        if self.stem == "conv" and self.swiglu:
            raise UserError("--model.swiglu needs --model.stem patch: no network of timm's has both. Add it.")
        super().__post_init__()

    @classmethod
    def read(cls, model: nn.Module) -> dict[str, Any]:
        """Settings of a ViT whose image feature is its class token, or the mean of patches."""
        assert isinstance(model, VisionTransformer)
        first = model.blocks[0]
        has_class = model.cls_token is not None
        if (model.global_pool, has_class) not in (("token", True), ("avg", False)):
            raise UserError("its image feature is not the class token, nor the mean of patches without one")
        if type(first) is not Block:
            raise UserError("its blocks are not plain ones")
        embed = model.patch_embed
        if isinstance(embed, HybridEmbed) and [name for name, _ in embed.backbone.named_children()] != STEM_PARTS:
            raise UserError("its patches come from a network of its own, not from a stem of one convolution")
        swiglu = isinstance(first.mlp, GluMlp)
        hidden = first.mlp.fc1.out_features
        return cls.shape_of(model) | {
            "mlp_ratio": (hidden * 0.75 if swiglu else hidden) / model.embed_dim,  # gate and value, each two thirds
            "layer_scale": float(first.ls1.init_values) if isinstance(first.ls1, LayerScale) else 0.0,
            "register_tokens": model.num_reg_tokens,
            "swiglu": swiglu,
            "global_pool": model.global_pool,
            "fc_norm": not isinstance(model.fc_norm, nn.Identity),
            "stem": "conv" if isinstance(embed, HybridEmbed) else "patch",
        }

    def _mlp_ratio(self, width: int) -> float:
        if not self.swiglu:
            return self.mlp_ratio
        hidden = (int(self.mlp_ratio * width * 2 / 3) + 7) // 8 * 8  # DINOv2's rule for gated MLPs
        return (2 * hidden + 0.5) / width  # timm truncates ratio * width; the half keeps rounding from losing one

    def arguments(self, size: Size) -> dict[str, Any]:
        """Of timm's ``VisionTransformer``."""
        pool = {"global_pool": "avg", "class_token": False, "fc_norm": self.fc_norm}
        return super().arguments(size) | {
            "mlp_ratio": self._mlp_ratio(size.width),
            "init_values": self.layer_scale,
            "reg_tokens": self.register_tokens,
            "dynamic_img_size": True,
            "patch_size": self.patch_size // (STEM_STRIDE if self.stem == "conv" else 1),
            **(pool if self.global_pool == "avg" else {}),
        }

    def timm_config(self, size: Size) -> tuple[str, Mapping[str, Any]]:
        """Gated MLPs and stems are classes, which JSON cannot hold, so that an architecture has to bring them."""
        architecture, arguments = super().timm_config(size)
        if self._is_plain:
            architecture = GATED if self.swiglu else CONVOLUTIONAL[0] if self.stem == "conv" else architecture
        return architecture, arguments

    def build(self, size: Size, *, drop_path: float = 0.0) -> ViTBackbone:
        """A freshly initialised ViT; the drop path rate is the same in every block, whatever the depth."""
        # a skeleton has nothing to initialise, which would take most of its time
        skipped = {"weight_init": "skip"} if torch.get_default_device().type == "meta" else {}
        model = self.create(size, block_fn=SubsetDropBlock if drop_path > 0.0 else Block, **skipped)
        if model.global_pool != self.global_pool:
            raise UserError(f"--model.global-pool cannot give {self.architecture} a class token. Leave it out.")
        if isinstance(model.blocks[0].mlp, GluMlp) != self.swiglu:
            raise UserError(f"--model.swiglu cannot change the MLPs of {self.architecture}. Leave it out.")
        if self.resize_positions == "official" and model.no_embed_class:
            raise UserError(
                f"--model.resize-positions official needs a position of the class token; {self.architecture} has none."
            )
        if self.stem == "conv":
            model.patch_embed.backbone.norm.__class__ = StemNorm  # names and parameters stay
        set_drop_path(model.blocks, [drop_path] * len(model.blocks))  # timm's own rates would grow with depth
        return ViTBackbone(model, resize_positions=self.resize_positions)

    def groups(self, name: str) -> tuple[int, ...]:
        """Fused rows: q, k, v of attention; gate and value of a SwiGLU."""
        return (2,) if self.swiglu and ".mlp.fc1." in name else super().groups(name)
