"""Online distillation: sub-networks learn from the full network of the same step (SlimCLR, arXiv 2209.15525, Sec. 3).

Student and teacher rows are logits or features of one batch; no gradient reaches the teacher. Computed in float32
(float64 stays), also under autocast. Without rows a loss is 0, still connected to the student.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from poa.errors import UserError, nearest


def soft_cross_entropy(
    student: Float[Tensor, "rows classes"], teacher: Float[Tensor, "rows classes"], *, temperature: float
) -> Float[Tensor, ""]:
    """``-T^2 * mean over rows of sum(softmax(teacher / T) * log_softmax(student / T))`` (SlimCLR's own choice).

    Has the gradient of ``kl_divergence``; the values differ by ``T^2`` times the teacher's entropy.

    Args:
        student: Of a sub-network.
        teacher: Of the full network.
        temperature: T, which divides both. Published: 5 with MoCo v2 and SimCLR, 1 with MoCo v3.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = _wide(student, teacher)
        targets, answers = (teacher / temperature).softmax(1), (student / temperature).log_softmax(1)
        return -(temperature**2) * torch.einsum("rc,rc->", targets, answers) / max(len(student), 1)


def kl_divergence(
    student: Float[Tensor, "rows classes"], teacher: Float[Tensor, "rows classes"], *, temperature: float
) -> Float[Tensor, ""]:
    """``T^2 * mean over rows of KL(softmax(teacher / T), softmax(student / T))``.

    Args:
        student: Of a sub-network; the official code takes embeddings here.
        teacher: Of the full network.
        temperature: T, which divides both.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = _wide(student, teacher)
        asked, answers = (teacher / temperature).log_softmax(1), (student / temperature).log_softmax(1)
        return temperature**2 * _kl(answers, asked)


def mean_squared_error(
    student: Float[Tensor, "rows classes"], teacher: Float[Tensor, "rows classes"]
) -> Float[Tensor, ""]:
    """Mean over all numbers of the squared differences.

    Args:
        student: Of a sub-network.
        teacher: Of the full network.
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = _wide(student, teacher)
        return (student - teacher).square().sum() / max(student.numel(), 1)


def atkd(
    student: Float[Tensor, "rows classes"], teacher: Float[Tensor, "rows classes"], *, temperature: float = 4.0
) -> Float[Tensor, ""]:
    """``kl_divergence`` of rows that are standardised (mean 0, variance 1) and doubled first: ATKD.

    Args:
        student: Of a sub-network.
        teacher: Of the full network.
        temperature: As of ``kl_divergence``.
    """
    with torch.autocast(student.device.type, enabled=False):
        even = [2 * F.layer_norm(rows, rows.shape[1:], eps=1e-5) for rows in _wide(student, teacher)]
        return kl_divergence(even[0], even[1], temperature=temperature)


def dkd(
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    positives: Int[Tensor, "rows"],
    *,
    temperature: float = 1.0,
    alpha: float = 1.0,
    beta: float = 0.5,
) -> Float[Tensor, ""]:
    """Decoupled distillation, ``T^2 * (alpha * target + beta * others)`` (Zhao et al. 2022, Sec. 3).

    ``target`` is the divergence of the two-way distributions right or wrong, ``others`` that of the distributions over
    the wrong classes alone; both are means over rows.

    Args:
        student: Logits of a sub-network.
        teacher: Logits of the full network.
        positives: The right class of each row.
        temperature: T, which divides both.
        alpha: Weight of the first part.
        beta: Weight of the second part.
    """
    with torch.autocast(student.device.type, enabled=False):
        wrong = torch.ones_like(student, dtype=torch.bool).scatter_(1, positives[:, None], False)
        two, rest = [], []
        for logits in _wide(student, teacher):
            logs = (logits / temperature).log_softmax(1)
            wrong_logs = logs[wrong].view(len(logs), logs.shape[1] - 1)
            two.append(torch.stack([logs.gather(1, positives[:, None])[:, 0], wrong_logs.logsumexp(1)], dim=1))
            rest.append(wrong_logs.log_softmax(1))
        return temperature**2 * (alpha * _kl(two[0], two[1]) + beta * _kl(rest[0], rest[1]))


ONLINE: Mapping[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "soft": lambda student, teacher, _, temperature: soft_cross_entropy(student, teacher, temperature=temperature),
    "kl": lambda student, teacher, _, temperature: kl_divergence(student, teacher, temperature=temperature),
    "mse": lambda student, teacher, _, __: mean_squared_error(student, teacher),
    "atkd": lambda student, teacher, _, temperature: atkd(student, teacher, temperature=temperature),
    "dkd": lambda student, teacher, positives, temperature: dkd(student, teacher, positives, temperature=temperature),
}
"""All of them, called alike: student, teacher, positives, temperature. What a loss does not know it leaves aside."""
USUAL_TEMPERATURES: Mapping[str, float] = {"soft": 5.0, "kl": 1.0, "mse": 1.0, "atkd": 4.0, "dkd": 1.0}
"""As the official code has them with MoCo v2."""


def online_distillation(
    name: str,
    student: Float[Tensor, "rows classes"],
    teacher: Float[Tensor, "rows classes"],
    positives: Int[Tensor, "rows"],
    *,
    temperature: float | None = None,
) -> Float[Tensor, ""]:
    """The loss of that name.

    Args:
        name: One of ``ONLINE``.
        student: Of a sub-network.
        teacher: Of the full network.
        positives: The right class of each row, for ``dkd``.
        temperature: None for the usual one of that loss; ``mse`` has none.

    Raises:
        UserError: There is no such loss.
    """
    if name not in ONLINE:
        raise UserError(f"There is no online distillation {name!r}. {nearest(name, ONLINE)}")
    return ONLINE[name](student, teacher, positives, USUAL_TEMPERATURES[name] if temperature is None else temperature)


def _wide(
    student: Float[Tensor, "rows classes"], teacher: Float[Tensor, "rows classes"]
) -> tuple[Float[Tensor, "rows classes"], Float[Tensor, "rows classes"]]:
    dtype = torch.promote_types(student.dtype, torch.float32)
    return student.to(dtype), teacher.detach().to(dtype)


def _kl(answers: Float[Tensor, "rows classes"], asked: Float[Tensor, "rows classes"]) -> Float[Tensor, ""]:
    """Mean over rows of the divergence of two distributions, both as logarithms."""
    return torch.einsum("rc,rc->", asked.exp(), asked - answers) / max(len(asked), 1)
