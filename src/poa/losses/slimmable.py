"""How widths of a slimmable network are trained together (SlimCLR, arXiv 2209.15525, Sec. 3): weights and distillation.

In online distillation sub-networks learn from the full network of the same step: student and teacher rows are logits or
features of one batch, and no gradient reaches the teacher. Computed in float32 (float64 stays), also under autocast.
Without rows a loss is 0, still connected to the student.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

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


def _cumulative(widths: Sequence[float]) -> list[float]:
    raw = [1.0 + sum(widths[number + 1 :]) for number in range(len(widths))]
    return [len(raw) * weight / sum(raw) for weight in raw]


WEIGHTINGS: Mapping[str, Callable[[Sequence[float]], list[float]]] = {
    "even": lambda widths: [1.0] * len(widths),
    "share": lambda widths: [round(width / sum(widths), 3) for width in widths],
    "width": list,
    "scaled-width": lambda widths: [len(widths) * width / sum(widths) for width in widths],
    "full": lambda widths: [1.0 + sum(widths[1:])] + [1.0] * (len(widths) - 1),
    "cumulative": _cumulative,
    "full-next": lambda widths: [1.0 + sum(widths[1:2])] + [1.0] * (len(widths) - 1),
}
"""The official code's options 0 to 3 and 5 to 7, in this order; option 4 is not defined there and comes to 0.

For widths w_1 > ... > w_n: ``even`` 1; ``share`` w_i / sum(w) to three decimals; ``width`` w_i; ``scaled-width``
n w_i / sum(w); ``full`` 1 + w_2 + ... + w_n for the full network and 1 for the others, as all published runs have it;
``cumulative`` 1 + w_{i+1} + ... + w_n, scaled so that all add up to n; ``full-next`` 1 + w_2 for the full network and
1 for the others.
"""


def width_weights(widths: Sequence[float], *, weighting: str = "full") -> tuple[float, ...]:
    """Weight of each width's loss.

    Args:
        widths: As shares of the full width, which comes first: descending from 1.
        weighting: One of ``WEIGHTINGS``.

    Raises:
        UserError: There is no such weighting, or the widths are not as said.
    """
    if weighting not in WEIGHTINGS:
        raise UserError(f"There is no weighting {weighting!r} of widths. {nearest(weighting, WEIGHTINGS)}")
    if not widths or widths[0] != 1.0 or any(not 0.0 < next_ < width for width, next_ in pairwise(widths)):
        raise UserError(
            "Widths are shares of the full width in descending order from 1, such as 1, 0.75, 0.5, 0.25; got "
            f"{', '.join(map(str, widths)) or 'none'}. Put the full width first and remove duplicates."
        )
    return tuple(WEIGHTINGS[weighting](widths))
