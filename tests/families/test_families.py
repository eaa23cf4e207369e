"""What every family promises: a size is a plain timm model, cut out of the intact one, with masks as published."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import tiny
from conformance import filler
from poa.config import Config
from poa.elastic.network import SubNetworks
from poa.elastic.space import SearchSpace, Size
from poa.errors import UserError
from poa.families.base import Backbone, Family
from poa.families.convnext import ConvNeXt
from poa.families.resnet import ResNet
from poa.families.swin import Swin
from poa.networks import family_of

TINY = {name: family_of(tiny.config(name)) for name in tiny.FAMILIES}


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


@pytest.fixture(autouse=True)
def uninitialised(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here looks at initial values, and drawing them takes most of the time of building a network."""
    drawn = (
        "timm.layers.weight_init._trunc_normal_",
        "torch.nn.init.kaiming_normal_",
        "torch.nn.init.kaiming_uniform_",
    )
    for name in drawn:
        monkeypatch.setattr(name, lambda tensor, *_, **__: tensor)


# ---- the same by timm alone ------------------------------------------------------------------------------------------

HIERARCHICAL = {"swin": "patch_embed", "resnet": "maxpool", "convnext": "stem"}
"""Where the networks whose maps shrink hide patches: after this part of the timm model."""


def timm_model(family: Family, size: Size, weights: nn.Module) -> Any:
    architecture, arguments = family.timm_config(size)
    model = timm.create_model(architecture, **arguments).eval()
    model.load_state_dict(weights.state_dict(), assign=True)
    return model


def timm_cells(name: str, model: Any, images: Tensor) -> Tensor:
    """The features of places, row by row: those of patches, or the cells of the last map, each four times."""
    maps = model.forward_features(images)
    if name not in HIERARCHICAL:
        tokens: Tensor = maps[:, model.num_prefix_tokens :]
        return tokens
    if name == "convnext":
        maps = model.head.norm(maps)
    if name != "swin":
        maps = maps.permute(0, 2, 3, 1)
    rows, columns = maps.shape[1:3]
    return torch.stack([maps[:, i // 2, j // 2] for i in range(2 * rows) for j in range(2 * columns)], dim=1)


@contextmanager
def hidden(name: str, model: Any, mask: Tensor, token: Tensor) -> Iterator[None]:
    """Within, the timm model sees the token where patches are hidden."""
    side = round(mask.shape[1] ** 0.5)
    channels_last = name != "resnet" and name != "convnext"

    def hide(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        maps = output if channels_last else output.permute(0, 2, 3, 1)
        maps = maps.clone()
        rows, columns = maps.shape[1:3]
        for image, i, j in torch.cartesian_prod(*map(torch.arange, (len(maps), rows, columns))).tolist():
            if mask[image, i * side // rows * side + j * side // columns]:
                maps[image, i, j] = token
        return maps if channels_last else maps.permute(0, 3, 1, 2)

    with getattr(model, HIERARCHICAL.get(name, "patch_embed")).register_forward_hook(hide):
        yield


@torch.no_grad()
def assert_timm_equals_elastic(
    name: str, family: Family, nets: SubNetworks, intact: Backbone, size: Size, *, sides: tuple[int, ...]
) -> None:
    extracted = nets.extract(size, intact)
    assert isinstance(extracted.model, nn.Module)
    model = timm_model(family, size, extracted.model)
    elastic = nets.bind(size, dict(intact.named_parameters()), training=False)
    for side in sides:
        images = filler((2, 3, side, side), side).float()
        features = elastic(images)
        assert features.cls.isfinite().all(), (size, side)
        assert features.cls.std(0).max() > 0.01, (size, side)  # not the same for all images
        assert torch.equal(model(images), features.cls), (size, side)
        assert torch.equal(timm_cells(name, model, images), features.patches), (size, side)


NUM_SIZES = {"swin": 39, "resnet": 60, "convnext": 20}


@pytest.mark.parametrize("name", NUM_SIZES)
def test_the_timm_model_of_every_depth_equals_the_elastic_sub_network_bit_for_bit(name: str) -> None:
    """All 39 sizes of the published Swin, 60 of the ResNet's 465 and 20 of a ConvNeXt's 57, seen at few pixels."""
    family = narrowed(name)
    assert len(family.space.sizes) == len(published(name).space.sizes)
    intact, nets = noisy(family), sub_networks(family)
    sizes = random.Random(name).sample(family.space.sizes, NUM_SIZES[name])
    for size in sizes:
        assert_timm_equals_elastic(name, family, nets, intact, size, sides=(32,) if name == "resnet" else (64,))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("swin", ("96x6", "112x13")),
        ("resnet", ("64x4-6", "96x5-17", "128x8-36")),
        ("convnext", ("96x9", "112x20", "128x27")),
    ],
)
def test_published_widths_as_well(name: str, sizes: tuple[str, ...]) -> None:
    family = published(name)
    intact, nets = noisy(family), sub_networks(family)
    for size in sizes:
        assert_timm_equals_elastic(name, family, nets, intact, family.space.find(size), sides=(64,))


@pytest.mark.parametrize("name", TINY)
def test_images_of_other_sizes(name: str) -> None:
    """At sides that are no multiple of windows and strides too, where the family takes them."""
    family = TINY[name]
    intact, nets = noisy(family), sub_networks(family)
    sides = tuple(side for side in (16, 24, 32, 36, 46, 57, 80) if fits(family, side))
    assert len(sides) > 3
    for size in family.space.sizes:
        assert_timm_equals_elastic(name, family, nets, intact, size, sides=sides)


def fits(family: Family, side: int) -> bool:
    return side >= family.smallest_image and side % getattr(family, "patch_size", 1) == 0


VARIANTS: dict[str, tuple[str, Family]] = {
    "swin, larger windows": ("swin", replace(TINY["swin"], window_size=3, mlp_ratio=2.5)),
    "swin, patch 4": ("swin", replace(TINY["swin"], patch_size=4, image_size=32, head_dim=16)),
    "swin, own attention": ("swin", replace(TINY["swin"], fused_attention=False)),
    "resnet, wider than it hands on": ("resnet", replace(TINY["resnet"], channels=32)),
    "convnext, version 2": ("convnext", replace(TINY["convnext"], architecture="convnextv2_atto", layer_scale=None)),
    "convnext, overlapping stem": ("convnext", replace(TINY["convnext"], architecture="convnext_atto_ols")),
    "convnext, LayerScale 1": ("convnext", replace(TINY["convnext"], layer_scale=1.0)),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant: str) -> None:
    name, family = VARIANTS[variant]
    intact, nets = noisy(family), sub_networks(family)
    for size in (family.space.sizes[0], family.space.intact):
        assert_timm_equals_elastic(name, family, nets, intact, size, sides=(32, 48))


# ---- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_masked_patches_are_hidden_from_the_timm_model(name: str) -> None:
    """Every size, bit for bit; the mask token is cut with the rest where its width is elastic."""
    family = TINY[name]
    intact, nets = noisy(family), sub_networks(family)
    for size in family.space.sizes:
        extracted = nets.extract(size, intact)
        assert isinstance(extracted.model, nn.Module)
        model = timm_model(family, size, extracted.model)
        token = extracted.get_parameter("mask_token")
        elastic = nets.bind(size, dict(intact.named_parameters()), training=False)
        for side in (side for side in (16, 32, 56, 80) if fits(family, side)):
            images = filler((3, 3, side, side), 7).float()
            mask = torch.rand(3, family.mask_grid(side) ** 2, generator=torch.Generator().manual_seed(side)) < 0.5
            with torch.no_grad(), hidden(name, model, mask, token):
                features = elastic(images, mask)
                assert torch.equal(model(images), features.cls)
                assert torch.equal(timm_cells(name, model, images), features.patches)
            assert not torch.equal(features.cls, elastic(images).cls)


@pytest.mark.parametrize("name", TINY)
def test_an_empty_mask_is_no_mask_and_still_gives_the_mask_token_a_gradient(name: str) -> None:
    backbone, side = noisy(TINY[name]), TINY[name].image_size
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, TINY[name].mask_grid(side) ** 2, dtype=torch.bool)
    features = backbone(images, mask)
    assert torch.equal(features.cls, backbone(images).cls)
    assert torch.equal(features.patches, backbone(images).patches)
    features.cls.sum().backward()
    assert backbone.mask_token.grad is not None
    assert backbone.mask_token.grad.count_nonzero() == 0


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_gets_a_gradient_from_masked_images(name: str) -> None:
    """Processes wait for the gradient of each; one that has none would stop a run on several."""
    family = TINY[name]
    backbone, side = noisy(family), family.image_size
    mask = torch.arange(3 * family.mask_grid(side) ** 2).view(3, -1) % 2 == 0
    features = backbone(filler((3, 3, side, side), 1).float(), mask)
    (features.cls.square().sum() + features.patches.square().sum()).backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []
    assert backbone.mask_token.grad is not None
    assert backbone.mask_token.grad.count_nonzero() > 0


@pytest.mark.parametrize("name", TINY)
def test_masks_have_a_cell_for_each_patch_feature(name: str) -> None:
    family = TINY[name]
    backbone = family.build(family.space.sizes[0])
    for side in (side for side in range(8, 100, 2) if fits(family, side)):
        features = backbone(torch.zeros(1, 3, side, side))
        assert features.patches.shape == (1, family.mask_grid(side) ** 2, backbone.num_features), side
        assert features.cls.shape == (1, backbone.num_features)


@pytest.mark.parametrize(
    ("name", "grid"), [("vit", 14), ("dinov3", 14), ("swin", 14), ("resnet", 14), ("convnext", 14)]
)
def test_published_mask_grids(name: str, grid: int) -> None:
    assert published(name).mask_grid(224) == grid


# ---- search spaces and numbers ---------------------------------------------------------------------------------------


def test_published_swin_list() -> None:
    """Numbers of entries from the official code."""
    space = published("swin").space
    counts = Counter(space.entries)
    assert (len(counts), len(space.entries)) == (len(space.sizes), 89) == (39, 89)
    assert {size.width for size in counts} == {96, 112, 128}
    assert {size.depths for size in counts} == {(depth,) for depth in range(6, 19)}
    assert space.entries[-1] == space.intact == Size(128, (18,))
    assert [counts[space.find(size)] for size in ("96x6", "96x18", "128x18")] == [4, 2, 1]


def test_published_resnet_list() -> None:
    """Numbers of entries from the official code; widths weigh the same."""
    space = published("resnet").space
    counts = Counter(space.entries)
    assert (len(counts), len(space.entries)) == (len(space.sizes), 699) == (465, 699)
    assert {size.width for size in counts} == {64, 96, 128}
    assert {size.depths for size in counts} == {(two, three) for two in range(4, 9) for three in range(6, 37)}
    assert space.entries[-1] == space.intact == Size(128, (8, 36))
    assert [counts[space.find(size)] for size in ("64x4-6", "96x4-6", "128x4-6", "128x8-36")] == [2, 2, 2, 1]
    by_total = [sum(size.depths) for size in space.sizes[:155]]
    assert by_total == sorted(by_total)


def kept_blocks(family: Family, size: str, prefix: str) -> list[int]:
    """Numbers of the intact network's blocks, read off the plan."""
    cuts = sub_networks(family).plan(family.space.find(size)).cuts
    numbers: dict[int, int] = {}
    for name, cut in cuts.items():
        if name.startswith(prefix):
            ours, theirs = (int(each.removeprefix(prefix).split(".")[0]) for each in (name, cut.source))
            assert numbers.setdefault(ours, theirs) == theirs
    return [numbers[block] for block in range(len(numbers))]


def test_kept_blocks_of_swin() -> None:
    """Of the third stage, as the official code keeps them; other stages keep all."""
    family = narrowed("swin")
    assert kept_blocks(family, "24x6", "model.layers.2.blocks.") == [0, 3, 6, 10, 13, 17]
    for stage in (0, 1, 3):
        assert kept_blocks(family, "24x6", f"model.layers.{stage}.blocks.") == [0, 1]


def test_kept_blocks_of_resnet() -> None:
    family = narrowed("resnet")
    assert kept_blocks(family, "32x4-6", "model.layer2.") == [0, 2, 4, 7]
    assert kept_blocks(family, "32x4-6", "model.layer3.") == [0, 7, 14, 21, 28, 35]
    assert kept_blocks(family, "64x5-23", "model.layer3.") == [
        0, 1, 3, 4, 6, 7, 9, 11, 12, 14, 15, 17, 19, 20, 22, 23, 25, 27, 28, 30, 31, 33, 35
    ]  # fmt: skip
    for stage in (1, 4):
        assert kept_blocks(family, "32x4-6", f"model.layer{stage}.") == [0, 1, 2]


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("size", "layers"), [("64x4-6", (3, 4, 6, 3)), ("64x4-23", (3, 4, 23, 3)), ("64x8-36", (3, 8, 36, 3))]
)
def test_named_resnets_are_timms(size: str, layers: tuple[int, ...]) -> None:
    """ResNet-50, -101 and -152 with group norm, parameter by parameter."""
    family = published("resnet")
    with torch.device("meta"):
        ours = family.build(family.space.find(size)).model
        theirs = timm.create_model("resnet50_gn", num_classes=0, layers=layers)
    assert shapes(ours) == shapes(theirs)
    assert round(count(theirs) / 1e6, 1) == {6: 23.5, 23: 42.5, 36: 58.1}[layers[2]]


def test_the_intact_resnet_is_as_large_as_published() -> None:
    family = published("resnet")
    with torch.device("meta"):
        assert round(count(family.build(family.space.intact)) / 1e6, 1) == 172.6


@pytest.mark.parametrize(
    ("size", "name"), [("96x6", "tiny"), ("96x18", "small"), ("128x18", "base"), ("192x18", "large")]
)
def test_named_swins_are_timms_with_heads_of_16_channels(size: str, name: str) -> None:
    family = published("swin", width_max=192)
    known = family.space.find(size)
    with torch.device("meta"):
        ours = family.build(known).model
        heads = tuple(known.width // 16 * 2**stage for stage in range(4))
        theirs = timm.create_model(f"swin_{name}_patch4_window7_224", num_classes=0, num_heads=heads)
    assert shapes(ours) == shapes(theirs)


def test_the_published_convnext_is_timms() -> None:
    family = published("convnext")
    with torch.device("meta"):
        for size, name in (("96x9", "tiny"), ("96x27", "small"), ("128x27", "base")):
            theirs = timm.create_model(f"convnext_{name}", num_classes=0)
            assert shapes(family.build(family.space.find(size)).model) == shapes(theirs)


# ---- cuts ------------------------------------------------------------------------------------------------------------


def runs(*, number: int, whole: int, part: int) -> list[int]:
    """The first entries of each of some equal groups."""
    return [group * whole + place for group in range(number) for place in range(part)]


def test_cuts_of_swin() -> None:
    """Rows of q, k and v; four runs of columns where patches are merged; the first heads' position tables."""
    family = published("swin")
    cuts = sub_networks(family).plan(Size(96, (6,))).cuts
    for stage in range(4):
        whole, part = 128 * 2**stage, 96 * 2**stage
        block = f"model.layers.{stage}.blocks.1."
        qkv = cuts[f"{block}attn.qkv.weight"]
        rows = qkv(torch.arange(3.0 * whole)[:, None].expand(-1, whole))[:, 0] / qkv.scale
        assert rows.round().tolist() == runs(number=3, whole=whole, part=part)
        assert qkv.shape == (3 * part, part)
        bias = cuts[f"{block}attn.qkv.bias"](torch.arange(3 * whole))
        assert bias.tolist() == runs(number=3, whole=whole, part=part)
        table = cuts[f"{block}attn.relative_position_bias_table"](torch.arange(whole // 16).expand(169, -1))
        assert table[5].tolist() == list(range(part // 16))
    for stage in range(1, 4):
        whole, part = 128 * 2 ** (stage - 1), 96 * 2 ** (stage - 1)
        reduction = cuts[f"model.layers.{stage}.downsample.reduction.weight"]
        assert reduction.shape == (2 * part, 4 * part)
        columns = reduction(torch.arange(4.0 * whole).expand(2 * whole, -1))[0] / reduction.scale
        assert columns.round().tolist() == runs(number=4, whole=whole, part=part)
        rows = reduction(torch.arange(2.0 * whole)[:, None].expand(-1, 4 * whole))[:, 0] / reduction.scale
        assert rows.round().tolist() == list(range(2 * part))
        for kind in ("weight", "bias"):
            kept = cuts[f"model.layers.{stage}.downsample.norm.{kind}"](torch.arange(4 * whole))
            assert kept.tolist() == runs(number=4, whole=whole, part=part)


SCALED: dict[str, Callable[[str], bool]] = {
    "swin": lambda name: name.endswith(
        ("attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight", "downsample.reduction.weight")
    ),
    "resnet": lambda name: name.startswith("model.layer") and name.endswith(("conv2.weight", "conv3.weight")),
    "convnext": lambda name: name.endswith(("mlp.fc1.weight", "mlp.fc2.weight", "downsample.1.weight")),
}


@pytest.mark.parametrize("name", SCALED)
def test_layers_whose_fan_in_shrinks_are_scaled_and_nothing_else(name: str) -> None:
    family = published(name)
    nets = sub_networks(family)
    widths = sorted({size.width for size in family.space.sizes})
    for width in widths:
        size = next(size for size in family.space.sizes if size.width == width)
        alpha = family.space.intact.width / width
        cuts = nets.plan(size).cuts
        expected = {each: alpha if SCALED[name](each) else 1.0 for each in cuts}
        assert {each: cut.scale for each, cut in cuts.items()} == expected
        assert Counter(expected.values())[alpha] > 20


def test_what_resnets_hand_on_is_not_cut() -> None:
    """Only what is inside a block is; norms over it keep 32 groups."""
    family = published("resnet")
    cuts, whole = sub_networks(family).plan(Size(64, (4, 6))).cuts, shapes(family.build(family.space.intact).model)
    narrower = {name for name, cut in cuts.items() if cut.shape != whole.get(cut.source.removeprefix("model."), (64,))}
    inside = ("conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias", "conv3.weight")
    assert narrower == {name for name in cuts if name.startswith("model.layer") and name.endswith(inside)}
    small = family.build(Size(64, (4, 6)))
    assert {norm.num_groups for norm in small.modules() if isinstance(norm, nn.GroupNorm)} == {32}


@pytest.mark.parametrize("name", TINY)
def test_a_size_runs_where_its_weights_are(name: str) -> None:
    """On a GPU that is only pretended: tensors have a device, but no values."""
    family = TINY[name]
    size, side, weights = family.space.sizes[0], family.image_size, shapes(family.build(family.space.intact))
    nets = sub_networks(family)
    nets.plan(size)
    with FakeTensorMode(allow_non_fake_inputs=True):
        parameters = {each: torch.empty(shape, device="cuda") for each, shape in weights.items()}
        mask = torch.empty(2, family.mask_grid(side) ** 2, dtype=torch.bool, device="cuda")
        features = nets.bind(size, parameters, training=False)(torch.empty(2, 3, side, side, device="cuda"), mask)
        assert features.cls.device.type == features.patches.device.type == "cuda"


# ---- training --------------------------------------------------------------------------------------------------------

DROPPING = [name for name in TINY if name != "resnet"]


@pytest.mark.parametrize("name", DROPPING)
def test_sub_networks_drop_in_training_only(name: str) -> None:
    family = TINY[name]
    size, side = family.space.sizes[0], family.image_size
    student = noisy(family, drop_path=0.5)
    nets = sub_networks(family, drop_path=0.5)
    images = torch.randn(8, 3, side, side, generator=torch.Generator().manual_seed(0))
    parameters = dict(student.named_parameters())
    torch.manual_seed(0)
    expected = sub_networks(family).extract(size, student)(images).cls
    assert torch.equal(nets.extract(size, student)(images).cls, expected)
    assert torch.equal(nets.bind(size, parameters, training=False)(images).cls, expected)
    assert not torch.equal(nets.bind(size, parameters, training=True)(images).cls, expected)


def test_a_teacher_never_drops() -> None:
    """Also where the architecture has a rate of its own, as timm's Swins have."""
    for name in ("swin", "swin_tiny_patch4_window7_224", "convnext", "convnextv2_atto"):
        family = published(name)
        with torch.device("meta"):
            backbone = family.build(family.space.sizes[0])
        assert [module for module in backbone.modules() if type(module).__name__ == "DropPath"] == []


@pytest.mark.parametrize(("name", "blocks"), [("swin", (2, 2, 18, 2)), ("convnext", (3, 3, 27, 3))])
def test_a_block_keeps_the_drop_path_rate_of_the_intact_network(name: str, blocks: tuple[int, ...]) -> None:
    """Rates grow evenly over all blocks of the intact network."""
    family, total = narrowed(name), sum(blocks)
    before = blocks[0] + blocks[1]
    third = {"swin": [0, 3, 6, 10, 13, 17], "convnext": [0, 3, 6, 9, 13, 16, 19, 22, 26]}[name]
    kept = [*range(before), *(before + block for block in third), *range(before + blocks[2], total)]
    backbone = family.build(Size(24, (len(third),)), drop_path=0.2)
    rates = [rates_of(block) for block in backbone.blocks]
    assert rates == [pytest.approx([0.2 * block / (total - 1)] * len(rates[1])) for block in kept]


def rates_of(block: nn.Module) -> list[float]:
    """Of a block's branches; an identity drops nothing."""
    paths = [module for name, module in block.named_modules() if name.startswith("drop_path")]
    return [float(getattr(path, "drop_prob", 0.0)) for path in paths]


def test_a_convnext_is_not_silenced() -> None:
    with pytest.raises(UserError, match="would silence every block"):
        replace(TINY["convnext"], layer_scale=0.0)
