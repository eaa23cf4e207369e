import math

import pytest
import torch
from torch import nn

from poa import distributed
from poa.config.pretraining import Config
from poa.errors import UserError
from poa.methods.layers import EmbeddingQueue, ProjectionHead, Projector
from processes import run_processes


def test_prototypes_have_the_trained_lengths_along_their_directions() -> None:
    head = ProjectionHead(2, num_prototypes=3, hidden=2, bottleneck=2)
    with torch.no_grad():
        head.weight_v.copy_(torch.tensor([[3.0, 4.0], [0.0, -2.0], [1e-3, 0.0]]))
        head.weight_g.copy_(torch.tensor([[5.0], [1.0], [0.5]]))
    torch.testing.assert_close(head.prototypes(), torch.tensor([[3.0, 4.0], [0.0, -1.0], [0.5, 0.0]]))


@pytest.mark.parametrize("gains", [True, False])
@pytest.mark.parametrize("kind", [Projector, ProjectionHead])
def test_heads_over_prototypes_multiply_in_bf16_where_that_gains(
    kind: type[Projector], gains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poa.machine.precision.gains_by_bf16", lambda _: gains)
    head = ProjectionHead(6, num_prototypes=3, hidden=5, bottleneck=4) if kind is ProjectionHead else Projector(6)
    rows = torch.randn(7, 6)
    full, seen = head(rows), []
    head.layers.register_forward_hook(lambda *given: seen.append(given[-1].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = head(rows)
    is_low = gains and kind is ProjectionHead
    assert seen == [torch.bfloat16 if is_low else torch.float32]
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.norm(dim=1), torch.ones(7))
    assert torch.equal(low, full) is not is_low
    torch.testing.assert_close(low, full, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("layers", "shapes"), [(1, [(4, 6)]), (2, [(5, 6), (4, 5)]), (4, [(5, 6), (5, 5), (5, 5), (4, 5)])]
)
def test_heads_have_as_many_linear_layers_as_asked_for(layers: int, shapes: list[tuple[int, int]]) -> None:
    head = Projector(6, layers=layers, hidden=5, bottleneck=4)
    weights = [each.weight for each in head.layers if isinstance(each, nn.Linear)]
    assert [tuple(each.shape) for each in weights] == shapes
    rows = torch.randn(3, 6)
    found = rows
    for number, weight in enumerate(weights):
        found = found @ weight.T if number == 0 else nn.functional.gelu(found) @ weight.T  # biases start at zero
    torch.testing.assert_close(head(rows), nn.functional.normalize(found, dim=1))
    config = Config(data="x", losses={"kind": "coding-rate"}, heads={"layers": layers, "hidden": 5, "bottleneck": 4})
    assert config.head_weights(6) == sum(map(math.prod, shapes))


def test_it_starts_as_unit_vectors_from_its_seed() -> None:
    first, again, other = (EmbeddingQueue(6, 4, seed=seed).rows for seed in (0, 0, 1))
    torch.testing.assert_close(first.norm(dim=1), torch.ones(6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_oldest_rows_are_replaced_and_it_wraps() -> None:
    queue = EmbeddingQueue(4, 2)
    kept = queue.rows[2:].clone()
    rows = [torch.full((2, 2), float(number)) for number in range(1, 4)]
    queue.enqueue(rows[0])
    assert torch.equal(queue.rows, torch.cat([rows[0], kept]))
    queue.enqueue(rows[1])
    assert int(queue.place) == 0
    queue.enqueue(rows[2])
    assert torch.equal(queue.rows, torch.cat([rows[2], rows[1]]))
    assert int(queue.place) == 2


def test_its_state_goes_on() -> None:
    queue, other = EmbeddingQueue(4, 2), EmbeddingQueue(4, 2, seed=1)
    queue.enqueue(torch.ones(2, 2))
    other.load_state_dict(queue.state_dict())
    for each in (queue, other):
        each.enqueue(torch.zeros(2, 2))
    assert torch.equal(queue.rows, other.rows)
    assert int(other.place) == 0


def test_no_multiple_is_refused() -> None:
    with pytest.raises(UserError, match=r"queue of 4 embeddings cannot be filled by 3 at a time.*such as 6"):
        EmbeddingQueue(4, 2).enqueue(torch.ones(3, 2))


def enqueue_own_rows() -> torch.Tensor:
    queue = EmbeddingQueue(4, 2)
    queue.enqueue(torch.full((1, 2), float(distributed.rank())))
    queue.enqueue(torch.full((1, 2), 10.0 + distributed.rank()))
    return queue.rows


def test_processes_hold_the_same_rows_in_rank_order() -> None:
    first, second = run_processes(enqueue_own_rows, 2)
    assert torch.equal(first, second)
    assert first[:, 0].tolist() == [0, 1, 10, 11]
