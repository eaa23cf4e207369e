"""Residual networks of bottleneck blocks with group norm, as timm builds them."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from timm.models.resnet import Bottleneck
from timm.models.resnet import ResNet as TimmResNet
from torch import Tensor, nn

from poa.elastic.space import Size
from poa.errors import UserError
from poa.families.base import Backbone, Features, FourStages, check_widths, doubled, published_space

NORMS = {32: "groupnorm", 1: "groupnorm1"}
"""timm's names of group norms by their groups of channels."""


class ResNetBackbone(Backbone):
    """A timm ``ResNet`` and its mask token, which replaces cells of the stem's map after pooling."""

    model: TimmResNet
    repeated = (Bottleneck,)

    def forward(
        self, images: Float[Tensor, "batch channels height width"], mask: Bool[Tensor, "batch patches"] | None = None
    ) -> Features:
        """The mean of the last map, and its cells on a grid twice as fine."""
        net = self.model
        maps = net.maxpool(net.act1(net.bn1(net.conv1(images))))
        maps = self.hide(maps.permute(0, 2, 3, 1), mask).permute(0, 3, 1, 2)
        maps = net.layer4(net.layer3(net.layer2(net.layer1(maps))))
        return Features(net.forward_head(maps), doubled(maps.permute(0, 2, 3, 1)))


@dataclass(frozen=True)
class ResNet(FourStages):
    """Settings that all sizes of one elastic ResNet share.

    A size is the width inside the first stage's bottlenecks and the depths of the second and third stage. Inner widths
    double from stage to stage; what blocks pass on to one another has the same width in all sizes.

    Attributes:
        channels: A quarter of the channels that the first stage hands on; they double from stage to stage.
        norm_groups: Groups of channels of the norms, 1 or 32. Of a narrow network 32 have few values each in the last
            stages, and a cut regroups them.
        avg_down: Shortcuts between stages take the mean of 2x2 cells before their 1x1 convolution, which otherwise
            takes every fourth (ResNet-D of He et al., arXiv 1812.01187, section 4.2).
    """

    architecture: str = "resnet50_gn"
    depths: tuple[int, ...] = (3, 8, 36, 3)
    channels: int = 64
    norm_groups: int = 32
    avg_down: bool = False

    # below, stride 2 meets a single cell, where oneDNN leaves gradients of bf16 convolutions unset (torch 2.15)
    smallest_image = 17
    width_unit = 32
    network = TimmResNet
    published = published_space(width=(64, 128), depth=((4, 6), (8, 36)), drop_path=0.0, sampling_bias=2.0)
    biased_widths = False
    elastic = (1, 2)
    stage_names = ("layer1.", "layer2.", "layer3.", "layer4.")

    @property
    def memory_format(self) -> torch.memory_format:
        """Channels last with one norm group; 32 take longer so than convolutions and pooling save."""
        return torch.channels_last if self.norm_groups == 1 else torch.contiguous_format

    def __post_init__(self) -> None:
        if self.norm_groups not in NORMS:
            raise UserError(f"--model.norm-groups of a ResNet must be 1 or 32, got {self.norm_groups}.")
        check_widths(self.space, self.norm_groups, what="the number of norm groups,")
        if self.channels % 16 or self.channels & (self.channels - 1):
            raise UserError(f"--model.channels of a ResNet must be 16, 32, 64, 128…, got {self.channels}.")
        check_widths(self.space, max(1, self.channels // 64), what="a 64th of --model.channels,")
        super().__post_init__()

    @classmethod
    def read(cls, model: nn.Module) -> dict[str, Any]:
        """Settings of a ResNet with group norm and plain bottlenecks."""
        assert isinstance(model, TimmResNet)
        stages = (model.layer1, model.layer2, model.layer3, model.layer4)
        depths, first = tuple(map(len, stages)), model.layer1[0]
        if not isinstance(model.bn1, nn.GroupNorm):
            raise UserError("it has no group norm, and the statistics of BatchNorm fit only one size; use resnet50_gn")
        if model.bn1.num_groups not in NORMS:
            raise UserError(f"its norms have {model.bn1.num_groups} groups, and only 1 and 32 are known")
        if type(first) is not Bottleneck or first.conv2.groups > 1 or not isinstance(first.se, nn.Identity | None):
            raise UserError("its blocks are not plain bottlenecks")
        return {
            "width_max": first.conv2.out_channels,
            "depth_max": depths[1:3],
            "depths": depths,
            "channels": first.conv3.out_channels // 4,
            "norm_groups": model.bn1.num_groups,
            "avg_down": any(isinstance(module, nn.AvgPool2d) for module in model.layer2[0].downsample),
        }

    def arguments(self, size: Size) -> dict[str, Any]:
        """Of timm's ``ResNet``."""
        return {
            "layers": self.blocks_of(size),
            "channels": tuple(self.channels * 2**stage for stage in range(4)),
            "base_width": 64 * size.width // self.channels,
            "norm_layer": NORMS[self.norm_groups],
            **({"avg_down": True} if self.avg_down else {}),
        }

    def build(self, size: Size, *, drop_path: float = 0.0) -> ResNetBackbone:
        """A freshly initialised ResNet; like the published one without drop path."""
        if drop_path > 0.0:
            raise UserError("--model.drop-path: a ResNet is trained without drop path. Leave it out.")
        return ResNetBackbone(self.create(size, zero_init_last=False), hidden_width=64)
