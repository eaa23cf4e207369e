"""Losses on outputs without prototypes: two views shall agree, and the outputs of a batch fill the space.

SimDINO (arXiv 2502.10385) puts the coding rate of the students' outputs (Yu et al., arXiv 2006.08558) in the place of
prototypes, temperatures and centring. All take rows on the unit sphere and compute in float32 (float64 stays), also
under autocast.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from poa import distributed
from poa.losses.objective import HeadOutput, Objective, Student, Targets, same_crops, swapped
from poa.machine.precision import wide


def disagreement(
    targets: Float[Tensor, "rows width"],
    features: Float[Tensor, "rows width"],
    *,
    weights: Float[Tensor, "rows"] | None = None,
) -> Float[Tensor, ""]:
    """Mean over rows of ``1 - target . feature``, half the squared distance on the unit sphere; or the weighted sum.

    Args:
        targets: Of a teacher; no gradient reaches them.
        features: Of a student.
        weights: Weight of each row in a sum, instead of the mean.
    """
    with torch.autocast(features.device.type, enabled=False):
        rows = 1.0 - torch.einsum("rw,rw->r", wide(targets.detach()), wide(features))
    if weights is None:
        return rows.sum() / max(len(rows), 1)
    return (weights * rows).sum()


def coding_rate(features: Float[Tensor, "rows width"], *, distortion: float) -> Float[Tensor, ""]:
    """``(1 / d + 1 / n) / 2 * logdet(I + d / (n * distortion) * Z.T @ Z)`` of ``n`` rows Z of width ``d``.

    The coding rate is the number of nats that tell the rows apart up to a squared distortion; the first factor keeps it
    of the size of a distance, whatever the batch and the width (SimDINO, official code). The rows of all processes
    count, so that several processes compute what one does. Fewer rows than columns have the determinant of ``Z @ Z.T``
    in place of ``Z.T @ Z``, which is the same and takes less.

    Args:
        features: One row an image, of one view.
        distortion: Squared distance within which rows count as the same.
    """
    with torch.autocast(features.device.type, enabled=False):
        rows = wide(features)
        width, total = rows.shape[1], len(rows) * distributed.world_size()
        if total < width:
            everyone = distributed.gather_rows(rows)
            gram = everyone @ everyone.T
        else:
            gram = distributed.differentiable_sum(rows.T @ rows)
        scaled = torch.eye(len(gram), dtype=rows.dtype, device=rows.device) + width / (total * distortion) * gram
        factor: Tensor = torch.linalg.cholesky_ex(scaled).L
        return (1 / width + 1 / total) * factor.diagonal().log().sum()


@dataclass(frozen=True)
class CodingRate(Objective):
    """Cosines between outputs, and the coding rate of a student's outputs (SimDINO, arXiv 2502.10385).

    Attributes:
        distortion: See :func:`coding_rate`.
    """

    distortion: float

    def targets(
        self,
        teacher: HeadOutput,
        *,
        temperature: float,  # noqa: ARG002
        centers: Sequence[Any],  # noqa: ARG002
    ) -> Targets:
        """The outputs themselves."""
        return Targets(swapped(teacher.globals), teacher.patches)

    def losses(
        self, asked: Targets, students: Sequence[Student], *, patch_weights: Float[Tensor, "masked"]
    ) -> list[dict[str, Tensor]]:
        """Against the teacher, and one minus the cosine against a larger student."""
        found = []
        for student, larger, _ in students:
            terms = self._terms(student, asked, patch_weights=patch_weights)
            if larger is not None:
                crops = same_crops(student, students[larger].output)
                terms |= {name: disagreement(theirs, ours) for name, theirs, ours in crops}
            found.append(terms)
        return found

    def _terms(
        self, student: HeadOutput, asked: Targets, *, patch_weights: Float[Tensor, "masked"]
    ) -> dict[str, Tensor]:
        """One minus the cosine, and minus the coding rate.

        Cosines are linear in the target, so that local crops are compared with the mean of both views. The rate is that
        of the mean of student and teacher, a view at a time (official code, ``expa_type`` 1).
        """
        views = zip(student.globals.chunk(2), swapped(asked.globals).chunk(2), strict=True)
        rates = [coding_rate((ours + theirs) / 2, distortion=self.distortion) for ours, theirs in views]
        patches = disagreement(asked.patches, student.patches, weights=patch_weights)
        found = {
            "global": disagreement(asked.globals, student.globals),
            "ibot": patches / len(student.globals),
            "rate": -torch.stack(rates).mean(),
        }
        if len(student.locals):
            both = torch.stack(asked.globals.chunk(2)).mean(0)
            found["local"] = disagreement(both.repeat(len(student.locals) // len(both), 1), student.locals)
        return found
