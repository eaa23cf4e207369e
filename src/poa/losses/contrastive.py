"""Contrastive losses: an embedding shall be most similar to that of another view of the same image.

MoCo v2 (arXiv 2003.04297) compares with a queue, MoCo v3 (arXiv 2104.02057) with the keys of the batch, SimCLR
(arXiv 2002.05709) with all other rows of the batch; SEED (arXiv 2101.04731) distils similarities to a queue. All take
embeddings on the unit sphere and compute in float32 (float64 stays), also under autocast. Without rows a loss is 0,
still connected to its inputs, so that every process runs the same backward pass.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from poa.distributed import gather_rows, rank
from poa.machine.precision import wide


class Similarities(NamedTuple):
    """Dot products of each row with all that it is compared with.

    Attributes:
        values: Not yet divided by a temperature, as online distillation needs them.
        positives: Which candidate shows the same image.
    """

    values: Float[Tensor, "rows candidates"]
    positives: Int[Tensor, "rows"]


def contrast(similarities: Similarities, *, temperature: float) -> Float[Tensor, ""]:
    """Mean over rows of ``-log softmax(values / temperature)[positive]``.

    Args:
        similarities: Of rows and candidates.
        temperature: Divides the similarities.
    """
    values, positives = similarities
    with torch.autocast(values.device.type, enabled=False):
        return F.cross_entropy(values / temperature, positives, reduction="sum") / max(len(values), 1)


def queue_similarities(
    queries: Float[Tensor, "rows width"], keys: Float[Tensor, "rows width"], queue: Float[Tensor, "queued width"]
) -> Similarities:
    """Similarities to the row's own key, which comes first, and to a queue of earlier keys.

    Args:
        queries: Embeddings of this process.
        keys: Of another view of the same images; no gradient reaches them.
        queue: Must not change before the backward pass.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys, queue = wide(queries), wide(keys.detach()), wide(queue.detach())
        own = torch.einsum("rw,rw->r", queries, keys)
        values = torch.cat([own[:, None], queries @ queue.T], dim=1)
    return Similarities(values, torch.zeros(len(queries), dtype=torch.int64, device=queries.device))


def batch_similarities(queries: Float[Tensor, "rows width"], keys: Float[Tensor, "rows width"]) -> Similarities:
    """Similarities to the keys of all processes.

    Args:
        queries: Embeddings of this process; every process brings as many.
        keys: Of another view of the same images; no gradient reaches them.
    """
    with torch.autocast(queries.device.type, enabled=False):
        values = wide(queries) @ _gathered(wide(keys.detach())).T
    return Similarities(values, torch.arange(len(queries), device=queries.device) + rank() * len(queries))


def pair_similarities(first: Float[Tensor, "batch width"], second: Float[Tensor, "batch width"]) -> Similarities:
    """Similarities of the rows of both views to all rows of all processes but themselves.

    Gradients reach the rows of all processes, so that the mean over processes of the gradients is that of one process
    with the whole batch.

    Args:
        first: Embeddings of all images' first views on this process; every process brings as many.
        second: Of their second views.

    Returns:
        First the rows of first views, then those of second views. Candidates are the first views of all processes and
        their second views, without the row itself.
    """
    batch = len(first)
    with torch.autocast(first.device.type, enabled=False):
        first, second = wide(first), wide(second)
        candidates = torch.cat([gather_rows(first), gather_rows(second)])
        values = torch.cat([first, second]) @ candidates.T
    half = len(candidates) // 2
    number = torch.arange(batch, device=first.device) + rank() * batch
    own = torch.cat([number, number + half])
    others = torch.arange(max(len(candidates) - 1, 0), device=first.device)
    others = others + (others >= own[:, None])  # to choose by a mask would wait for a GPU
    # a first view's positive stands behind the row that is left out, hence one place further to the front
    return Similarities(values.gather(1, others), torch.cat([number + half - 1, number]))


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
    ``p_student = softmax([s.t, queue @ s] / student_temperature)``.

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
    rows, own, queue = wide(rows), wide(own), wide(queue)
    return torch.cat([(rows * own).sum(1, keepdim=True), rows @ queue.T], dim=1)


@torch.no_grad()
def _gathered(rows: Float[Tensor, "rows width"]) -> Float[Tensor, "all_rows width"]:
    return gather_rows(rows)
