import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conformance import filler
from poa.distributed import rank, world_size
from poa.losses.coding_rate import coding_rate, disagreement
from processes import run_processes
from reference.losses import dot

ROWS, OTHERS, WIDE = (F.normalize(filler((6, width), n), dim=1).detach() for n, width in ((1, 4), (2, 4), (3, 9)))
BOTH = pytest.mark.parametrize("given", [ROWS, WIDE], ids=["more rows than columns", "fewer"])


def test_disagreement_equals_loops() -> None:
    distances = [1 - dot(asked, given) for asked, given in zip(OTHERS.tolist(), ROWS.tolist(), strict=True)]
    assert disagreement(OTHERS, ROWS).item() == pytest.approx(sum(distances) / 6)
    weights = torch.tensor([0.5, 0.0, 1.0, 2.0, 0.25, 1.0])
    expected = sum(weight * distance for weight, distance in zip(weights.tolist(), distances, strict=True))
    assert disagreement(OTHERS, ROWS, weights=weights).item() == pytest.approx(expected)


def test_disagreement_is_half_the_squared_distance() -> None:
    torch.testing.assert_close(disagreement(OTHERS, ROWS), (OTHERS - ROWS).square().sum(1).mean() / 2)


def test_disagreement_without_rows_is_zero_and_connected() -> None:
    rows = torch.zeros(0, 4, requires_grad=True)
    loss = disagreement(torch.zeros(0, 4), rows)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0
    assert rows.grad is not None


def test_no_gradient_reaches_the_targets() -> None:
    targets = OTHERS.clone().requires_grad_()
    disagreement(targets, ROWS.clone().requires_grad_()).backward()  # type: ignore[no-untyped-call]
    assert targets.grad is None


def test_coding_rate_by_hand() -> None:
    """Rows e1, e1 in the plane: I + 2 / (2 * 0.5) * diag(2, 0) = diag(5, 1); the factor is (1/2 + 1/2) / 2."""
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert coding_rate(rows, distortion=0.5).item() == pytest.approx(math.log(5) / 2)


@BOTH
def test_coding_rate_is_the_log_determinant(given: Tensor) -> None:
    rows, width = given.double(), given.shape[1]
    inner = torch.eye(width, dtype=torch.float64) + width / (6 * 0.1) * rows.T @ rows
    expected = (1 / width + 1 / 6) / 2 * torch.linalg.slogdet(inner).logabsdet
    torch.testing.assert_close(coding_rate(rows, distortion=0.1), expected)


def test_the_smaller_matrix_is_factored(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, factor = [], torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda matrix: sizes.append(len(matrix)) or factor(matrix))
    for rows in (ROWS, WIDE):
        coding_rate(rows, distortion=0.1)
    assert sizes == [4, 6]


def test_coding_rate_grows_as_rows_spread() -> None:
    alike = F.normalize(ROWS[:1] + 0.1 * OTHERS, dim=1)
    assert coding_rate(alike, distortion=0.1) < coding_rate(ROWS, distortion=0.1)


@BOTH
def test_gradients(given: Tensor) -> None:
    rows = given.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: coding_rate(x, distortion=0.2), rows)


def test_gradient_of_the_disagreement() -> None:
    rows = ROWS.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: disagreement(OTHERS.double(), x), rows)


def test_float32_under_autocast() -> None:
    rows, others = ROWS.bfloat16(), OTHERS.bfloat16()
    expected = coding_rate(rows.float(), distortion=0.05), disagreement(others.float(), rows.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = coding_rate(rows, distortion=0.05), disagreement(others, rows)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def on_a_process() -> list[tuple[Tensor, Tensor]]:
    found = []
    for given in (ROWS, WIDE):
        share = len(given) // world_size()
        rows = given[rank() * share : (rank() + 1) * share].clone().detach().requires_grad_()
        loss = coding_rate(rows, distortion=0.1)
        loss.backward()  # type: ignore[no-untyped-call]
        assert rows.grad is not None
        found.append((loss.detach(), rows.grad))
    return found


def test_two_processes_equal_one() -> None:
    """Every process has the rate of all rows; gradients are those of one process once averaged over processes."""
    for (loss, grad), *halves in zip(on_a_process(), *run_processes(on_a_process, 2), strict=True):
        (first, above), (second, below) = halves
        torch.testing.assert_close(torch.stack([first, second]), loss.expand(2))
        torch.testing.assert_close(torch.cat([above, below]) / 2, grad)
