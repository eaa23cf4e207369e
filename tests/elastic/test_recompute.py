"""Parts that keep their inputs alone have the outputs and gradients of those that keep everything."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from elastic.stored import stored
from poa.elastic.network import state
from poa.elastic.recompute import Recomputed, recompute

ROWS = torch.linspace(-1.0, 1.0, 32).view(8, 4)


class Block(nn.Module):
    """A residual branch of which some values are dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Dropout(0.5), nn.Linear(16, 4))

    def forward(self, rows: Tensor, *, scale: Tensor) -> Tensor:
        added: Tensor = scale * self.layers(rows)
        return rows + added


def pair() -> tuple[Block, Block]:
    torch.manual_seed(0)
    plain = Block()
    recomputed = copy.deepcopy(plain)
    recompute(recomputed)
    return plain, recomputed


def run(block: Block, tensors: dict[str, Tensor]) -> list[Tensor]:
    """Output, gradients, and a random number drawn after the backward pass, of two passes with other parameters."""
    torch.manual_seed(1)
    scale = torch.tensor(2.0, requires_grad=True)
    outputs = [functional_call(block, tensors, (ROWS + number,), {"scale": scale}) for number in range(2)]
    gradients = torch.autograd.grad(torch.stack(outputs).square().sum(), [scale, *tensors.values()])
    return [*outputs, *gradients, torch.rand(1)]


def test_a_part_is_computed_again_with_the_parameters_and_random_numbers_that_it_had() -> None:
    plain, recomputed = pair()
    given = {name: (value + 1.0).detach().requires_grad_() for name, value in plain.named_parameters()}
    for ours, theirs in ((state(plain), state(recomputed)), (given, given)):
        results = zip(run(plain, ours), run(recomputed, theirs), strict=True)
        assert all(torch.equal(expected, found) for expected, found in results)


def test_it_keeps_nothing_that_it_computes() -> None:
    plain, recomputed = pair()
    scale = torch.tensor(2.0, requires_grad=True)
    assert len(stored(lambda: plain(ROWS, scale=scale))) > 5
    assert not stored(lambda: recomputed(ROWS, scale=scale))


def test_names_and_kinds_stay() -> None:
    plain, recomputed = pair()
    assert recomputed.state_dict().keys() == plain.state_dict().keys()
    assert isinstance(recomputed, Block)
    assert type(recomputed) is type(pair()[1])  # so that skeletons share it


def test_without_gradients_it_runs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, recomputed = (block.eval() for block in pair())
    monkeypatch.setattr("poa.elastic.recompute.checkpoint", None)
    with torch.no_grad():
        assert torch.equal(recomputed(ROWS, scale=torch.ones(())), plain(ROWS, scale=torch.ones(())))
    assert isinstance(recomputed, Recomputed)
