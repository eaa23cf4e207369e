"""DINOv3's vision transformers: rotary positions and register tokens, as timm builds them."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from timm.layers import GluMlp
from timm.models.eva import Eva, EvaAttention, EvaBlock
from torch import Tensor, nn

from poa.elastic.space import Size
from poa.errors import UserError
from poa.families.base import Backbone, Features, Patches, published_space, set_drop_path


class DINOv3Backbone(Backbone):
    """A timm ``Eva`` with DINOv3's rotary positions, and its mask token."""

    model: Eva
    repeated = (EvaBlock,)

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
class DINOv3(Patches):
    """Settings that all sizes of one elastic DINOv3 ViT share; a size is its width and its number of blocks.

    The weights of this family are the strongest to start from (``--init``); POA's authors had none like it.

    Attributes:
        layer_scale: Initial LayerScale; None as the architecture has it.
    """

    architecture: str = "vit_base_patch16_dinov3"
    layer_scale: float | None = None

    network = Eva
    attention = (EvaAttention,)
    published = published_space(width=(384, 768), depth=((6,), (12,)), drop_path=0.2, sampling_bias=3.0)

    @classmethod
    def read(cls, model: nn.Module) -> dict[str, Any]:
        """Settings of a DINOv3; others of the class pool patches or have positions that belong to one width."""
        assert isinstance(model, Eva)
        first = model.blocks[0]
        if model.rope is None or model.pos_embed is not None or not isinstance(model.norm, nn.LayerNorm):
            raise UserError("among networks of this class only DINOv3's are supported")
        if type(first) is not EvaBlock or isinstance(first.mlp, GluMlp):
            raise UserError("its blocks are not DINOv3's")
        return cls.shape_of(model)

    def arguments(self, size: Size) -> dict[str, Any]:
        """Of timm's ``Eva``; the image feature is the class token, as DINOv3's authors use it."""
        scale = {} if self.layer_scale is None else {"init_values": self.layer_scale}
        return super().arguments(size) | {"global_pool": "token"} | scale

    def build(self, size: Size, *, drop_path: float = 0.0) -> DINOv3Backbone:
        """A freshly initialised DINOv3; the drop path rate is the same in every block."""
        model = self.create(size)
        set_drop_path(model.blocks, [drop_path] * len(model.blocks))
        return DINOv3Backbone(model, hidden_width=size.width)
