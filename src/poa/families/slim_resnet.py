"""Slimmable residual networks with BatchNorm, as timm builds them (SlimCLR, arXiv 2209.15525)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from timm.layers import BatchNormAct2d
from timm.models.resnetv2 import Bottleneck, DownsampleConv, PreActBasic, ResNetV2
from torch import Tensor, nn

from poa.elastic.space import Size
from poa.elastic.switchable import SwitchableNetworks
from poa.errors import UserError
from poa.families.base import Backbone, Family, Features, Stage, check_widths, doubled, published_space

WIDTH_UNIT = 8
"""timm rounds channels to multiples of this."""
BASIC = ("resnetv2_18", "resnetv2_34")
"""Architectures of basic blocks, which timm's ``ResNetV2`` has with pre-activation only."""


class SlimResNetBackbone(Backbone):
    """A timm ``ResNetV2``, and its mask token, which replaces cells of the stem's pooled map."""

    model: ResNetV2
    repeated = (Bottleneck, PreActBasic)

    def forward(
        self, images: Float[Tensor, "batch channels height width"], mask: Bool[Tensor, "batch patches"] | None = None
    ) -> Features:
        """The mean of the last map, and its cells on a grid twice as fine."""
        net = self.model
        maps = self.hide(net.stem(images).permute(0, 2, 3, 1), mask).permute(0, 3, 1, 2)
        maps = net.norm(net.stages(maps))
        return Features(net.forward_head(maps), doubled(maps.permute(0, 2, 3, 1)))


@dataclass(frozen=True)
class SlimResNet(Family):
    """Settings that all sizes of one slimmable ResNet share; a size is the width of the stem and the blocks of stages.

    All channels, those of the stem too, are in proportion: width 64 is torchvision's ResNet-50, -101 or -152 (stride in
    the 3x3 convolution), width 16 one with a quarter of the channels everywhere. All sizes have all blocks. timm's
    class ``ResNet`` has 64 channels after a 7x7 stem whatever it is told; its ``ResNetV2`` is, without pre-activation,
    the same network, and takes them. ResNet-18 and -34 of the architectures ``BASIC`` have pre-activation.

    The networks have BatchNorm, which cannot be cut: use ``elastic.switchable``.
    """

    architecture: str = "resnetv2_50"

    smallest_image = 17  # as of ResNet
    width_unit = WIDTH_UNIT
    network = ResNetV2
    published = published_space(
        width=(16, 64), depth=((3, 4, 6, 3), (3, 4, 6, 3)), drop_path=0.0, sampling_bias=1.0, width_step=16
    )
    biased_widths = False
    elastic = (0, 1, 2, 3)

    @property
    def memory_format(self) -> torch.memory_format:
        """Channels last: convolutions, BatchNorm and pooling are faster so."""
        return torch.channels_last

    def __post_init__(self) -> None:
        check_widths(self.space, WIDTH_UNIT, what="the channels that timm counts in,")
        depths = self.space.intact.depths
        other = [size for size in self.space.sizes if size.depths != depths]
        if other:
            raise UserError(
                f"All sizes of a slimmable ResNet have the same blocks, but {other[0]} is not as deep as "
                f"{self.space.intact}. Set --model.depth-min to --model.depth-max."
            )
        if len(depths) != len(self.elastic):
            raise UserError(
                f"A slimmable ResNet has {len(self.elastic)} stages, got blocks for {len(depths)}. "
                "Set --model.depth-min and --model.depth-max to such as 3 4 6 3."
            )
        super().__post_init__()

    @classmethod
    def read(cls, model: nn.Module) -> dict[str, Any]:
        """Settings of a ResNet with BatchNorm; sizes are quarters of its width."""
        assert isinstance(model, ResNetV2)
        first, width = model.stages[0].blocks[0], model.feature_info[0]["num_chs"]
        if not isinstance(first, Bottleneck | PreActBasic):
            raise UserError("its bottlenecks begin with their norm (pre-activation); use slim-resnet")
        expansion = 4 if isinstance(first, Bottleneck) else 1
        expected = [expansion * width * 2**stage for stage in range(len(model.stages))]
        plain = (
            isinstance(model.stages[1].blocks[0].downsample, DownsampleConv)
            and first.conv2.groups == 1
            and "conv" in dict(model.stem.named_children())
        )
        if not plain or not isinstance(first.norm1, BatchNormAct2d):
            raise UserError("it is not made of plain blocks with BatchNorm; use slim-resnet")
        if [info["num_chs"] for info in model.feature_info[1:]] != expected or first.conv2.in_channels != width:
            raise UserError("its channels do not double from stage to stage, starting with the stem")
        depths = tuple(len(stage.blocks) for stage in model.stages)
        quarter = -(-width // (4 * WIDTH_UNIT)) * WIDTH_UNIT
        widths = {"width_min": quarter, "width_max": width, "width_step": quarter}
        return {**widths, "depth_min": depths, "depth_max": depths}

    def sub_networks(
        self, build: Callable[[Size], nn.Module] | None = None, *, castable: Callable[[str], bool] = lambda _: False
    ) -> SwitchableNetworks:
        """All sizes; each has BatchNorms of its own."""
        return SwitchableNetworks(build or self.build, self.space.sizes[::-1], castable=castable)

    def layer(self, name: str) -> int | None:
        """As for all families; the norm after the last block, with pre-activation, learns as that block does."""
        is_last = name.removeprefix("backbone.model.").startswith("norm.")
        return self.num_layers + 1 if is_last else super().layer(name)

    def stages(self, size: Size) -> tuple[Stage, ...]:
        """Four."""
        return tuple(Stage(f"stages.{number}.blocks.", blocks) for number, blocks in enumerate(size.depths))

    def arguments(self, size: Size) -> dict[str, Any]:
        """Of timm's ``ResNetV2``."""
        is_basic = self.architecture in BASIC
        return {
            "layers": size.depths,
            "channels": tuple((1 if is_basic else 4) * size.width * 2**stage for stage in range(len(size.depths))),
            "stem_chs": size.width,
            "preact": is_basic,
        }

    def build(self, size: Size, *, drop_path: float = 0.0) -> SlimResNetBackbone:
        """A freshly initialised ResNet of that size, on the current default device; bottlenecks add nothing at first.

        Basic blocks with pre-activation end in a convolution; one of zeros would learn at another rate under LARS.
        """
        if drop_path > 0.0:
            raise UserError("--model.drop-path: a slimmable ResNet is trained without drop path. Leave it out.")
        return SlimResNetBackbone(
            self.create(size, zero_init_last=self.architecture not in BASIC), hidden_width=size.width
        )

    def mask_grid(self, image_size: int) -> int:
        """Twice the cells along a side of the last map."""
        return 2 * -(-image_size // 32)
