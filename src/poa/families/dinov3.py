"""DINOv3's vision transformers: rotary positions and register tokens, as timm builds them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from jaxtyping import Bool, Float
from timm.layers import DropPath, GluMlp
from timm.models.eva import Eva, EvaAttention, EvaBlock
from torch import Tensor, nn

from poa.elastic.space import Size
from poa.errors import UserError
from poa.families.base import Backbone, Family, Features, Stage, check_multiple, check_widths


class DINOv3Backbone(Backbone):
    """A timm ``Eva`` with DINOv3's rotary positions, and its mask token."""

    model: Eva

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """The transformer blocks."""
        return tuple(self.model.blocks)

    def forward(
        self, images: Float[Tensor, "batch channels height width"], mask: Bool[Tensor, "batch patches"] | None = None
    ) -> Features:
        """The class token and the patches after the final norm; attention knows where a masked patch is."""
        vit = self.model
        x, positions = vit._pos_embed(self.hide(vit.patch_embed(images), mask))
        x = vit.norm_pre(x)
        for block in vit.blocks:
            x = block(x, rope=positions)
        x = vit.norm(x)
        return Features(x[:, 0], x[:, vit.num_prefix_tokens :])


@dataclass(frozen=True)
class DINOv3(Family):
    """Settings that all sizes of one elastic DINOv3 ViT share; a size is its width and its number of blocks.

    The weights of this family are the strongest to start from (``--init``); POA's authors had none like it.

    Attributes:
        patch_size: Side of a patch, in pixels.
        head_dim: Channels of an attention head; widths are multiples of it.
        layer_scale: Initial LayerScale; None as the architecture has it.
    """

    architecture: str = "vit_base_patch16_dinov3"
    patch_size: int = 16
    head_dim: int = 64
    layer_scale: float | None = None

    width_unit: ClassVar[int] = 64
    network: ClassVar[type[nn.Module]] = Eva
    attention: ClassVar[tuple[type[nn.Module], ...]] = (EvaAttention,)
    published: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"width_min": 384, "width_max": 768, "depth_min": (6,), "depth_max": (12,), "drop_path": 0.2}
        | {"sampling_bias": 3.0}
    )
    beyond: ClassVar[tuple[str, ...]] = ("norm.",)

    def __post_init__(self) -> None:
        settings = "--model.width-min, --model.width-max or --model.width-step, or --model.head-dim"
        check_widths(self.space, self.head_dim, what="the head dimension", settings=settings)
        self.check_image_size(self.image_size, setting="views.global-size")

    @classmethod
    def read(cls, model: nn.Module) -> dict[str, Any]:
        """Settings of a DINOv3; others of the class pool patches or have positions that belong to one width."""
        assert isinstance(model, Eva)
        first = model.blocks[0]
        if model.rope is None or model.pos_embed is not None or not isinstance(model.norm, nn.LayerNorm):
            raise UserError("among networks of this class only DINOv3's are supported")
        if type(first) is not EvaBlock or isinstance(first.mlp, GluMlp):
            raise UserError("its blocks are not DINOv3's")
        return {
            "width_max": model.embed_dim,
            "depth_max": (len(model.blocks),),
            "patch_size": model.patch_embed.patch_size[0],
            "head_dim": model.embed_dim // first.attn.num_heads,
        }

    def check_image_size(self, size: int, *, setting: str) -> None:
        """Images are cut into whole patches."""
        check_multiple(size, self.patch_size, setting=setting)

    def stages(self, size: Size) -> tuple[Stage, ...]:
        """One."""
        return (Stage("blocks.", size.depths[0]),)

    def arguments(self, size: Size) -> dict[str, Any]:
        """Of timm's ``Eva``; the image feature is the class token, as DINOv3's authors use it."""
        scale = {} if self.layer_scale is None else {"init_values": self.layer_scale}
        return {
            "img_size": self.image_size,
            "patch_size": self.patch_size,
            "embed_dim": size.width,
            "depth": size.depths[0],
            "num_heads": size.width // self.head_dim,
            "global_pool": "token",
        } | scale

    def build(self, size: Size, *, drop_path: float = 0.0) -> DINOv3Backbone:
        """A freshly initialised DINOv3 ViT of that size, on the current default device.

        Args:
            size: Width and depth.
            drop_path: Rate, the same in every block.
        """
        model = self.create(size)
        for block in model.blocks if drop_path > 0.0 else ():
            block.drop_path1, block.drop_path2 = DropPath(drop_path), DropPath(drop_path)
        return DINOv3Backbone(model, hidden_width=size.width)

    def groups(self, name: str) -> tuple[int, ...]:
        """Fused rows of q, k, v."""
        return (3,) if ".attn.qkv." in name else ()

    def mask_grid(self, image_size: int) -> int:
        """Patches along a side."""
        return image_size // self.patch_size
