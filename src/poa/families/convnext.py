"""ConvNeXt: a family that POA never published, as any plain one that timm builds (versions 1 and 2)."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from timm.layers import NormMlpClassifierHead
from timm.models.convnext import ConvNeXt as TimmConvNeXt
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from poa.elastic.space import Size
from poa.errors import UserError
from poa.families.base import Backbone, Features, FourStages, doubled, published_space, set_drop_path


class ConvNeXtBackbone(Backbone):
    """A timm ``ConvNeXt`` and its mask token, which replaces cells of the stem's map."""

    model: TimmConvNeXt
    repeated = (ConvNeXtBlock,)

    def forward(
        self, images: Float[Tensor, "batch channels height width"], mask: Bool[Tensor, "batch patches"] | None = None
    ) -> Features:
        """The normed mean of the last map, and its normed cells on a grid twice as fine."""
        net = self.model
        maps = self.hide(net.stem(images).permute(0, 2, 3, 1), mask).permute(0, 3, 1, 2)
        maps = net.norm_pre(net.stages(maps))
        cells = net.head.norm(maps) if isinstance(net.head, NormMlpClassifierHead) else maps
        return Features(net.forward_head(maps), doubled(cells.permute(0, 2, 3, 1)))


@dataclass(frozen=True)
class ConvNeXt(FourStages):
    """Settings that all sizes of one elastic ConvNeXt share; a size is its first stage's width and its third's depth.

    Attributes:
        layer_scale: Initial LayerScale; None as the architecture has it.
    """

    architecture: str = "convnext_base"
    depths: tuple[int, ...] = (3, 3, 27, 3)
    layer_scale: float | None = None

    smallest_image = 32
    width_unit = 16
    network = TimmConvNeXt
    published = published_space(width=(96, 128), depth=((9,), (27,)), drop_path=0.2, sampling_bias=2.0)
    beyond = ("norm_pre.", "head.")
    elastic = (2,)

    def __post_init__(self) -> None:
        if self.layer_scale == 0.0:
            raise UserError(
                "--model.layer-scale 0 makes every block of a ConvNeXt output zeros. Set it to 1, or leave it out."
            )
        super().__post_init__()

    @classmethod
    def read(cls, model: nn.Module) -> dict[str, Any]:
        """Settings of a ConvNeXt whose widths double from stage to stage."""
        assert isinstance(model, TimmConvNeXt)
        depths = tuple(len(stage.blocks) for stage in model.stages)
        widths = [info["num_chs"] for info in model.feature_info]
        if widths != [widths[0] * 2**stage for stage in range(4)] or model.head_hidden_size != model.num_features:
            raise UserError("its widths do not double from stage to stage, or it has a hidden layer after pooling")
        return {"width_max": widths[0], "depth_max": (depths[2],), "depths": depths}

    def arguments(self, size: Size) -> dict[str, Any]:
        """Of timm's ``ConvNeXt``."""
        scale = {} if self.layer_scale is None else {"ls_init_value": self.layer_scale}
        return {"depths": self.blocks_of(size), "dims": tuple(size.width * 2**stage for stage in range(4))} | scale

    def build(self, size: Size, *, drop_path: float = 0.0) -> ConvNeXtBackbone:
        """A freshly initialised ConvNeXt; drop path rates grow evenly over the blocks of the intact network."""
        backbone = ConvNeXtBackbone(self.create(size, drop_path_rate=0.0), hidden_width=size.width)
        set_drop_path(backbone.blocks, self.drop_path_rates(size, drop_path))
        return backbone

    def mask_grid(self, image_size: int) -> int:
        """Twice the cells along a side of the last map."""
        return 2 * (image_size // 32)
