import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conformance import filler
from poa.distributed import rank
from poa.losses.contrastive import (
    Similarities,
    batch_similarities,
    contrast,
    pair_similarities,
    queue_similarities,
    similarity_distillation,
)
from processes import run_processes
from reference import losses as reference
from reference.contrastive import info_nce, moco_v3, nt_xent
from reference.losses import dot, softmax

BATCH, WIDTH = 4, 3
FIRST = F.normalize(filler((BATCH, WIDTH), 1), dim=1)
SECOND = F.normalize(FIRST + 0.3 * filler((BATCH, WIDTH), 2), dim=1)
QUEUE = F.normalize(filler((6, WIDTH), 3), dim=1)


def cross_entropy(scores: list[float], right: int) -> float:
    return -math.log(softmax(scores)[right])


def test_contrast_by_hand() -> None:
    """Similarities 0.2 ln 3 and 0 at temperature 0.2: probabilities 3/4 and 1/4."""
    values = torch.tensor([[0.2 * math.log(3), 0.0]]).expand(2, 2)
    loss = contrast(Similarities(values, torch.tensor([0, 1])), temperature=0.2)
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(4)) / 2)


def test_info_nce_by_hand() -> None:
    query, key, queue = torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    similarities = queue_similarities(query, key, queue)
    torch.testing.assert_close(similarities.values, torch.tensor([[0.6, 0.6, 0.8]]))
    assert similarities.positives.tolist() == [0]
    expected = -math.log(math.exp(3) / (2 * math.exp(3) + math.exp(4)))
    assert info_nce(query, key, queue, temperature=0.2).item() == pytest.approx(expected)


def test_info_nce_equals_loops() -> None:
    total = 0.0
    for query, key in zip(FIRST.tolist(), SECOND.tolist(), strict=True):
        scores = [dot(query, key), *(dot(query, old) for old in QUEUE.tolist())]
        total += cross_entropy([score / 0.2 for score in scores], 0)
    assert info_nce(FIRST, SECOND, QUEUE).item() == pytest.approx(total / BATCH)


def test_moco_v3_equals_loops() -> None:
    total = 0.0
    for place, query in enumerate(FIRST.tolist()):
        total += 2 * 0.7 * cross_entropy([dot(query, key) / 0.7 for key in SECOND.tolist()], place)
    assert moco_v3(FIRST, SECOND, temperature=0.7).item() == pytest.approx(total / BATCH)


def test_nt_xent_equals_loops() -> None:
    """Every row against all others; the other view of the same image is right."""
    rows = [*FIRST.tolist(), *SECOND.tolist()]
    total = 0.0
    for place, row in enumerate(rows):
        others = [other for other in range(2 * BATCH) if other != place]
        right = others.index((place + BATCH) % (2 * BATCH))
        total += cross_entropy([dot(row, rows[other]) / 0.1 for other in others], right)
    assert nt_xent(FIRST, SECOND).item() == pytest.approx(total / (2 * BATCH))


def test_places_of_pairs() -> None:
    """As in the official code: for row r of the first views N - 1 + r, for row N + r of the second ones r."""
    similarities = pair_similarities(FIRST, SECOND)
    assert similarities.values.shape == (2 * BATCH, 2 * BATCH - 1)
    assert similarities.positives.tolist() == [3, 4, 5, 6, 0, 1, 2, 3]
    right = similarities.values.gather(1, similarities.positives[:, None])[:, 0]
    torch.testing.assert_close(right, (FIRST * SECOND).sum(1).repeat(2))


def test_keys_and_queue_get_no_gradient() -> None:
    query, key, queue = (rows.clone().requires_grad_() for rows in (FIRST, SECOND, QUEUE))
    (info_nce(query, key, queue) + moco_v3(query, key)).backward()
    assert query.grad is not None
    assert key.grad is None
    assert queue.grad is None


def test_gradients() -> None:
    first, second = FIRST.clone().requires_grad_(), SECOND.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: info_nce(rows, SECOND, QUEUE), first)
    assert torch.autograd.gradcheck(lambda rows: moco_v3(rows, SECOND), first)
    assert torch.autograd.gradcheck(nt_xent, (first, second))


@pytest.mark.parametrize("number", range(3))
def test_no_rows_is_zero_and_connected(number: int) -> None:
    rows = FIRST[:0].clone().requires_grad_()
    loss = [
        lambda: info_nce(rows, SECOND[:0], QUEUE),
        lambda: moco_v3(rows, SECOND[:0]),
        lambda: nt_xent(rows, SECOND[:0]),
    ][number]()
    loss.backward()
    assert loss.item() == 0
    assert rows.grad is not None


def test_float32_under_autocast() -> None:
    """Similarities so near to one another that bfloat16 cannot tell them apart."""
    angles = torch.tensor([0.0, 0.04, 0.05, 0.02])
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    keys, queue = rows.roll(1, 0), rows.flip(0)
    expected = [info_nce(rows, keys, queue), moco_v3(rows, keys), nt_xent(rows, keys)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = [info_nce(rows, keys, queue), moco_v3(rows, keys), nt_xent(rows, keys)]
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_low_precision_input_becomes_float32() -> None:
    first, second, queue = (rows.bfloat16() for rows in (FIRST, SECOND, QUEUE))
    assert queue_similarities(first, second, queue).values.dtype == torch.float32
    assert torch.equal(moco_v3(first, second), moco_v3(first.float(), second.float()))
    assert torch.equal(nt_xent(first, second), nt_xent(first.float(), second.float()))
    assert torch.equal(info_nce(first, second, queue), info_nce(first.float(), second.float(), queue.float()))


def on_a_process(first: Tensor, second: Tensor) -> tuple[list[float], list[Tensor], list[int]]:
    """Losses, gradients and places of a process's half of the batch."""
    half = slice(rank() * BATCH // 2, (rank() + 1) * BATCH // 2)
    losses, gradients = [], []
    for loss in (moco_v3, nt_xent):
        own, other = first[half].clone().requires_grad_(), second[half].clone().requires_grad_()
        value = loss(own, other)
        value.backward()
        losses.append(value.item())
        assert own.grad is not None
        gradients += [own.grad] if other.grad is None else [own.grad, other.grad]
    return losses, gradients, batch_similarities(first[half], second[half]).positives.tolist()


def test_two_processes_equal_one() -> None:
    """The mean of the losses is the whole batch's; so is the gradient once it has been averaged over processes."""
    one_losses, one_gradients = [], []
    for loss in (moco_v3, nt_xent):
        first, second = FIRST.clone().requires_grad_(), SECOND.clone().requires_grad_()
        value = loss(first, second)
        value.backward()
        one_losses.append(value.item())
        one_gradients += [rows.grad for rows in (first, second) if rows.grad is not None]
    two = run_processes(on_a_process, 2, FIRST, SECOND)
    for number, expected in enumerate(one_losses):
        assert sum(losses[number] for losses, _, _ in two) / 2 == pytest.approx(expected)
    for number, whole in enumerate(one_gradients):
        torch.testing.assert_close(torch.cat([gradients[number] for _, gradients, _ in two]) / 2, whole)
    assert [positives for _, _, positives in two] == [[0, 1], [2, 3]]


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
