from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conformance import filler
from poa.elastic.network import SubNetworks
from poa.elastic.plan import Cut, SlicePlan, even_blocks
from poa.elastic.space import Size


class Toy(nn.Module):
    """A network with a fused layer (three groups of rows), a norm, a chain of blocks and a table of real numbers."""

    table: Tensor

    def __init__(self, width: int, depth: int, *, in_channels: int = 3) -> None:
        super().__init__()
        self.patch = nn.Conv2d(in_channels, width, 2, stride=2)
        self.fused = nn.Linear(width, 3 * width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.token = nn.Parameter(torch.randn(width))
        self.register_buffer("table", torch.arange(6.0))

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).mean((2, 3)) + self.token
        first, second, third = self.fused(x).chunk(3, dim=1)
        x = self.norm(first * second + third) + self.table.sum()
        for block in self.blocks:
            x = x + block(x).tanh()
        return x


INTACT, SMALL = Size(8, (4,)), Size(4, (2,))
ALPHA = 2.0


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    torch.manual_seed(0)


def build(size: Size) -> Toy:
    return Toy(size.width, size.depths[0])


def source(name: str, size: Size) -> str:
    if not name.startswith("blocks."):
        return name
    _, number, kind = name.split(".")
    return f"blocks.{even_blocks(4, size.depths[0])[int(number)]}.{kind}"


def groups(name: str) -> tuple[int, ...]:
    return (3,) if name.startswith("fused.") else ()


def sub_networks() -> SubNetworks:
    return SubNetworks(build, INTACT, source=source, groups=groups, castable=lambda name: name.startswith("fused."))


def toy_parameters() -> dict[str, Tensor]:
    """Of the intact network, as leaves in float64."""
    shapes = {name: tuple(value.shape) for name, value in build(INTACT).named_parameters()}
    return {name: filler(shape, c).requires_grad_() for c, (name, shape) in enumerate(shapes.items())}


def slow_cut(intact: Tensor, *, shape: tuple[int, ...], groups: tuple[int, ...], scale: float) -> Tensor:
    """Entry by entry: inside its group, an entry keeps its place."""
    part = torch.empty(shape, dtype=intact.dtype)
    for place in product(*map(range, shape)):
        origin = []
        for i, length, full, number in zip(place, shape, intact.shape, groups, strict=True):
            group, inside = divmod(i, length // number)
            origin.append(group * (full // number) + inside)
        part[place] = intact[tuple(origin)] * scale
    return part


@pytest.mark.parametrize(
    ("full", "shape", "groups"),
    [
        ((6,), (4,), (1,)),
        ((6,), (6,), (1,)),
        ((12,), (6,), (3,)),
        ((12, 4), (6, 2), (3, 1)),
        ((12, 4), (12, 2), (3, 1)),
        ((4, 16), (2, 8), (1, 4)),
        ((6, 8), (4, 4), (2, 2)),
        ((12, 8), (6, 4), (3, 4)),
        ((4, 6, 2, 2), (2, 4, 2, 2), (1, 2, 1, 1)),
        ((1, 5, 6), (1, 5, 2), (1, 1, 1)),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_cuts_equal_plain_indexing(
    full: tuple[int, ...], shape: tuple[int, ...], groups: tuple[int, ...], scale: float
) -> None:
    intact = torch.arange(prod(full), dtype=torch.float64).view(full)
    cut = Cut("any", shape, groups, scale)
    assert torch.equal(cut(intact), slow_cut(intact, shape=shape, groups=groups, scale=scale))


def test_cuts_of_whole_parameters_copy_nothing() -> None:
    intact = filler((4, 3))
    assert Cut("any", (4, 3), (1, 1))(intact).data_ptr() == intact.data_ptr()
    assert Cut("any", (2, 3), (1, 1))(intact).data_ptr() == intact.data_ptr()


def test_weights_are_scaled_where_the_fan_in_shrinks_and_nothing_else() -> None:
    cuts = sub_networks().plan(SMALL).cuts
    scaled = {name: cut.scale for name, cut in cuts.items() if cut.scale != 1.0}
    assert scaled == dict.fromkeys(("fused.weight", "blocks.0.weight", "blocks.1.weight"), ALPHA)
    assert cuts.keys() == dict(build(SMALL).named_parameters()).keys()
    assert {cut.scale for cut in sub_networks().plan(INTACT).cuts.values()} == {1.0}


def test_a_hidden_width_scales_by_its_own_ratio() -> None:
    """The fan-in counts, not the width of the network: 12 of 32 hidden channels are kept, 4 of 8 outputs."""
    plan = SlicePlan.between(nn.Linear(32, 8), nn.Linear(12, 4), source=lambda name: name, groups=lambda _: ())
    assert plan.cuts["weight"] == Cut("weight", (4, 12), (1, 1), 32 / 12)


def test_a_sub_network_takes_the_blocks_its_source_names() -> None:
    parameters = toy_parameters()
    plan = sub_networks().plan(SMALL)
    assert plan.cuts["blocks.1.weight"].source == "blocks.3.weight"
    assert torch.equal(plan(parameters)["blocks.1.weight"], parameters["blocks.3.weight"][:4, :4] * ALPHA)
    fused = parameters["fused.bias"]
    assert torch.equal(plan(parameters)["fused.bias"], torch.cat([fused[0:4], fused[8:12], fused[16:20]]))


def test_gradients_are_those_of_the_extracted_network_times_alpha_and_zero_elsewhere() -> None:
    parameters = toy_parameters()
    nets = sub_networks()
    plan, images = nets.plan(SMALL), filler((5, 3, 4, 4), 99)
    nets.bind(SMALL, parameters, training=True)(images).square().sum().backward()

    intact = build(INTACT).double()
    intact.load_state_dict(parameters, strict=False)
    extracted = nets.extract(SMALL, intact).requires_grad_()
    extracted(images).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in extracted.named_parameters()}

    for name, cut in plan.cuts.items():
        whole, part = parameters[cut.source].grad, gradients[name]
        assert whole is not None
        assert part is not None
        assert part.abs().sum() > 0
        inside = slow_cut(whole, shape=cut.shape, groups=cut.groups, scale=1.0)
        torch.testing.assert_close(inside, part * cut.scale, rtol=1e-12, atol=0.0)
        assert whole.count_nonzero() == inside.count_nonzero()
    used = {cut.source for cut in plan.cuts.values()}
    assert {name for name, value in parameters.items() if value.grad is None} == parameters.keys() - used


def test_a_bound_network_equals_the_extracted_one() -> None:
    intact, images = build(INTACT), torch.randn(5, 3, 4, 4)
    nets = sub_networks()
    for size in (SMALL, Size(6, (3,)), INTACT):
        in_place = nets.bind(size, dict(intact.named_parameters()), training=False)(images)
        assert torch.equal(in_place, nets.extract(size, intact)(images))
    assert torch.equal(nets.extract(INTACT, intact)(images), intact(images))


def test_an_extracted_network_stands_alone() -> None:
    intact = build(INTACT)
    extracted = sub_networks().extract(SMALL, intact)
    before = {name: value.clone() for name, value in extracted.state_dict().items()}
    with torch.no_grad():
        for parameter in intact.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in extracted.state_dict().items())
    assert not extracted.training
    assert not any(parameter.requires_grad for parameter in extracted.parameters())


def test_only_castable_layers_are_cast_and_gradients_stay_in_full_precision() -> None:
    parameters = {name: value.detach().float().requires_grad_() for name, value in toy_parameters().items()}
    cut = sub_networks().plan(SMALL)(parameters, dtype=torch.bfloat16)
    low = {name for name, value in cut.items() if value.dtype == torch.bfloat16}
    assert low == {"fused.weight", "fused.bias"}
    assert {value.dtype for name, value in cut.items() if name not in low} == {torch.float32}
    expected = (parameters["fused.weight"][:4, :4] * ALPHA).to(torch.bfloat16)  # scaled before it is rounded
    assert torch.equal(cut["fused.weight"][:4], expected)
    cut["fused.weight"].float().sum().backward()
    gradient = parameters["fused.weight"].grad
    assert gradient is not None
    assert gradient.dtype == torch.float32


def test_norms_are_never_castable() -> None:
    plan = SlicePlan.between(
        build(INTACT), build(SMALL), source=lambda name: source(name, SMALL), groups=groups, castable=lambda _: True
    )
    uncast = {name for name, cut in plan.cuts.items() if not cut.castable}
    assert uncast == {"norm.weight", "norm.bias", "token"}


@pytest.mark.parametrize(
    ("sub", "groups", "message"),
    [
        (nn.Linear(9, 4), (), r"'weight' of shape \(4, 9\) cannot be cut from 'weight' of shape \(6, 8\)"),
        (nn.Linear(8, 7), (), "cannot be cut"),
        (nn.Conv2d(8, 6, 1), (), "cannot be cut"),
        (nn.Linear(8, 4), (3,), r"'weight' .* cannot be cut .* in \(3, 1\) equal groups"),
        (nn.Linear(8, 4), (4,), r"'weight' .* cannot be cut .* in \(4, 1\) equal groups"),
        (nn.Bilinear(2, 2, 2), (), "cannot be cut"),
        (nn.Sequential(nn.Linear(2, 2)), (), r"'0\.weight' of the sub-network has no source '0\.weight'"),
    ],
)
def test_what_does_not_fit_is_refused(sub: nn.Module, groups: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SlicePlan.between(nn.Linear(8, 6), sub, source=lambda name: name, groups=lambda _: groups)


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (12, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 23]),
        (16, [0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 18, 19, 21, 23]),
        (18, [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 16, 17, 18, 20, 21, 23]),
        (20, [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16, 18, 19, 20, 21, 23]),
    ],
)
def test_published_blocks_of_24(kept: int, expected: list[int]) -> None:
    assert list(even_blocks(24, kept)) == expected


@pytest.mark.parametrize("full", [8, 18, 24, 36])  # the elastic stages of the published networks
def test_blocks_equal_the_truncated_grid_of_the_official_code(full: int) -> None:
    for kept in range(1, full + 1):
        assert list(even_blocks(full, kept)) == np.linspace(0, full - 1, kept).astype(int).tolist()


def test_the_first_and_the_last_block_are_kept_and_none_comes_twice() -> None:
    for full in range(2, 65):
        for kept in range(2, full + 1):
            blocks = even_blocks(full, kept)
            assert (blocks[0], blocks[-1], len(set(blocks))) == (0, full - 1, kept)
            assert list(blocks) == sorted(blocks)


def test_binding_switches_drop_out_on_and_off() -> None:
    nets = SubNetworks(
        lambda size: nn.Sequential(nn.Linear(4, size.width), nn.Dropout(0.5)),
        INTACT,
        source=lambda name, _: name,
        groups=lambda _: (),
    )
    parameters = {"0.weight": torch.zeros(8, 4), "0.bias": torch.ones(8)}
    images = torch.zeros(16, 4)
    training, scoring = (nets.bind(SMALL, parameters, training=mode) for mode in (True, False))
    assert training(images).unique().tolist() == [0.0, 2.0]
    assert scoring(images).unique().tolist() == [1.0]
