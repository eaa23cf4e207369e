import math

import pytest
import torch

from conformance import filler
from poa.losses.contrastive import similarity_distillation
from reference import losses as reference

STUDENT, TEACHER, QUEUE = (
    torch.nn.functional.normalize(filler((rows, 3), c), dim=1) for rows, c in ((4, 1), (4, 2), (5, 3))
)


def test_conformance() -> None:
    """SEED: the queue holds e1 and e2, the teacher says e1, the student (0.6, 0.8)."""
    student, teacher = torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0, 0.0]])
    loss = similarity_distillation(student, teacher, torch.eye(2), student_temperature=0.2, teacher_temperature=0.1)
    assert loss.item() == pytest.approx(1.551422, abs=2e-6)


def test_equals_loops() -> None:
    expected = reference.similarity_distillation(STUDENT.tolist(), TEACHER.tolist(), QUEUE.tolist(), 0.2, 0.05)
    loss = similarity_distillation(STUDENT, TEACHER, QUEUE, student_temperature=0.2, teacher_temperature=0.05)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_a_cold_teacher_asks_for_its_own_embedding() -> None:
    """With temperature near 0 all weight is on the row itself: cross-entropy against the first candidate."""
    similarities = torch.cat([(STUDENT * TEACHER).sum(1, keepdim=True), STUDENT @ QUEUE.T], dim=1) / 0.2
    loss = similarity_distillation(STUDENT, TEACHER, QUEUE, teacher_temperature=1e-6)
    assert loss.item() == pytest.approx(-similarities.log_softmax(1)[:, 0].mean().item())


def test_a_student_that_tells_nothing_apart() -> None:
    """Orthogonal to all candidates: every one is as likely."""
    teacher, queue = torch.eye(4)[:2], torch.eye(4)[:3]
    loss = similarity_distillation(torch.eye(4)[[3, 3]], teacher, queue)
    assert loss.item() == pytest.approx(math.log(4))


def test_only_the_student_gets_a_gradient() -> None:
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    similarity_distillation(student, teacher, QUEUE).backward()
    assert student.grad is not None
    assert student.grad.count_nonzero() == student.numel()
    assert teacher.grad is None
    assert torch.autograd.gradcheck(
        lambda rows: similarity_distillation(rows, TEACHER, QUEUE, teacher_temperature=0.1),
        STUDENT.clone().requires_grad_(),
    )


def test_without_rows_it_is_zero_and_connected() -> None:
    student = STUDENT[:0].clone().requires_grad_()
    loss = similarity_distillation(student, TEACHER[:0], QUEUE)
    loss.backward()
    assert loss.item() == 0
    assert student.grad is not None


def test_full_precision_under_autocast() -> None:
    student, teacher, queue = STUDENT.float(), TEACHER.float(), QUEUE.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = similarity_distillation(student, teacher, queue)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, similarity_distillation(student, teacher, queue))
