"""ConvNeXt: a family that POA never published, as any plain one that timm builds (versions 1 and 2)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from jaxtyping import Bool, Float
from timm.layers import DropPath, NormMlpClassifierHead
from timm.models.convnext import ConvNeXt as TimmConvNeXt
from torch import Tensor, nn

from poa.elastic.space import Size
from poa.errors import UserError
from poa.families.base import Backbone, Family, Features, Stage, doubled


class ConvNeXtBackbone(Backbone):
    """A timm ``ConvNeXt`` and its mask token, which replaces cells of the stem's map."""

    model: TimmConvNeXt

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """All blocks of all stages."""
        return tuple(block for stage in self.model.stages for block in stage.blocks)

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
class ConvNeXt(Family):
    """Settings that all sizes of one elastic ConvNeXt share; a size is its first stage's width and its third's depth.

    Attributes:
        depths: Blocks of the stages; the third is elastic.
        layer_scale: Initial LayerScale; None as the architecture has it.
    """

    architecture: str = "convnext_base"
    depths: tuple[int, ...] = (3, 3, 27, 3)
    layer_scale: float | None = None

    smallest_image: ClassVar[int] = 32
    width_unit: ClassVar[int] = 16
    network: ClassVar[type[nn.Module]] = TimmConvNeXt
    published: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "width_min": 96,
            "width_max": 128,
            "depth_min": (9,),
            "depth_max": (27,),
            "drop_path": 0.2,
            "sampling_bias": 2.0,
        }
    )
    beyond: ClassVar[tuple[str, ...]] = ("norm_pre.", "head.")
    elastic: ClassVar[tuple[int, ...]] = (2,)

    def __post_init__(self) -> None:
        if self.layer_scale == 0.0:
            raise UserError(
                "--model.layer-scale 0 would silence every block of a ConvNeXt. Set it to 1, or leave it out."
            )
        self.check_image_size(self.image_size, setting="views.global-size")

    @classmethod
    def read(cls, model: nn.Module) -> dict[str, Any]:
        """Settings of a ConvNeXt whose widths double from stage to stage."""
        assert isinstance(model, TimmConvNeXt)
        depths = tuple(len(stage.blocks) for stage in model.stages)
        widths = [info["num_chs"] for info in model.feature_info]
        if widths != [widths[0] * 2**stage for stage in range(4)] or model.head_hidden_size != model.num_features:
            raise UserError("its widths do not double from stage to stage, or it has a hidden layer after pooling")
        return {"width_max": widths[0], "depth_max": (depths[2],), "depths": depths}

    def _depths(self, size: Size) -> tuple[int, ...]:
        return (*self.depths[:2], size.depths[0], *self.depths[3:])

    def stages(self, size: Size) -> tuple[Stage, ...]:
        """Four."""
        return tuple(Stage(f"stages.{number}.blocks.", blocks) for number, blocks in enumerate(self._depths(size)))

    def arguments(self, size: Size) -> dict[str, Any]:
        """Of timm's ``ConvNeXt``."""
        scale = {} if self.layer_scale is None else {"ls_init_value": self.layer_scale}
        return {"depths": self._depths(size), "dims": tuple(size.width * 2**stage for stage in range(4))} | scale

    def build(self, size: Size, *, drop_path: float = 0.0) -> ConvNeXtBackbone:
        """A freshly initialised ConvNeXt of that size, on the current default device.

        Args:
            size: Width of the first stage and depth of the third.
            drop_path: Rate of the last block; it grows evenly from 0 at the first.
        """
        backbone = ConvNeXtBackbone(self.create(size, drop_path_rate=0.0), hidden_width=size.width)
        for block, rate in zip(backbone.blocks, self.drop_path_rates(size, drop_path), strict=True):
            if rate > 0.0:
                block.drop_path = DropPath(rate)
        return backbone

    def mask_grid(self, image_size: int) -> int:
        """Twice the cells along a side of the last map."""
        return 2 * (image_size // 32)
