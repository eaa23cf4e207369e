"""Distillation of similarities to a queue of embeddings (SEED, arXiv 2101.04731, Sec. 3)."""

import torch
from jaxtyping import Float
from torch import Tensor


def similarity_distillation(
    student: Float[Tensor, "rows width"],
    teacher: Float[Tensor, "rows width"],
    queue: Float[Tensor, "keys width"],
    *,
    student_temperature: float = 0.2,
    teacher_temperature: float = 0.01,
) -> Float[Tensor, ""]:
    """Mean over rows of ``-sum(p_teacher * log p_student)``.

    Both are softmaxes over similarities to the row's own teacher embedding and to the queue:
    ``p_teacher = softmax([t.t, queue @ t] / teacher_temperature)``,
    ``p_student = softmax([s.t, queue @ s] / student_temperature)``. In float32 (float64 stays), also under autocast.

    Args:
        student: Student embeddings on the unit sphere.
        teacher: Teacher embeddings of the same views, on the unit sphere; no gradient reaches them.
        queue: Earlier teacher embeddings, on the unit sphere.
        student_temperature: Divides the student's similarities.
        teacher_temperature: Divides the teacher's; small ones ask for little but the nearest.
    """
    with torch.autocast(student.device.type, enabled=False):
        asked = _similarities(teacher.detach(), teacher.detach(), queue) / teacher_temperature
        given = _similarities(student, teacher.detach(), queue) / student_temperature
        return -torch.einsum("rk,rk->", asked.softmax(1), given.log_softmax(1)) / max(len(student), 1)


def _similarities(
    rows: Float[Tensor, "rows width"], own: Float[Tensor, "rows width"], queue: Float[Tensor, "keys width"]
) -> Float[Tensor, "rows candidates"]:
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    rows, own, queue = rows.to(wide), own.to(wide), queue.to(wide)
    return torch.cat([(rows * own).sum(1, keepdim=True), rows @ queue.T], dim=1)
