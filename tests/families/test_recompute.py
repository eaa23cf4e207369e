"""Blocks that are computed again in the backward pass, in networks of all families."""

import pytest
import torch
from torch import Tensor

from elastic.stored import stored
from families.networks import TINY, noisy, sub_networks
from poa.elastic.network import SubNetworks, state
from poa.elastic.recompute import recompute
from poa.elastic.space import Size
from poa.families.base import Backbone

pytestmark = pytest.mark.usefixtures("uninitialised")


@pytest.mark.parametrize("name", TINY)
def test_a_sub_network_that_computes_its_blocks_again_has_the_same_gradients(name: str) -> None:
    """With drop path and autocast; half of the values are not kept, and the cuts are out of place when used again."""
    family = TINY[name]
    drop_path = 0.0 if name == "resnet" else 0.5
    size, intact = family.space.sizes[0], noisy(family, drop_path=drop_path)
    grid = family.mask_grid(family.image_size)
    masks = torch.arange(4 * grid * grid).view(4, -1) % 3 == 0
    images = torch.linspace(-1.0, 1.0, 4 * 3 * family.image_size**2).view(4, 3, family.image_size, -1)

    def built(chosen: Size) -> Backbone:
        backbone = family.build(chosen, drop_path=drop_path)
        for block in backbone.blocks:
            recompute(block)
        return backbone

    def run(networks: SubNetworks) -> tuple[list[Tensor], int]:
        torch.manual_seed(0)
        found: list[Tensor] = []

        def losses() -> None:
            network = networks.bind(size, state(intact), training=True)
            found.extend(part.square().sum() for part in network(images, masks))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found.extend(part.float().square().sum() for part in network(images[:2], None))

        kept = sum(tensor.numel() for tensor in stored(losses))
        gradients = torch.autograd.grad(torch.stack(found).sum(), list(intact.parameters()), allow_unused=True)
        return [*found, *(gradient for gradient in gradients if gradient is not None)], kept

    again = SubNetworks(built, family.space.intact, source=family.source, groups=family.groups)
    (expected, everything), (given, kept) = run(sub_networks(family, drop_path=drop_path)), run(again)
    assert len(expected) == len(given) > 10
    assert all(torch.equal(*each) for each in zip(expected, given, strict=True))
    assert kept < 0.5 * everything
