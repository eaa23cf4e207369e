"""The published search spaces, their sizes, and the blocks that these keep."""

from collections import Counter

import pytest
import timm
import torch
from torch import nn

from families.networks import narrowed, published, shapes, sub_networks
from poa.elastic.space import Size
from poa.families.base import Family

pytestmark = pytest.mark.usefixtures("uninitialised")


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


@pytest.mark.parametrize(
    ("name", "prefix", "stage"),
    [
        ("swin", "model.layers.2.blocks.", 0),
        ("resnet", "model.layer2.", 0),
        ("resnet", "model.layer3.", 1),
        ("convnext", "model.stages.2.blocks.", 0),
    ],
)
def test_every_depth_keeps_blocks_in_order_from_the_first_to_the_last(name: str, prefix: str, stage: int) -> None:
    family = narrowed(name)
    last = family.space.intact.depths[stage] - 1
    for size in family.space.sizes:
        sources = [family.source(f"{prefix}{block}.weight", size) for block in range(size.depths[stage])]
        kept = [int(source.removeprefix(prefix).split(".")[0]) for source in sources]
        assert kept == sorted(set(kept))
        assert (kept[0], kept[-1]) == (0, last)


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
