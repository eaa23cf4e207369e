"""Families with small or published networks, and their networks with random weights."""

from typing import Any

import torch
from torch import nn

import tiny
from poa.config.pretraining import Config
from poa.elastic.network import SubNetworks
from poa.elastic.space import SearchSpace
from poa.families.base import Backbone, Family
from poa.families.convnext import ConvNeXt
from poa.families.resnet import ResNet
from poa.families.swin import Swin
from poa.families.vit import ViT
from poa.models.registry import family_of

TINY = {name: family_of(tiny.config(name)) for name in tiny.FAMILIES}
VIT = ViT(SearchSpace.grid(range(32, 97, 32), range(2, 6)), image_size=32, patch_size=8, head_dim=32)


def published(name: str, **over: Any) -> Family:
    return family_of(Config.model_validate({"model": {"name": name, **over}}))


def narrowed(name: str) -> Family:
    """All published depths, with networks narrow enough to build dozens of sizes in seconds.

    Swin has its published heads, of 4 channels in place of 16, so widths of 24, 28 and 32 for 96, 112 and 128; ConvNeXt
    a quarter of its widths. ResNet hands on a quarter of its channels, and its blocks have three multiples of the 32
    norm groups inside: 32, 64 and 96 for 64, 96 and 128.
    """
    space = published(name).space
    depths = sorted({size.depths for size in space.sizes}, key=sum)
    if name == "swin":
        return Swin(SearchSpace.grid([24, 28, 32], depths), head_dim=4)
    if name == "convnext":
        return ConvNeXt(SearchSpace.grid([24, 28, 32], depths), image_size=64)
    return ResNet(SearchSpace.grid([32, 64, 96], depths), image_size=64, channels=16)


def sub_networks(family: Family, *, drop_path: float = 0.0) -> SubNetworks:
    return SubNetworks(
        lambda size: family.build(size, drop_path=drop_path),
        family.space.intact,
        source=family.source,
        groups=family.groups,
    )


def noisy(family: Family, *, drop_path: float = 0.0) -> Backbone:
    """The intact network, far from its initial values, where LayerScale, biases and GRN would hide mistakes."""
    backbone = family.build(family.space.intact, drop_path=drop_path)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            is_scale = parameter.ndim == 1 and name.endswith(("weight", "gamma"))
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + float(is_scale))
    return backbone


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
