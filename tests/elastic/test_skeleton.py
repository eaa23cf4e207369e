"""Networks without values, and what they share."""

import gc

import pytest
import torch
from torch import Tensor, nn

from poa.elastic.network import SubNetworks
from poa.elastic.skeleton import SharedParts, skeleton
from poa.elastic.space import Size


class Toy(nn.Module):
    """Blocks with and without a setting that grows from block to block, and a table of real numbers."""

    table: Tensor

    def __init__(self, width: int = 4, depth: int = 2, *, drop: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(depth))
        self.drops = nn.ModuleList(nn.Dropout(drop * block / depth) for block in range(depth))
        self.token = nn.Parameter(torch.randn(width))
        self.register_buffer("table", torch.arange(6.0))


def test_a_skeleton_has_structure_and_buffers_but_no_storage() -> None:
    empty = skeleton(lambda: Toy())
    whole = Toy()
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert {name: value.shape for name, value in empty.named_parameters()} == {
        name: value.shape for name, value in whole.named_parameters()
    }
    assert torch.equal(empty.get_buffer("table"), torch.arange(6.0))


@pytest.mark.parametrize("with_buffers", [True, False])
def test_a_skeleton_consumes_no_random_numbers(with_buffers: bool) -> None:
    before = torch.get_rng_state()
    skeleton((lambda: Toy()) if with_buffers else (lambda: nn.Linear(64, 64)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_skeleton_keeps_frozen_parameters_frozen() -> None:
    def frozen() -> Toy:
        network = Toy()
        network.token.requires_grad_(False)
        return network

    empty = skeleton(frozen)
    assert [name for name, value in empty.named_parameters() if not value.requires_grad] == ["token"]


def test_initial_values_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, ...]] = []
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda tensor, *_, **__: drawn.append(tuple(tensor.shape)))
    skeleton(lambda: nn.Conv2d(4, 8, 3))
    assert drawn == [(8,)]  # of vectors alone, which are cheap


def parts(network: nn.Module) -> dict[str, nn.Module]:
    return dict(network.named_modules())


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (
            Toy(depth=3),
            {"blocks.0", "blocks.0.0", "blocks.0.1", "blocks.1", "blocks.1.0", "blocks.1.1", "drops.0", "drops.1"},
        ),
        (
            Toy(depth=3, drop=0.3),
            {"blocks.0", "blocks.0.0", "blocks.0.1", "blocks.1", "blocks.1.0", "blocks.1.1", "drops.0"},
        ),
        (Toy(width=8), {"blocks.0.1", "blocks.1.1", "drops.0", "drops.1", "drops"}),
        (Toy().eval(), set()),
        (Toy().requires_grad_(False), {"blocks.0.1", "blocks.1.1", "drops.0", "drops.1", "drops"}),
    ],
)
def test_parts_are_shared_where_name_class_settings_shapes_and_mode_are_equal(other: nn.Module, same: set[str]) -> None:
    shared = SharedParts()
    first, second = parts(shared(Toy())), parts(shared(other))
    assert {name for name in first.keys() & second.keys() if first[name] is second[name]} == same
    assert [type(part) for part in second.values()] == [type(part) for part in other.modules()]


def test_a_part_with_real_numbers_is_not_shared() -> None:
    shared = SharedParts()
    assert shared(Toy()) is not shared(Toy())


def test_what_no_network_uses_any_more_is_forgotten() -> None:
    shared = SharedParts()
    kept = shared(Toy())
    shared(Toy(depth=20))
    gc.collect()
    assert len(shared._known) == len(list(kept.modules()))


def test_sizes_of_one_width_take_hardly_more_than_the_deepest() -> None:
    nets = SubNetworks(
        lambda size: Toy(size.width, size.depths[0]), Size(4, (8,)), source=lambda name, _: name, groups=lambda _: ()
    )
    made = {id(part) for depth in range(1, 9) for part in nets._skeleton(Size(4, (depth,)), True).modules()}
    assert len(made) == 8 * 4 + 8 * 3  # four parts a block, and each network with its two lists
    plans = [nets.plan(Size(4, (depth,)), training=True) for depth in range(1, 9)]
    assert len({id(cut) for plan in plans for cut in plan.cuts.values()}) == 2 * 8 + 1
