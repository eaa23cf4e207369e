"""POA's targets and losses (arXiv 2408.01031, Sec. 3): distributions over prototypes, and KoLeo on features.

All compute in float32 (float64 stays), also under autocast.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from poa.distributed import max_over_ranks, sum_over_ranks
from poa.losses.objective import HeadOutput, Objective, Targets, same_crops, swapped

_EPSILON = 1e-8


def prototype_logits(
    features: Float[Tensor, "rows width"], prototypes: Float[Tensor, "prototypes width"], *, temperature: float
) -> Float[Tensor, "rows prototypes"]:
    """``features @ prototypes.T / temperature``."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        return (features.to(dtype) / temperature) @ prototypes.to(dtype).T


def _logsumexp_over_samples(logits: Float[Tensor, "rows prototypes"]) -> Float[Tensor, "prototypes"]:
    local = logits.logsumexp(0)  # -inf where this process has no rows
    highest = max_over_ranks(local)
    return highest + sum_over_ranks((local - highest).exp()).log()


@torch.no_grad()
def sinkhorn(
    features: Float[Tensor, "rows width"],
    prototypes: Float[Tensor, "prototypes width"],
    *,
    temperature: float,
    num_iterations: int = 3,
) -> Float[Tensor, "rows prototypes"]:
    """Targets that use all prototypes equally over the global batch (Sinkhorn-Knopp; SwAV, DINOv2, POA Sec. 3).

    In turn, every prototype's mass over the rows of all processes and every row's mass are made equal. Done in log
    space, so that no logit is too large. Processes may bring different numbers of rows, also none.

    Args:
        features: Teacher features of this process.
        prototypes: Teacher prototypes.
        temperature: Divides the logits.
        num_iterations: Rounds of the two normalisations.

    Returns:
        Targets without gradient; each row sums to 1.
    """
    log_targets = prototype_logits(features, prototypes, temperature=temperature)
    for _ in range(num_iterations):  # in place: the matrix can have billions of entries
        log_targets -= _logsumexp_over_samples(log_targets)
        log_targets -= log_targets.logsumexp(1, keepdim=True)
    return log_targets.exp_()


class MovingAverageCenter(nn.Module):
    """Targets ``softmax((logits - center) / temperature)`` (DINO).

    The centre is a moving average of the mean logits. It moves only in :meth:`update`, so that asking for targets
    changes nothing.

    Args:
        num_prototypes: Length of the centre.
        momentum: Share of the old centre that an update keeps.
    """

    center: Tensor

    def __init__(self, num_prototypes: int, *, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(num_prototypes))

    @torch.no_grad()
    def forward(
        self,
        features: Float[Tensor, "rows width"],
        prototypes: Float[Tensor, "prototypes width"],
        *,
        temperature: float,
    ) -> Float[Tensor, "rows prototypes"]:
        """Targets with the present centre; called like :func:`sinkhorn`."""
        logits = prototype_logits(features, prototypes, temperature=temperature)
        return logits.sub_(self.center / temperature).softmax(1)

    @torch.no_grad()
    def update(self, features: Float[Tensor, "rows width"], prototypes: Float[Tensor, "prototypes width"]) -> None:
        """Move the centre towards the mean logits of the global batch; nothing if no process has rows.

        Args:
            features: Teacher features of this process, also none.
            prototypes: Teacher prototypes.
        """
        dtype = self.center.dtype
        num_rows = torch.full((1,), len(features), dtype=dtype, device=features.device)
        totals = sum_over_ranks(torch.cat([features.sum(0, dtype=dtype), num_rows]))
        mean = totals[:-1] / totals[-1].clamp(min=1)
        logits = prototype_logits(mean[None], prototypes, temperature=1.0)[0]  # the mean of the logits: they are linear
        self.center.lerp_(logits.to(dtype), (totals[-1] > 0).to(dtype) * (1 - self.momentum))


def cross_entropy(
    targets: Float[Tensor, "rows prototypes"],
    features: Float[Tensor, "rows width"],
    prototypes: Float[Tensor, "prototypes width"],
    *,
    temperature: float = 0.1,
    weights: Float[Tensor, "rows"] | None = None,
) -> Float[Tensor, ""]:
    """Mean over rows of ``-sum(target * log_probability)``, or the weighted sum.

    Args:
        targets: Distributions over prototypes.
        features: Student features.
        prototypes: Student prototypes.
        temperature: Divides the student's logits.
        weights: Weight of each row in a sum, instead of the mean.
    """
    with torch.autocast(features.device.type, enabled=False):
        log_probabilities = prototype_logits(features, prototypes, temperature=temperature).log_softmax(1)
        # einsum, because it forms no product as large as the targets
        rows = -torch.einsum("rp,rp->r", targets.to(log_probabilities.dtype), log_probabilities)
    if weights is None:
        return rows.sum() / max(len(rows), 1)
    return (weights * rows).sum()


def local_cross_view(
    targets: Float[Tensor, "twice_batch prototypes"],
    features: Float[Tensor, "crops_times_batch width"],
    prototypes: Float[Tensor, "prototypes width"],
    *,
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """Each local crop against both global views: sum over crops and views of the mean over images.

    Cross-entropy is linear in the target, so both views' targets are added first.

    Args:
        targets: Targets of all images' first views, then of their second views.
        features: Student features of local crops: all images' first crops, then their second ones, and so on.
        prototypes: Student prototypes.
        temperature: Divides the student's logits.
    """
    first, second = targets.chunk(2)
    batch = len(first)
    with torch.autocast(features.device.type, enabled=False):
        log_probabilities = prototype_logits(features, prototypes, temperature=temperature).log_softmax(1)
        crops = log_probabilities.view(len(features) // batch, *first.shape)
        return -torch.einsum("bp,lbp->", (first + second).to(crops.dtype), crops) / batch


def same_view(
    teacher_features: Float[Tensor, "rows width"],
    teacher_prototypes: Float[Tensor, "prototypes width"],
    features: Float[Tensor, "rows width"],
    prototypes: Float[Tensor, "prototypes width"],
    *,
    teacher_temperature: float = 0.1,
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """The elastic student against the intact student on the same crops, mean over rows (POA, Sec. 3).

    Args:
        teacher_features: Intact features; no gradient reaches them.
        teacher_prototypes: Intact prototypes; no gradient reaches them.
        features: Elastic features.
        prototypes: Elastic prototypes.
        teacher_temperature: Divides the intact logits, whose softmax is the target.
        temperature: Divides the elastic logits.
    """
    with torch.no_grad():
        targets = prototype_logits(teacher_features, teacher_prototypes, temperature=teacher_temperature).softmax(1)
    return cross_entropy(targets, features, prototypes, temperature=temperature)


def masked_patch_loss(
    targets: Float[Tensor, "masked prototypes"],
    features: Float[Tensor, "masked width"],
    prototypes: Float[Tensor, "prototypes width"],
    *,
    weights: Float[Tensor, "masked"],
    num_images: int,
    temperature: float = 0.1,
) -> Float[Tensor, ""]:
    """``sum(weight * cross_entropy) / num_images`` over masked patches (iBOT, DINOv2).

    Args:
        targets: Teacher's distributions at the masked patches.
        features: Student features at the masked patches, from the masked images.
        prototypes: Student prototypes.
        weights: See :func:`mask_weights`.
        num_images: Number of global crops, masked or not.
        temperature: Divides the student's logits.
    """
    return cross_entropy(targets, features, prototypes, temperature=temperature, weights=weights) / num_images


def mask_weights(masks: Bool[Tensor, "images patches"]) -> Float[Tensor, "masked"]:
    """One over the number of masked patches of its image, for every masked patch in row-major order."""
    counts = masks.sum(1, keepdim=True).clamp(min=1)
    return counts.float().reciprocal().expand_as(masks)[masks]


def koleo(
    features: Float[Tensor, "rows width"],
    *,
    neighbours: Float[Tensor, "candidates width"] | None = None,
    offset: int = 0,
) -> Float[Tensor, ""]:
    """``-mean(log(distance to the nearest other row))`` on the unit sphere (Sablayrolles et al. 2019; DINOv2).

    Where two rows coincide, value and gradient are large but
    finite. With a single row there is no neighbour, and the loss is 0, still connected to its input.

    Args:
        features: One row an image, of one view: two views of an image would be neighbours.
        neighbours: Rows to look among, such as those of all processes; the features themselves if not given.
        offset: Where in ``neighbours`` the features' own rows start.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        rows = F.normalize(features.to(dtype), dim=1, eps=_EPSILON)
        candidates = rows if neighbours is None else F.normalize(neighbours.to(dtype), dim=1, eps=_EPSILON)
        if len(rows) == 0 or len(candidates) < 2:
            return rows.sum() * 0.0
        nearest = candidates[_nearest(rows, candidates, offset=offset)]
        distances = F.pairwise_distance(rows, nearest, eps=_EPSILON)
        return -(distances + _EPSILON).log().mean()


@torch.no_grad()
def _nearest(
    rows: Float[Tensor, "rows width"], candidates: Float[Tensor, "candidates width"], *, offset: int
) -> Int[Tensor, "rows"]:
    assert offset + len(rows) <= len(candidates), "own rows must be among the candidates"
    similarity = rows @ candidates.T
    similarity.diagonal(offset).fill_(-torch.inf)
    return similarity.argmax(1)


@dataclass(frozen=True)
class Prototypes(Objective):
    """Cross-entropy between distributions over prototypes (DINOv2; POA, Sec. 3).

    Attributes:
        temperature: Divides the students' logits.
    """

    temperature: float

    def targets(self, teacher: HeadOutput, *, temperature: float, centers: Sequence[Any]) -> Targets:
        """By Sinkhorn-Knopp; or centred by moving averages, which then move."""
        made = []
        for rows, center in zip((swapped(teacher.globals), teacher.patches), centers, strict=True):
            made.append((center or sinkhorn)(rows, teacher.prototypes, temperature=temperature))
            if center is not None:
                center.update(rows, teacher.prototypes)
        return Targets(*made)

    def terms(
        self, student: HeadOutput, asked: Targets, *, patch_weights: Float[Tensor, "masked"]
    ) -> dict[str, Tensor]:
        """Cross-entropies; that of local crops is the mean over pairs."""
        prototypes, temperature, num_crops = student.prototypes, self.temperature, len(student.globals)
        found = {
            "global": cross_entropy(asked.globals, student.globals, prototypes, temperature=temperature),
            "ibot": masked_patch_loss(
                asked.patches,
                student.patches,
                prototypes,
                weights=patch_weights,
                num_images=num_crops,
                temperature=temperature,
            ),
        }
        if len(student.locals):
            pairs = 2 * len(student.locals) / (num_crops // 2)
            total = local_cross_view(asked.globals, student.locals, prototypes, temperature=temperature)
            found["local"] = total / pairs
        return found

    def same_view(self, student: HeadOutput, larger: HeadOutput) -> dict[str, Tensor]:
        """Cross-entropies; both sides at the students' temperature."""
        temperatures = {"teacher_temperature": self.temperature, "temperature": self.temperature}
        return {
            name: same_view(asked, larger.prototypes, given, student.prototypes, **temperatures)
            for name, asked, given in same_crops(student, larger)
        }
