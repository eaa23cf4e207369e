"""What a size keeps of the intact network's parameters, by how much they are scaled, and where they are."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from families.networks import TINY, published, shapes, sub_networks
from poa.elastic.space import Size

pytestmark = pytest.mark.usefixtures("uninitialised")


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
