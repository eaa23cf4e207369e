import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from conformance import filler
from poa.data.images import Preprocessing
from poa.elastic.space import SearchSpace, Size
from poa.elastic.switchable import Switchable, SwitchableNetworks, state
from poa.errors import UserError
from poa.evaluation.cost import flops, parameters
from poa.export.card import Origin
from poa.export.timm import write_size
from poa.families.slim_resnet import SlimResNet, SlimResNetBackbone

WIDTHS = [16, 32, 48, 64]
RESNET50 = SlimResNet(SearchSpace.grid(WIDTHS, [(3, 4, 6, 3)]))
FAMILY = SlimResNet(SearchSpace.grid([8, 16, 24, 32], [(1, 2, 1, 1)]), image_size=64)
IMAGES = 4 * filler((4, 3, 48, 48), 1).float()


def nets_of(family: SlimResNet) -> SwitchableNetworks:
    return SwitchableNetworks(family.build, family.space.sizes[::-1])


NETS = nets_of(FAMILY)
BASIC = replace(FAMILY, architecture="resnetv2_18")
FAMILIES = {"bottleneck": (FAMILY, NETS), "basic": (BASIC, nets_of(BASIC))}


def noise(network: nn.Module) -> None:
    """Statistics and scales around 1, weights of a usual size: nothing dies, nothing explodes."""
    with torch.no_grad():
        for number, (name, tensor) in enumerate(state(network).items()):
            if tensor.is_floating_point():
                of_norm = name.endswith(("running_var", "norm.weight")) or (tensor.ndim == 1 and "weight" in name)
                spread = 0.5 if tensor.ndim == 1 else 4.0 / math.sqrt(tensor[0].numel())
                tensor.copy_(spread * filler(tuple(tensor.shape), number).float() + float(of_norm))


@pytest.fixture
def whole() -> nn.Module:
    network = NETS.whole()
    noise(network)
    return network


def torchvision_name(name: str) -> str:
    """What torchvision and timm's class ``ResNet`` call a tensor of ours."""
    name = name.replace("stem.conv.", "conv1.").replace("stem.norm.", "bn1.")
    name = re.sub(r"stages\.(\d)\.blocks\.", lambda found: f"layer{int(found[1]) + 1}.", name)
    name = name.replace("downsample.conv.", "downsample.0.").replace("downsample.norm.", "downsample.1.")
    return name.replace(".norm", ".bn")


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "backbone", "with_probe", "gmacs"),
    [
        ("64x3-4-6-3", 23_508_032, 25_557_032, 4.087),
        ("48x3-4-6-3", 13_234_992, 14_771_992, 2.321),
        ("32x3-4-6-3", 5_892_640, 6_917_640, 1.051),
        ("16x3-4-6-3", 1_480_976, 1_993_976, 0.278),
    ],
)
def test_costs_of_resnet50_are_the_official_ones(size: str, backbone: int, with_probe: int, gmacs: float) -> None:
    with torch.device("meta"):
        network = RESNET50.build(RESNET50.space.find(size))
    assert parameters(network) == backbone
    assert backbone + 1000 * network.num_features + 1000 == with_probe
    assert flops(network, 224) / 2e9 == pytest.approx(gmacs, abs=5e-4)


def test_all_widths_together() -> None:
    """What is stored: the full network, and the BatchNorms of the others besides."""
    with torch.device("meta"):
        whole = nets_of(RESNET50).whole()
    assert parameters(whole) == 25_636_712 - 2_049_000  # the official count has a probe
    norms = [layer for layer in whole.modules() if isinstance(layer, Switchable)]
    assert len(norms) == 53
    assert sum(parameter.numel() for layer in norms for parameter in layer.parameters()) == 132_800


@pytest.mark.parametrize(("name", "depths"), [("resnet101", (3, 4, 23, 3)), ("resnet152", (3, 8, 36, 3))])
def test_deeper_networks_are_timms(name: str, depths: tuple[int, ...]) -> None:
    family = SlimResNet(SearchSpace.grid(WIDTHS, [depths]))
    with torch.device("meta"):
        ours = family.build(family.space.intact).model.state_dict()
        theirs = timm.create_model(name, num_classes=0).state_dict()
    assert {torchvision_name(key): value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items()
    }


@pytest.mark.parametrize(("name", "depths"), [("resnetv2_18", (2, 2, 2, 2)), ("resnetv2_34", (3, 4, 6, 3))])
def test_basic_blocks_are_timms(name: str, depths: tuple[int, ...]) -> None:
    family = SlimResNet(SearchSpace.grid(WIDTHS, [depths]), architecture=name)
    with torch.device("meta"):
        ours = family.build(family.space.intact).model.state_dict()
        theirs = timm.create_model(name, num_classes=0)
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
    assert SlimResNet.read(theirs)["depth_max"] == depths
    assert family.layer("backbone.model.norm.1.weight") == family.layer(
        f"backbone.model.stages.3.blocks.{depths[3] - 1}."
    )


# ---- the same network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_the_full_width_is_timms_resnet(training: bool) -> None:
    """That of torchvision, stride in the 3x3 convolution, bit for bit."""
    ours = RESNET50.build(RESNET50.space.intact).train(training).model
    noise(ours)
    theirs = timm.create_model("resnet50", num_classes=0).train(training)
    theirs.load_state_dict({torchvision_name(key): value for key, value in ours.state_dict().items()})
    with torch.no_grad():
        features = ours(IMAGES)
        assert torch.equal(features, theirs(IMAGES))
    assert features.isfinite().all()
    assert features.std(0).max() > 0.01
    after = theirs.state_dict()
    assert all(torch.equal(after[torchvision_name(key)], value) for key, value in ours.state_dict().items())


def plain_timm(kind: str, whole: nn.Module, number: int) -> Any:
    """A timm model that knows nothing of us, with the first channels of the weights and the BatchNorms of a number."""
    family, nets = FAMILIES[kind]
    size = nets.sizes[number]
    architecture, arguments = family.timm_config(size)
    model = timm.create_model(architecture, **json.loads(json.dumps(arguments)))
    theirs, own = whole.state_dict(), {}
    for name, value in model.state_dict().items():
        layer, _, kind = name.rpartition(".")
        switched = f"model.{layer}.{number}.{kind}"
        source = theirs[switched] if switched in theirs else theirs[f"model.{name}"]
        own[name] = source[tuple(slice(0, length) for length in value.shape)].clone()
    model.load_state_dict(own)
    return model


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_width_is_a_plain_timm_model_bit_for_bit(kind: str, number: int, training: bool) -> None:
    nets = FAMILIES[kind][1]
    whole = nets.whole()
    noise(whole)
    model = plain_timm(kind, whole, number).train(training)
    bound = nets.bind(nets.sizes[number], state(whole), training=training)
    for _ in range(2):
        features, expected = bound(IMAGES).cls, model(IMAGES)
        assert torch.equal(features, expected)
    assert features.std(0).max() > 0.01
    if training:
        features.square().sum().backward()
        expected.square().sum().backward()
    moved = nets.extract(nets.sizes[number], whole)
    assert isinstance(moved.model, nn.Module)
    assert all(torch.equal(moved.model.state_dict()[name], value) for name, value in model.state_dict().items())
    for name, parameter in model.named_parameters() if training else ():
        cut = nets.plan(nets.sizes[number]).cuts[f"model.{name}"]
        gradient = whole.get_parameter(cut.source).grad
        assert gradient is not None
        assert torch.equal(gradient[tuple(slice(0, length) for length in parameter.shape)], parameter.grad)


@pytest.mark.parametrize("kind", FAMILIES)
def test_export_of_every_width(kind: str, tmp_path: Path) -> None:
    """The export itself compares what timm loads with what was trained."""
    family, nets = FAMILIES[kind]
    whole = nets.whole()
    noise(whole)
    preprocessing = Preprocessing(family.image_size, family.image_size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    for size in nets.sizes:
        network, elastic = nets.extract(size, whole), nets.bind(size, state(whole), training=False)
        assert isinstance(network, SlimResNetBackbone)
        write_size(
            network,
            elastic,
            family=family,
            size=size,
            folder=tmp_path / str(size),
            preprocessing=preprocessing,
            origin=Origin("test"),
        )
        model = timm.create_model(f"local-dir:{tmp_path / str(size)}", pretrained=True, num_classes=7)
        assert model(IMAGES).shape == (4, 7)
        found = SlimResNet.read(model)
        assert (found["width_max"], found["depth_max"]) == (size.width, size.depths)


# ---- fresh networks --------------------------------------------------------------------------------------------------


def test_no_block_adds_anything_at_first() -> None:
    whole = NETS.whole()
    for number in range(4):
        gammas = {
            name: parameter
            for name, parameter in whole.named_parameters()
            if name.endswith(f".{number}.weight") and parameter.ndim == 1
        }
        silent = {name for name, gamma in gammas.items() if not gamma.any()}
        assert silent == {name for name in gammas if ".norm3." in name}
        assert len(silent) == 5
        assert all(bool((gamma == 1).all()) for name, gamma in gammas.items() if name not in silent)


def test_convolutions_start_as_those_of_the_full_network() -> None:
    """Kaiming's normal distribution by the fan-out of the whole tensor: a part of it is not drawn again."""
    torch.manual_seed(0)
    whole = nets_of(replace(RESNET50, space=SearchSpace.grid([16, 64], [(1, 1, 1, 1)]))).whole()
    convolutions = [layer for layer in whole.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 17
    for layer in convolutions:
        expected = math.sqrt(2 / (layer.out_channels * layer.kernel_size[0] ** 2))
        quarter = layer.weight[: layer.out_channels // 4]
        assert layer.weight.std().item() == pytest.approx(expected, rel=0.05)
        assert quarter.std().item() == pytest.approx(expected, rel=0.1)


# ---- masks -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_hidden_cells_are_not_seen(whole: nn.Module) -> None:
    """48 pixels leave 12x12 cells after the stem and 2x2 at the end; masks have 4x4."""
    assert FAMILY.mask_grid(48) == 4
    mask = torch.zeros(4, 16, dtype=torch.bool)
    everything = torch.ones(4, 16, dtype=torch.bool)
    for size in NETS.sizes:
        bound = NETS.bind(size, state(whole), training=False)
        features = bound(IMAGES)
        assert features.patches.shape == (4, 16, features.cls.shape[1])
        assert torch.equal(bound(IMAGES, mask).cls, features.cls)
        hidden = bound(IMAGES, everything).cls
        assert torch.allclose(hidden, hidden[:1].expand_as(hidden), atol=1e-5)
        assert not torch.allclose(features.cls[0], features.cls[1], atol=1e-3)


# ---- settings --------------------------------------------------------------------------------------------------------


def test_layers_of_learning_rates() -> None:
    assert RESNET50.layer("backbone.model.stem.norm.2.weight") == 0
    assert RESNET50.layer("backbone.model.stages.0.blocks.0.downsample.norm.1.weight") == 1
    assert RESNET50.layer("backbone.model.stages.3.blocks.2.norm3.3.bias") == 16


def test_read() -> None:
    with torch.device("meta"):
        model = RESNET50.build(RESNET50.space.intact).model
        assert SlimResNet.read(model) == {
            "width_min": 16,
            "width_max": 64,
            "width_step": 16,
            "depth_min": (3, 4, 6, 3),
            "depth_max": (3, 4, 6, 3),
        }
        with pytest.raises(UserError, match="pre-activation"):
            SlimResNet.read(timm.create_model("resnetv2_50", num_classes=0))
        for arguments in ({"stem_type": "deep"}, {"avg_down": True}, {"norm_layer": "groupnorm"}):
            with pytest.raises(UserError, match="not made of plain blocks with BatchNorm"):
                SlimResNet.read(timm.create_model("resnetv2_50", preact=False, **arguments))
        for arguments in ({"stem_chs": 32}, {"channels": (256, 512, 768, 1024)}):
            with pytest.raises(UserError, match="channels do not double"):
                SlimResNet.read(timm.create_model("resnetv2_50", preact=False, **arguments))


def test_bad_settings() -> None:
    with pytest.raises(UserError, match=r"multiples of the channels that timm counts in, 8, got 20\. Change --model"):
        SlimResNet(SearchSpace.grid([20, 64], [(3, 4, 6, 3)]))
    with pytest.raises(UserError, match=r"same blocks, but 16x1-1-1-1 is not as deep as 32x2-2-2-2\. Set --model\.dep"):
        SlimResNet(SearchSpace.grid([16, 32], [(1, 1, 1, 1), (2, 2, 2, 2)]))
    with pytest.raises(UserError, match="has 4 stages, got blocks for 1"):
        SlimResNet(SearchSpace.grid([16, 32], [6]))
    with pytest.raises(UserError, match="without drop path"):
        FAMILY.build(FAMILY.space.intact, drop_path=0.1)
    with pytest.raises(UserError, match="16 pixels are too small"):
        replace(FAMILY, image_size=16)


def test_published_settings() -> None:
    found = SlimResNet.published
    assert found["depth_min"] == found["depth_max"]
    widths = range(found["width_min"], found["width_max"] + 1, found["width_step"])
    assert [Size(width, found["depth_max"]) for width in widths] == list(RESNET50.space.sizes)
