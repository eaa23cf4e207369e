"""Which blocks of a size drop their branches, and when."""

import pytest
import torch
from torch import nn

from families.networks import TINY, narrowed, noisy, published, sub_networks
from poa.elastic.space import Size

pytestmark = pytest.mark.usefixtures("uninitialised")
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
