"""The official ResNet modules' numbers."""

import re
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from conformance import filler
from poa.elastic.space import SearchSpace, Size
from poa.errors import UserError
from poa.families.resnet import ResNet, ResNetBackbone

FAMILY = ResNet(SearchSpace.grid([32, 64], [(2, 2), (2, 3), (3, 4)]), channels=32, depths=(1, 3, 4, 1))


def official_name(name: str) -> str:
    """What the official code calls a parameter of the backbone."""
    name = name.removeprefix("model.").replace("bn", "norm")
    name = re.sub(r"^(layer\d)\.", r"\1.layers.", name)
    return re.sub(r"(layers\.\d+\.conv\d)\.", r"\1.conv.", name)


def official_backbone() -> ResNetBackbone:
    """The intact network with the official numbers, in float64.

    Their network has 32 channels after the stem, timm's always has 64: the layers that see them are replaced.
    """
    backbone = FAMILY.build(FAMILY.space.intact)
    net, first = backbone.model, backbone.model.layer1[0]
    net.conv1, net.bn1 = nn.Conv2d(3, 32, 7, stride=2, padding=3, bias=False), nn.GroupNorm(32, 32)
    first.conv1, first.downsample[0] = nn.Conv2d(32, 64, 1, bias=False), nn.Conv2d(32, 128, 1, bias=False)
    backbone.mask_token = nn.Parameter(torch.zeros(32))
    with torch.no_grad():
        for name, parameter in backbone.double().named_parameters():
            theirs = official_name(name)
            is_scale = parameter.ndim == 1 and theirs.endswith("weight")
            parameter.copy_(0.2 * filler(tuple(parameter.shape), len(theirs)) + float(is_scale))
    return backbone.eval()


@torch.no_grad()
def test_features_are_those_of_the_official_modules() -> None:
    images = 4 * filler((2, 3, 224, 224))
    mask = (torch.arange(2 * 196) % 3 == 0).view(2, 196)
    backbone = official_backbone()
    plain, masked = backbone(images), backbone(images, mask)
    assert plain.cls[0, :4].tolist() == pytest.approx([1.12907, 1.460629, 0.200001, 0.0], abs=1e-5)
    assert plain.cls.square().sum().item() == pytest.approx(1658.78051, abs=1e-5)
    assert masked.cls[1, :3].tolist() == pytest.approx([1.110498, 1.503056, 0.310465], abs=1e-5)
    assert masked.patches[1, 17, :2].tolist() == pytest.approx([1.675165, 1.585783], abs=1e-5)


def test_fresh_networks_start_as_timms_without_silenced_blocks() -> None:
    """The published network does not start with blocks that add nothing, whatever timm does by default."""
    torch.manual_seed(0)
    backbone = FAMILY.build(FAMILY.space.sizes[0])
    assert all(block.bn3.weight.eq(1.0).all() for block in backbone.blocks)
    assert backbone.mask_token.count_nonzero() == 0
    torch.manual_seed(0)
    size = FAMILY.space.sizes[0]
    architecture, arguments = FAMILY.timm_config(size)
    theirs = timm.create_model(architecture, zero_init_last=False, **arguments)
    assert all(torch.equal(backbone.model.state_dict()[name], value) for name, value in theirs.state_dict().items())


def test_widths_fill_norm_groups() -> None:
    with pytest.raises(
        UserError, match=r"multiples of the number of norm groups, 32, got 48\. Change --model\.width-m"
    ):
        replace(FAMILY, space=SearchSpace.grid([48, 64], [(2, 2)]))


def test_one_norm_group_takes_any_width() -> None:
    family = replace(FAMILY, space=SearchSpace.grid([20, 33], [(2, 2)]), norm_groups=1)
    norms = [each for each in family.build(Size(20, (2, 2))).modules() if isinstance(each, nn.GroupNorm)]
    assert {each.num_groups for each in norms} == {1}
    with pytest.raises(UserError, match=r"multiples of a 64th of --model\.channels, 2, got 33"):
        replace(family, channels=128)
    with pytest.raises(UserError, match=r"--model\.norm-groups of a ResNet must be 1 or 32, got 8"):
        replace(FAMILY, norm_groups=8)


def test_with_one_norm_group_crops_have_their_channels_last_and_teach_the_same() -> None:
    assert FAMILY.memory_format == torch.contiguous_format
    family = replace(FAMILY, norm_groups=1)
    assert family.memory_format == torch.channels_last
    backbone = family.build(family.space.intact).double()
    images = filler((2, 3, 32, 32), 1)
    found = []
    for layout in (torch.contiguous_format, family.memory_format):
        features = backbone(images.contiguous(memory_format=layout))
        (features.cls.square().sum() + features.patches.square().sum()).backward()
        found.append([features.cls.detach(), *(each.grad for each in backbone.model.parameters())])
        backbone.zero_grad()
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("groups", [1, 32])
def test_the_norm_groups_of_a_model_are_read(groups: int) -> None:
    with torch.device("meta"):
        backbone = replace(FAMILY, norm_groups=groups).build(FAMILY.space.intact)
    assert ResNet.read(backbone.model)["norm_groups"] == groups
    with torch.device("meta"):
        other = timm.create_model("resnet50_gn", norm_layer="batchnorm2d")
    with pytest.raises(UserError, match="no group norm"):
        ResNet.read(other)
    other.bn1 = torch.nn.GroupNorm(8, 64)
    with pytest.raises(UserError, match="norms have 8 groups, and only 1 and 32 are known"):
        ResNet.read(other)


@pytest.mark.parametrize("means", [False, True])
def test_the_shortcuts_of_a_model_are_read(means: bool) -> None:
    with torch.device("meta"):
        backbone = replace(FAMILY, avg_down=means).build(FAMILY.space.intact)
    assert ResNet.read(backbone.model)["avg_down"] is means


def test_shortcuts_take_means() -> None:
    """Of 2x2 cells, and of what there is of them at an edge."""
    shortcut = replace(FAMILY, avg_down=True).build(FAMILY.space.intact).model.layer2[0].downsample
    map_ = filler((1, shortcut[1].in_channels, 3, 3), 1)
    means = torch.stack([map_[:, :, :2, :2].mean((2, 3)), map_[:, :, :2, 2:].mean((2, 3))], dim=-1)
    torch.testing.assert_close(shortcut[0](map_)[:, :, 0], means)
    assert (shortcut[1].kernel_size, shortcut[1].stride) == ((1, 1), (1, 1))


@pytest.mark.parametrize("channels", [8, 48, 96])
def test_channels_are_powers_of_two(channels: int) -> None:
    """Others would be lost to rounding where timm derives inner widths from them."""
    with pytest.raises(UserError, match=rf"--model\.channels of a ResNet must be 16, 32, 64, 128…, got {channels}"):
        replace(FAMILY, channels=channels)


@pytest.mark.parametrize("channels", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("width", [32, 96, 160, 224])
def test_inner_widths_are_what_was_asked_for(channels: int, width: int) -> None:
    family = replace(FAMILY, space=SearchSpace.grid([width], [(2, 2), (3, 4)]), channels=channels)
    with torch.device("meta"):
        backbone = family.build(Size(width, (3, 4)))
    stages = (backbone.model.layer1, backbone.model.layer2, backbone.model.layer3, backbone.model.layer4)
    assert [stage[-1].conv2.out_channels for stage in stages] == [width * 2**stage for stage in range(4)]
    assert [stage[-1].conv3.out_channels for stage in stages] == [4 * channels * 2**stage for stage in range(4)]
