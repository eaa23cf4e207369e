import math

import pytest
import torch
from torch import Tensor

from conformance import filler
from poa.distributed import rank
from poa.losses.prototypes import Logits, MovingAverageCenter, koleo, mask_weights, prototype_logits
from poa.losses.prototypes import sinkhorn as asked_by_sinkhorn
from processes import run_processes
from reference import losses as reference

PROTOTYPES = filler((7, 5), 3)
ROWS = filler((9, 5), 4)
MASKS = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0]], dtype=torch.bool)
POINTS = filler((8, 3), 3)
EVERYTHING = slice(0, None)


def sinkhorn(
    rows: Tensor, prototypes: Tensor, *, temperature: float, num_iterations: int = 3, keep: bool = True
) -> Tensor:
    """Targets of all rows at once."""
    logits = Logits(rows, prototypes, temperature)
    return asked_by_sinkhorn(logits.keep() if keep else logits, num_iterations=num_iterations)(EVERYTHING)


def centred(center: MovingAverageCenter, rows: Tensor, *, temperature: float) -> Tensor:
    prototypes = PROTOTYPES if rows.shape[1] == 5 else torch.eye(rows.shape[1])
    found: Tensor = center(Logits(rows, prototypes, temperature))(EVERYTHING)
    return found


# ---- targets ---------------------------------------------------------------------------------------------------------


def test_sinkhorn_official_values() -> None:
    """Row 0 for logits u(k, 1), computed by the official module."""
    targets = sinkhorn(filler((4, 6), 1).float(), torch.eye(6), temperature=0.07)
    expected = torch.tensor([0.000009, 0.430074, 0.007684, 0.005081, 0.072818, 0.484334])
    torch.testing.assert_close(targets[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("num_iterations", [1, 3])
@pytest.mark.parametrize("temperature", [0.04, 0.5])
@pytest.mark.parametrize("keep", [True, False])
def test_sinkhorn_equals_loops(
    temperature: float, num_iterations: int, keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poa.losses.streamed.CPU_CHUNK_VALUES", 28)  # four rows at a time
    targets = sinkhorn(ROWS, PROTOTYPES, temperature=temperature, num_iterations=num_iterations, keep=keep)
    expected = reference.sinkhorn(ROWS.tolist(), PROTOTYPES.tolist(), temperature, num_iterations)
    torch.testing.assert_close(targets, torch.tensor(expected, dtype=torch.float64))


def test_sinkhorn_by_hand() -> None:
    """Both samples prefer prototype 0; with weights (2, 1) and (4, 1) one round gives these fractions."""
    logits = torch.tensor([[2.0, 1.0], [4.0, 1.0]], dtype=torch.float64).log()
    targets = sinkhorn(logits, torch.eye(2, dtype=torch.float64), temperature=1.0, num_iterations=1)
    torch.testing.assert_close(targets, torch.tensor([[2 / 5, 3 / 5], [4 / 7, 3 / 7]], dtype=torch.float64))


def test_sinkhorn_uses_prototypes_equally() -> None:
    targets = sinkhorn(ROWS, PROTOTYPES, temperature=0.2, num_iterations=50)
    torch.testing.assert_close(targets.sum(1), torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(targets.sum(0), torch.full((7,), 9 / 7, dtype=torch.float64))


def test_sinkhorn_survives_large_logits() -> None:
    targets = sinkhorn(ROWS.float(), 1e4 * PROTOTYPES.float(), temperature=0.04)
    assert targets.isfinite().all()
    torch.testing.assert_close(targets.sum(1), torch.ones(9))


def test_targets_without_rows() -> None:
    assert sinkhorn(ROWS[:0], PROTOTYPES, temperature=0.1).shape == (0, 7)
    center = MovingAverageCenter(7)
    center.update(ROWS, PROTOTYPES)
    before = center.center.clone()
    center.update(ROWS[:0], PROTOTYPES)
    assert torch.equal(center.center, before)


def test_targets_have_no_gradient() -> None:
    rows = ROWS.clone().requires_grad_()
    assert not sinkhorn(rows, PROTOTYPES, temperature=0.1).requires_grad
    assert not centred(MovingAverageCenter(7), rows, temperature=0.1).requires_grad


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_targets_are_float32_under_autocast_and_logits_have_the_precision_of_prototypes(
    dtype: torch.dtype, keep: bool
) -> None:
    rows, prototypes = ROWS.bfloat16(), PROTOTYPES.to(dtype)
    expected = sinkhorn(rows.float(), prototypes, temperature=0.04, keep=keep)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        targets = sinkhorn(rows, prototypes, temperature=0.04, keep=keep)
        logits = prototype_logits(rows, prototypes, temperature=0.04)
    assert torch.equal(targets, expected)
    assert (targets.dtype, logits.dtype) == (torch.float32, dtype)


def test_center_by_hand() -> None:
    center = MovingAverageCenter(2, momentum=0.9)
    prototypes = torch.eye(2)
    center.update(torch.tensor([[1.0, 0.0], [3.0, 1.0]]), prototypes)  # mean logits 2 and 0.5
    torch.testing.assert_close(center.center, torch.tensor([0.2, 0.05]))
    center.update(torch.tensor([[1.0, 0.0]]), prototypes)
    torch.testing.assert_close(center.center, torch.tensor([0.28, 0.045]))
    targets = centred(center, torch.tensor([[1.0, 0.0]]), temperature=0.5)
    torch.testing.assert_close(targets, torch.tensor([[0.72, -0.045]]).div(0.5).softmax(1))


def test_center_is_saved() -> None:
    center = MovingAverageCenter(7)
    center.update(ROWS, PROTOTYPES)
    other = MovingAverageCenter(7)
    other.load_state_dict(center.state_dict())
    assert torch.equal(other.center, center.center)
    assert other.center.any()


def _on_two_processes(split: int) -> tuple[Tensor, Tensor]:
    """Targets of this process's part of the rows, and the centre; the first ``split`` rows belong to process 0."""
    rows = ROWS[:split] if rank() == 0 else ROWS[split:]
    center = MovingAverageCenter(7)
    center.update(rows, PROTOTYPES)
    return sinkhorn(rows, PROTOTYPES, temperature=0.07), center.center


@pytest.mark.parametrize("split", [3, 0])
def test_two_processes_equal_one(split: int) -> None:
    expected = sinkhorn(ROWS, PROTOTYPES, temperature=0.07)
    (first, center), (second, other_center) = run_processes(_on_two_processes, 2, split)
    assert len(first) == split
    torch.testing.assert_close(torch.cat([first, second]), expected)
    assert torch.equal(center, other_center)
    torch.testing.assert_close(center, 0.1 * (ROWS @ PROTOTYPES.T).mean(0).float())


def test_mask_weights_by_hand() -> None:
    torch.testing.assert_close(mask_weights(MASKS), torch.tensor([1 / 3, 1 / 3, 1 / 3, 1, 1 / 2, 1 / 2]))
    assert mask_weights(torch.zeros(2, 4, dtype=torch.bool)).shape == (0,)


# ---- KoLeo -----------------------------------------------------------------------------------------------------------


def test_koleo_equals_loops() -> None:
    assert koleo(POINTS).item() == pytest.approx(reference.koleo(POINTS.tolist()))


def test_koleo_by_hand() -> None:
    """On the unit circle at 0, 90 and 180 degrees, of any length: each row's nearest is the square root of 2 away."""
    features = torch.tensor([[2.0, 0.0], [0.0, 0.5], [-1.0, 0.0]])
    assert koleo(features).item() == pytest.approx(-0.5 * math.log(2))


def test_koleo_takes_opposite_rows_for_neighbours() -> None:
    features = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert koleo(features).item() == pytest.approx(-math.log(2))


def test_koleo_of_parts_with_neighbours_equals_the_whole() -> None:
    """As on two processes: each part of the batch looks for neighbours in the whole batch."""
    parts = [koleo(POINTS[start : start + 4], neighbours=POINTS, offset=start) for start in (0, 4)]
    assert sum(part.item() for part in parts) / 2 == pytest.approx(koleo(POINTS).item())


def test_koleo_of_one_row_with_neighbours() -> None:
    features = torch.tensor([[1.0, 0.0]])
    neighbours = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert koleo(features, neighbours=neighbours, offset=1).item() == pytest.approx(-0.5 * math.log(2))


def test_gradients_of_koleo() -> None:
    assert torch.autograd.gradcheck(koleo, POINTS.clone().requires_grad_())


@pytest.mark.parametrize("num_rows", [0, 1])
def test_koleo_without_neighbour_is_zero_and_connected(num_rows: int) -> None:
    features = POINTS[:num_rows].clone().requires_grad_()
    loss = koleo(features)
    loss.backward()
    assert loss.item() == 0
    assert features.grad is not None
    assert not features.grad.any()


def test_koleo_of_equal_rows_has_finite_gradients() -> None:
    features = torch.ones(4, 16, requires_grad=True)
    loss = koleo(features)
    loss.backward()
    assert loss.isfinite()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_koleo_separates_rows() -> None:
    """A step down the gradient takes a close pair apart."""
    features = torch.tensor([[1.0, 0.0], [1.0, 0.01], [-1.0, 0.0]], requires_grad=True)
    before = koleo(features)
    before.backward()
    assert features.grad is not None
    assert koleo(features.detach() - 1e-5 * features.grad) < before


def test_koleo_is_float32_under_autocast() -> None:
    """Rows so close that their dot products are all 1 in bfloat16."""
    angles = torch.tensor([0.0, 0.04, 0.05, 0.02])
    features = torch.stack([angles.cos(), angles.sin()], dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = koleo(features)
    assert torch.equal(loss, koleo(features))


def test_koleo_of_low_precision_input() -> None:
    features = POINTS.bfloat16()
    assert torch.equal(koleo(features), koleo(features.float()))
