import pytest
import timm
import torch
from torch import nn

from poa.elastic.space import SearchSpace, Size
from poa.evaluation.cost import Cost, costs, costs_of, flops, parameters
from poa.families.vit import ViT


def vit(widths: tuple[int, ...], depths: tuple[int, ...], **options: bool) -> ViT:
    return ViT(SearchSpace.grid(widths, depths), image_size=32, patch_size=8, head_dim=16, **options)


def vit_flops(*, width: int, depth: int, patches: int, patch_size: int, mlp_ratio: int = 4) -> int:
    tokens = patches + 1
    linear = 2 * tokens * width * width * (3 + 1 + 2 * mlp_ratio)
    attention = 2 * (2 * tokens * tokens * width)
    return 2 * patches * width * 3 * patch_size**2 + depth * (linear + attention)


@pytest.mark.parametrize("fused_attention", [True, False])
@pytest.mark.parametrize(("width", "depth"), [(32, 2), (48, 3)])
def test_flops_of_a_vit_by_hand(width: int, depth: int, fused_attention: bool) -> None:
    network = vit((32, 48), (2, 3), fused_attention=fused_attention).build(Size(width, (depth,))).eval()
    assert flops(network, 32) == vit_flops(width=width, depth=depth, patches=16, patch_size=8)


def test_flops_at_another_image_size() -> None:
    network = vit((32,), (2,)).build(Size(32, (2,)))
    assert flops(network, 48) == vit_flops(width=32, depth=2, patches=36, patch_size=8)


def test_vit_small_costs_what_is_published() -> None:
    with torch.device("meta"):
        network = timm.create_model("vit_small_patch16_224").eval()
    assert flops(network, 224) / 2e9 == pytest.approx(4.6, abs=0.01)
    assert parameters(network) / 1e6 == pytest.approx(22.05, abs=0.01)


def test_network_is_left_as_it_was() -> None:
    network = vit((32,), (2,)).build(Size(32, (2,)))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    flops(network, 32)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_mask_token_is_no_parameter_of_the_model() -> None:
    network = vit((32,), (2,)).build(Size(32, (2,)))
    assert parameters(network) == sum(parameter.numel() for parameter in network.model.parameters())
    assert parameters(network) == sum(parameter.numel() for parameter in network.parameters()) - 32


def test_costs_of_all_sizes_equal_counting_each() -> None:
    family = vit((32, 48, 64), (2, 3, 5))
    found = costs(family.build, family.space.sizes, image_size=32)
    assert costs_of(family, 32) == found
    assert costs_of(vit((32, 48, 64), (2, 3, 5)), 32) is costs_of(family, 32)
    assert costs_of(family, 48) != found
    assert list(found) == list(family.space.sizes)
    for size in family.space.sizes:
        network = family.build(size)
        assert found[size] == Cost(parameters(network), flops(network, 32))


def test_costs_of_several_elastic_stages() -> None:
    class Stages(nn.Sequential):
        def __init__(self, size: Size) -> None:
            first, second = size.depths
            narrow = [nn.Conv2d(size.width if number else 3, size.width, 3, padding=1) for number in range(first)]
            wide = [nn.Conv2d(size.width * (2 if number else 1), size.width * 2, 1) for number in range(second)]
            super().__init__(*narrow, *wide)

    sizes = [Size(4, (1, 3)), Size(4, (3, 2)), Size(6, (2, 2))]
    found = costs(Stages, sizes, image_size=8)
    assert found == {size: Cost(parameters(Stages(size)), flops(Stages(size), 8)) for size in sizes}
    assert found[Size(4, (3, 2))].flops == 2 * 64 * (9 * (3 * 4 + 2 * 4 * 4) + 4 * 8 + 8 * 8)
