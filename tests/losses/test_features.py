import math

import pytest
import torch

from conformance import filler
from poa.losses.features import feature_distance, gram_distance, resized_grid
from reference import losses as reference

GIVEN, ASKED = 2 * filler((4, 3), 1), 2 * filler((4, 3), 2)


def test_by_hand() -> None:
    """An angle of 45 degrees; gaps of 3 and 1/2 in two channels."""
    given, asked = torch.tensor([[4.0, 4.0], [0.0, 0.5]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    angles = feature_distance(given[:1], asked[:1], smooth_l1=0.0)
    assert angles.item() == pytest.approx(1 - math.sqrt(0.5))
    lengths = feature_distance(given, asked, smooth_l1=1.0)
    assert lengths.item() == pytest.approx(((3 - 0.5) + (4 - 0.5) + 0 + 0.5**2 / 2) / 4)


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_equals_loops(share: float) -> None:
    pairs = zip(GIVEN.tolist(), ASKED.tolist(), strict=True)
    expected = sum(reference.feature_distance(given, asked, share) for given, asked in pairs) / 4
    assert feature_distance(GIVEN, ASKED, smooth_l1=share).item() == pytest.approx(expected)


def test_gradients_reach_the_student_alone() -> None:
    given, asked = GIVEN.clone().requires_grad_(), ASKED.clone().requires_grad_()
    feature_distance(given, asked, smooth_l1=0.3).backward()
    assert asked.grad is None
    assert torch.autograd.gradcheck(lambda rows: feature_distance(rows, ASKED, smooth_l1=0.3), given)


def test_no_rows_is_zero_and_connected() -> None:
    rows = GIVEN[:0].clone().requires_grad_()
    loss = feature_distance(rows, ASKED[:0], smooth_l1=0.1)
    loss.backward()
    assert loss.item() == 0
    assert rows.grad is not None


def test_float32_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = feature_distance(GIVEN.float().bfloat16(), ASKED.float(), smooth_l1=0.1)
    assert loss.dtype == torch.float32


def test_similarities_by_hand() -> None:
    """Two patches at 45 degrees for the student, at a right angle for the teacher; one with itself is always alike."""
    given, asked = torch.tensor([[[3.0, 0.0], [1.0, 1.0]]]), torch.tensor([[[0.0, 1.0, 0.0], [2.0, 0.0, 0.0]]])
    assert gram_distance(given, asked).item() == pytest.approx(2 * 0.5 / 4)


def test_similarities_equal_loops_whatever_the_width() -> None:
    given, asked = filler((2, 4, 3), 1), filler((2, 4, 5), 2)
    loss = gram_distance(given, asked)
    assert loss.item() == pytest.approx(reference.gram_distance(given.tolist(), asked.tolist()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gram_distance(given, asked), loss)


def test_similarities_teach_the_student_alone() -> None:
    given, asked = filler((1, 3, 2), 1).requires_grad_(), filler((1, 3, 4), 2).requires_grad_()
    gram_distance(given, asked).backward()
    assert asked.grad is None
    assert torch.autograd.gradcheck(lambda rows: gram_distance(rows, asked), given)
    assert gram_distance(given.detach().bfloat16(), asked).dtype == torch.float64
    assert gram_distance(given.detach().bfloat16(), asked.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(("before", "after"), [(4, 2), (5, 3), (2, 4), (3, 5), (1, 2), (3, 3)])
def test_grids_are_resized_as_by_loops(before: int, after: int) -> None:
    patches = filler((2, before**2, 3), 4)
    found = resized_grid(patches, after**2)
    expected = torch.tensor([reference.resized_grid(grid, after) for grid in patches.tolist()], dtype=found.dtype)
    torch.testing.assert_close(found, expected)
