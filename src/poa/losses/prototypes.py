"""POA's targets and losses (arXiv 2408.01031, Sec. 3): distributions over prototypes, and KoLeo on features.

All compute in float32 (float64 stays), also under autocast; only products with prototypes are bf16 where a device gains
by it (ADR 0051).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from poa.distributed import max_over_ranks, sum_over_ranks
from poa.losses.objective import HeadOutput, Objective, Student, Targets, swapped
from poa.losses.streamed import Crops, chunks, cross_entropies
from poa.machine.precision import for_products, wide

_EPSILON = 1e-8


def prototype_logits(
    features: Float[Tensor, "rows width"], prototypes: Float[Tensor, "prototypes width"], *, temperature: float
) -> Float[Tensor, "rows prototypes"]:
    """``features @ prototypes.T / temperature``, in the precision of the prototypes."""
    with torch.autocast(features.device.type, enabled=False):
        return (wide(features) / temperature).to(prototypes.dtype) @ prototypes.T


@dataclass(frozen=True, eq=False)
class Logits:
    """Logits of a teacher, some rows at a time; made again whenever they are asked for.

    Attributes:
        features: Of this process; also none.
        prototypes: Of the teacher.
        temperature: Divides the logits.
    """

    features: Float[Tensor, "rows width"]
    prototypes: Float[Tensor, "prototypes width"]
    temperature: float

    def keep(self) -> "Stored":
        """All of them: faster, and as large as rows times prototypes, which are not needed any more."""
        return Stored(prototype_logits(self.features, self.prototypes, temperature=self.temperature), self.temperature)

    @property
    def nothing(self) -> Float[Tensor, "0 prototypes"]:
        """Of no rows, which says how many prototypes there are, and of which type and where the logits are."""
        return self[:0]

    def __getitem__(self, rows: slice) -> Float[Tensor, "some prototypes"]:
        """Of some rows."""
        return wide(prototype_logits(self.features[rows], self.prototypes, temperature=self.temperature))

    def chunks(self) -> Iterator[Float[Tensor, "some prototypes"]]:
        """Of all rows in turn."""
        return map(self.__getitem__, chunks(len(self.features), self.prototypes))


@dataclass(frozen=True, eq=False)
class Stored:
    """Logits of a teacher, all of which are kept, as they come out of the product."""

    values: Float[Tensor, "rows prototypes"]
    temperature: float

    @property
    def nothing(self) -> Float[Tensor, "0 prototypes"]:
        """Of no rows."""
        return self[:0]

    def __getitem__(self, rows: slice) -> Float[Tensor, "some prototypes"]:
        """Of some rows."""
        return wide(self.values[rows])

    def chunks(self) -> Iterator[Float[Tensor, "some prototypes"]]:
        """Of all rows in turn."""
        return map(self.__getitem__, chunks(len(self.values), self.values.T))


@dataclass(frozen=True, eq=False)
class Asked:
    """A teacher's distributions ``softmax(logits - offsets)``, made some rows at a time."""

    logits: Logits | Stored
    offsets: Float[Tensor, "prototypes"]

    @torch.no_grad()
    def __call__(self, rows: slice) -> Float[Tensor, "some prototypes"]:
        """Of some rows."""
        return (self.logits[rows] - self.offsets).softmax(1)

    def log(self, logits: Float[Tensor, "some prototypes"]) -> Float[Tensor, "some prototypes"]:
        """The logarithm, of rows whose logits are given."""
        return (logits - self.offsets).log_softmax(1)


@torch.no_grad()
def sinkhorn(logits: Logits | Stored, *, num_iterations: int = 3) -> Asked:
    """Targets that use all prototypes equally over the global batch (Sinkhorn-Knopp; SwAV, DINOv2, POA Sec. 3).

    In turn, every prototype's mass over the rows of all processes and every row's mass are made equal. Done in log
    space, so that no logit is too large. Processes may bring different numbers of rows, also none. Only what is taken
    from each prototype's logits is remembered: what is taken from a row's makes it sum to 1, as a softmax does.

    Args:
        logits: Of the teacher.
        num_iterations: Rounds of the two normalisations.
    """
    offsets = _logsumexp_over_samples(logits, torch.clone)
    for _ in range(num_iterations - 1):
        offsets = offsets + _logsumexp_over_samples(logits, Asked(logits, offsets).log)
    return Asked(logits, offsets)


def _logsumexp_over_samples(
    logits: Logits | Stored, balanced: Callable[[Tensor], Tensor]
) -> Float[Tensor, "prototypes"]:
    """Of what is made of some rows; in place, since a new matrix costs more than what is done to it."""
    local = torch.full_like(logits.nothing.sum(0), -torch.inf)  # where there are no rows
    for part in map(balanced, logits.chunks()):
        top = part.amax(0)
        local = torch.logaddexp(local, top + part.sub_(top).exp_().sum(0).log())
    highest = max_over_ranks(local)
    return highest + sum_over_ranks((local - highest).exp()).log()


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

    def forward(self, logits: Logits | Stored) -> Asked:
        """Targets with the present centre; called like :func:`sinkhorn`."""
        return Asked(logits, self.center / logits.temperature)

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


def mask_weights(
    masks: Bool[Tensor, "images patches"], hidden: Int[Tensor, " masked"] | None = None
) -> Float[Tensor, " masked"]:
    """One over the number of masked patches of its image, for every masked patch in row-major order.

    ``hidden`` names these where they are known; to find them, a GPU is waited for.
    """
    counts = masks.sum(1, keepdim=True).clamp(min=1)
    weights = counts.float().reciprocal().expand_as(masks)
    return weights[masks] if hidden is None else weights.flatten().index_select(0, hidden)


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
    with torch.autocast(features.device.type, enabled=False):
        rows = F.normalize(wide(features), dim=1, eps=_EPSILON)
        candidates = rows if neighbours is None else F.normalize(wide(neighbours), dim=1, eps=_EPSILON)
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
        keep_logits: Keep the logits of one head of the teacher while they are needed.
    """

    temperature: float
    keep_logits: bool = True

    @torch.no_grad()
    def targets(self, teacher: HeadOutput, *, temperature: float, centers: Sequence[Any]) -> Targets:
        """By Sinkhorn-Knopp; or centred by moving averages, which then move."""
        made, prototypes = [], for_products(teacher.prototypes)
        for rows, center in zip((swapped(teacher.globals), teacher.patches), centers, strict=True):
            logits = Logits(rows, prototypes, temperature)
            made.append((center or sinkhorn)(logits.keep() if self.keep_logits else logits))
            if center is not None:
                center.update(rows, teacher.prototypes)
        return Targets(*made)

    def losses(
        self, asked: Targets, students: Sequence[Student], *, patch_weights: Float[Tensor, "masked"]
    ) -> list[dict[str, Tensor]]:
        """Cross-entropies: means over crops, that of local crops over pairs, those of patches over images (iBOT).

        Cross-entropy is linear in the target, so a local crop is compared with the mean of both views' targets.
        """
        outputs = [student.output for student in students]
        images, width = len(outputs[0].globals) // 2, outputs[0].prototypes.shape[1]

        def both(few: slice) -> Tensor:
            second: Tensor = asked.globals(slice(few.start + images, few.stop + images))
            return second.add_(asked.globals(few)).div_(2)

        def even(rows: int, number: int) -> Tensor:
            return patch_weights.new_full((rows,), 1 / max(number, 1))

        crops = {
            "global": Crops(asked.globals, even(2 * images, 2 * images), [each.globals for each in outputs]),
            "ibot": Crops(asked.patches, patch_weights / (2 * images), [each.patches for each in outputs]),
        }
        if num_locals := len(outputs[0].locals):
            by_image = [each.locals.view(-1, images, width).transpose(0, 1).flatten(0, 1) for each in outputs]
            crops["local"] = Crops(both, even(images, num_locals), by_image)
        names = [(name, f"same_{name}") for name in crops]
        values = cross_entropies(
            list(crops.values()),
            outputs[0].prototypes,
            larger=[student.larger for student in students],
            temperature=self.temperature,
            shares=torch.tensor([[[s.weights.get(n, 0.0) for n in pair] for pair in names] for s in students]),
        )
        return [
            {
                name: term
                for pair, terms in zip(names, own, strict=True)
                for name, term in zip(pair, terms, strict=True)
                if name in student.weights
            }
            for student, own in zip(students, values, strict=True)
        ]
