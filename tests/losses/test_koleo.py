import math

import pytest
import torch

from conformance import filler
from poa.losses.prototypes import koleo
from reference import losses as reference

FEATURES = filler((8, 3), 3)


def test_equals_loops() -> None:
    assert koleo(FEATURES).item() == pytest.approx(reference.koleo(FEATURES.tolist()))


def test_by_hand() -> None:
    """On the unit circle at 0, 90 and 180 degrees, of any length: each row's nearest is the square root of 2 away."""
    features = torch.tensor([[2.0, 0.0], [0.0, 0.5], [-1.0, 0.0]])
    assert koleo(features).item() == pytest.approx(-0.5 * math.log(2))


def test_opposite_rows_are_neighbours() -> None:
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert koleo(features).item() == pytest.approx(-math.log(2))


def test_parts_with_neighbours_equal_the_whole() -> None:
    """As on two processes: each part of the batch looks for neighbours in the whole batch."""
    parts = [koleo(FEATURES[start : start + 4], neighbours=FEATURES, offset=start) for start in (0, 4)]
    assert sum(part.item() for part in parts) / 2 == pytest.approx(koleo(FEATURES).item())


def test_one_row_with_neighbours() -> None:
    features = torch.tensor([[1.0, 0.0]])
    neighbours = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert koleo(features, neighbours=neighbours, offset=1).item() == pytest.approx(-0.5 * math.log(2))


def test_gradients() -> None:
    assert torch.autograd.gradcheck(koleo, FEATURES.clone().requires_grad_())


@pytest.mark.parametrize("num_rows", [0, 1])
def test_without_neighbour_is_zero_and_connected(num_rows: int) -> None:
    features = FEATURES[:num_rows].clone().requires_grad_()
    loss = koleo(features)
    loss.backward()
    assert loss.item() == 0
    assert features.grad is not None
    assert not features.grad.any()


def test_equal_rows_have_finite_gradients() -> None:
    features = torch.ones(4, 16, requires_grad=True)
    loss = koleo(features)
    loss.backward()
    assert loss.isfinite()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_separates_rows() -> None:
    """A step down the gradient takes a close pair apart."""
    features = torch.tensor([[1.0, 0.0], [1.0, 0.01], [-1.0, 0.0]], requires_grad=True)
    before = koleo(features)
    before.backward()
    assert features.grad is not None
    assert koleo(features.detach() - 1e-5 * features.grad) < before


def test_float32_under_autocast() -> None:
    """Rows so close that their dot products are all 1 in bfloat16."""
    angles = torch.tensor([0.0, 0.04, 0.05, 0.02])
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = koleo(features)
    assert torch.equal(loss, koleo(features))


def test_low_precision_input() -> None:
    features = FEATURES.bfloat16()
    assert torch.equal(koleo(features), koleo(features.float()))
