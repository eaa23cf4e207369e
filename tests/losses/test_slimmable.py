import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from conformance import filler
from poa.errors import UserError
from poa.losses.slimmable import (
    ONLINE,
    USUAL_TEMPERATURES,
    WEIGHTINGS,
    atkd,
    dkd,
    kl_divergence,
    mean_squared_error,
    online_distillation,
    soft_cross_entropy,
    width_weights,
)
from reference.losses import softmax

FOUR = (1.0, 0.75, 0.5, 0.25)
STUDENT = torch.tensor([[0.9, 0.1, -0.2, 0.3], [0.2, 0.4, 0.1, -0.5]])
TEACHER = torch.tensor([[0.8, 0.0, -0.1, 0.2], [0.5, 0.3, -0.2, -0.4]])
FIRST = torch.zeros(2, dtype=torch.int64)
LOGITS, OTHERS = filler((5, 6), 1), filler((5, 6), 2)
POSITIVES = torch.tensor([0, 3, 5, 1, 1])


@pytest.mark.parametrize(
    ("name", "temperature", "value"),
    [
        ("soft", 5.0, 34.607143),
        ("soft", 1.0, 1.334299),
        ("mse", None, 0.03),
        ("atkd", None, 0.435137),
        ("dkd", None, 0.013624),
    ],
)
def test_official_values(name: str, temperature: float | None, value: float) -> None:
    loss = online_distillation(name, STUDENT.double(), TEACHER.double(), FIRST, temperature=temperature)
    assert loss.item() == pytest.approx(value, abs=1e-5 if value > 2 else 1e-6)


def test_official_gradient() -> None:
    student = STUDENT.clone().requires_grad_()
    soft_cross_entropy(student, TEACHER, temperature=5.0).backward()
    assert student.grad is not None
    assert student.grad[0].tolist() == pytest.approx([0.006468, 0.005512, -0.017717, 0.005737], abs=1e-6)


def kl(asked: list[float], given: list[float]) -> float:
    return sum(p * math.log(p / q) for p, q in zip(asked, given, strict=True))


def test_kl_and_dkd_equal_loops() -> None:
    """With weights and a temperature that are not the usual ones."""
    temperature, plain, decoupled = 2.0, 0.0, 0.0
    for student, teacher, right in zip(LOGITS.tolist(), OTHERS.tolist(), POSITIVES.tolist(), strict=True):
        q, p = ([value / temperature for value in row] for row in (student, teacher))
        plain += kl(softmax(p), softmax(q))
        one, other = softmax(p)[right], softmax(q)[right]
        decoupled += 0.7 * kl([one, 1 - one], [other, 1 - other])
        del q[right], p[right]
        decoupled += 3.0 * kl(softmax(p), softmax(q))
    assert kl_divergence(LOGITS, OTHERS, temperature=2.0).item() == pytest.approx(4 * plain / 5)
    loss = dkd(LOGITS, OTHERS, POSITIVES, temperature=2.0, alpha=0.7, beta=3.0)
    assert loss.item() == pytest.approx(4 * decoupled / 5)


def test_cross_entropy_is_divergence_and_entropy() -> None:
    targets = (OTHERS / 3.0).softmax(1)
    entropy = -(targets * targets.log()).sum(1).mean()
    expected = kl_divergence(LOGITS, OTHERS, temperature=3.0) + 9 * entropy
    torch.testing.assert_close(soft_cross_entropy(LOGITS, OTHERS, temperature=3.0), expected)


def test_atkd_does_not_see_scale_and_shift() -> None:
    torch.testing.assert_close(atkd(LOGITS, OTHERS), atkd(30 * LOGITS + 7, 50 * OTHERS - 2), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ONLINE)
def test_the_teacher_learns_nothing_and_the_student_stands_still_beside_it(name: str) -> None:
    student, teacher = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    online_distillation(name, student, teacher, POSITIVES).backward()
    assert teacher.grad is None
    torch.testing.assert_close(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize("name", ONLINE)
def test_gradients(name: str) -> None:
    student = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: online_distillation(name, rows, OTHERS, POSITIVES), student)


@pytest.mark.parametrize("name", ONLINE)
def test_no_rows_is_zero_and_connected(name: str) -> None:
    student = LOGITS[:0].clone().requires_grad_()
    loss = online_distillation(name, student, OTHERS[:0], POSITIVES[:0])
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None


@pytest.mark.parametrize("name", ONLINE)
def test_float32_under_autocast_and_of_low_precision(name: str) -> None:
    student, teacher = LOGITS.bfloat16(), OTHERS.bfloat16()
    expected = online_distillation(name, student.float(), teacher.float(), POSITIVES)
    assert expected.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(online_distillation(name, student, teacher, POSITIVES), expected)


@pytest.mark.parametrize(
    ("name", "directly"),
    [
        ("soft", lambda: soft_cross_entropy(LOGITS, OTHERS, temperature=5.0)),
        ("kl", lambda: kl_divergence(LOGITS, OTHERS, temperature=1.0)),
        ("mse", lambda: mean_squared_error(LOGITS, OTHERS)),
        ("atkd", lambda: atkd(LOGITS, OTHERS, temperature=4.0)),
        ("dkd", lambda: dkd(LOGITS, OTHERS, POSITIVES, temperature=1.0, alpha=1.0, beta=0.5)),
    ],
)
def test_usual_settings(name: str, directly: Callable[[], Tensor]) -> None:
    assert torch.equal(online_distillation(name, LOGITS, OTHERS, POSITIVES), directly())
    assert ONLINE.keys() == USUAL_TEMPERATURES.keys()


def test_a_temperature_is_passed_on() -> None:
    for name in set(ONLINE) - {"mse"}:
        usual = online_distillation(name, LOGITS, OTHERS, POSITIVES)
        assert not torch.equal(online_distillation(name, LOGITS, OTHERS, POSITIVES, temperature=2.0), usual)


def test_unknown_name() -> None:
    with pytest.raises(UserError, match=r"no online distillation 'atk'\. Did you mean 'atkd'\?"):
        online_distillation("atk", LOGITS, OTHERS, POSITIVES)


# ---- weights of widths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("even", (1, 1, 1, 1)),
        ("share", (0.4, 0.3, 0.2, 0.1)),
        ("width", (1, 0.75, 0.5, 0.25)),
        ("scaled-width", (1.6, 1.2, 0.8, 0.4)),
        ("full", (2.5, 1, 1, 1)),
        ("cumulative", (1.538, 1.077, 0.769, 0.615)),
        ("full-next", (1.75, 1, 1, 1)),
    ],
)
def test_weights_official_values(weighting: str, expected: Sequence[float]) -> None:
    assert width_weights(FOUR, weighting=weighting) == pytest.approx(expected, abs=5e-4)


def test_all_weightings_are_tested_and_the_published_one_is_usual() -> None:
    assert [*WEIGHTINGS] == ["even", "share", "width", "scaled-width", "full", "cumulative", "full-next"]
    assert width_weights(FOUR) == width_weights(FOUR, weighting="full")


def test_other_widths() -> None:
    assert width_weights((1.0, 0.5, 0.25)) == (1.75, 1.0, 1.0)
    assert width_weights((1.0, 0.5, 0.25), weighting="share") == (0.571, 0.286, 0.143)  # to three decimals
    assert sum(width_weights((1.0, 0.6, 0.1), weighting="cumulative")) == pytest.approx(3)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_single_width(weighting: str) -> None:
    assert width_weights((1.0,), weighting=weighting) == (1.0,)


@pytest.mark.parametrize("widths", [(), (0.5, 1.0), (1.0, 0.5, 0.5), (0.75, 0.5), (1.0, 0.5, 0.0), (1.0, float("nan"))])
def test_widths_fall_from_one(widths: Sequence[float]) -> None:
    with pytest.raises(UserError, match=r"in descending order from 1, such as 1, 0\.75.*Put the full width first"):
        width_weights(widths)


def test_unknown_weighting() -> None:
    with pytest.raises(UserError, match=r"no weighting 'ful' of widths\. Did you mean 'full'\?"):
        width_weights(FOUR, weighting="ful")
