"""How POA compares what the heads of two networks make of a batch: the kinds of ``LossSettings.kind``."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from poa.losses.coding_rate import coding_rate, disagreement
from poa.losses.prototypes import (
    MovingAverageCenter,
    cross_entropy,
    local_cross_view,
    masked_patch_loss,
    same_view,
    sinkhorn,
)


class HeadOutput(NamedTuple):
    """What one projection head makes of a batch.

    Attributes:
        globals: Global crops, first views of all images, then second views.
        locals: Local crops, crop by crop; no rows if there are none.
        patches: Masked patches in row-major order of the masks.
        prototypes: The head's prototypes; no rows if it has none.
    """

    globals: Float[Tensor, "crops dim"]
    locals: Float[Tensor, "local_crops dim"]
    patches: Float[Tensor, "masked dim"]
    prototypes: Float[Tensor, "prototypes dim"]


class Targets(NamedTuple):
    """What one head of the teacher asks of the students.

    Attributes:
        globals: For each global crop, the distribution (or output) of the *other* view of the same image.
        patches: For each masked patch, its own distribution (or output).
    """

    globals: Float[Tensor, "crops targets"]
    patches: Float[Tensor, "masked targets"]


class Objective(ABC):
    """What students are asked for, and how far one head of theirs is from it."""

    @abstractmethod
    def targets(
        self, teacher: HeadOutput, *, temperature: float, centers: Sequence[MovingAverageCenter | None]
    ) -> Targets:
        """Without gradient. ``centers`` are those of crops and of patches, where outputs are centred by an average."""

    @abstractmethod
    def terms(
        self, student: HeadOutput, asked: Targets, *, patch_weights: Float[Tensor, "masked"]
    ) -> dict[str, Tensor]:
        """Terms by name: ``global``, ``ibot``, with local crops ``local``, and what keeps different images apart."""

    @abstractmethod
    def same_view(self, student: HeadOutput, larger: HeadOutput) -> dict[str, Tensor]:
        """Terms of a student against a larger one on the same crops, which no gradient reaches (Eq. 7)."""


@dataclass(frozen=True)
class Prototypes(Objective):
    """Cross-entropy between distributions over prototypes (DINOv2; POA, Sec. 3).

    Attributes:
        temperature: Divides the students' logits.
    """

    temperature: float

    def targets(
        self, teacher: HeadOutput, *, temperature: float, centers: Sequence[MovingAverageCenter | None]
    ) -> Targets:
        """By Sinkhorn-Knopp; or centred by moving averages, which then move."""
        made = []
        for rows, center in zip((_swapped(teacher.globals), teacher.patches), centers, strict=True):
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
            for name, asked, given in _same_crops(student, larger)
        }


@dataclass(frozen=True)
class CodingRate(Objective):
    """Cosines between outputs, and the coding rate of a student's outputs (SimDINO, arXiv 2502.10385).

    Attributes:
        distortion: See :func:`~poa.losses.coding_rate.coding_rate`.
    """

    distortion: float

    def targets(
        self,
        teacher: HeadOutput,
        *,
        temperature: float,  # noqa: ARG002
        centers: Sequence[MovingAverageCenter | None],  # noqa: ARG002
    ) -> Targets:
        """The outputs themselves."""
        return Targets(_swapped(teacher.globals), teacher.patches)

    def terms(
        self, student: HeadOutput, asked: Targets, *, patch_weights: Float[Tensor, "masked"]
    ) -> dict[str, Tensor]:
        """One minus the cosine, and minus the coding rate.

        Cosines are linear in the target, so that local crops are compared with the mean of both views. The rate is that
        of the mean of student and teacher, a view at a time (official code, ``expa_type`` 1).
        """
        views = zip(student.globals.chunk(2), _swapped(asked.globals).chunk(2), strict=True)
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

    def same_view(self, student: HeadOutput, larger: HeadOutput) -> dict[str, Tensor]:
        """One minus the cosine."""
        return {name: disagreement(asked, given) for name, asked, given in _same_crops(student, larger)}


def _swapped(crops: Float[Tensor, "crops dim"]) -> Float[Tensor, "crops dim"]:
    """Rows of second views first."""
    return torch.cat(crops.chunk(2)[::-1])


def _same_crops(student: HeadOutput, larger: HeadOutput) -> list[tuple[str, Tensor, Tensor]]:
    """Name of the term, and the outputs of the larger student and of the student, for each kind of crop there is."""
    crops = [("same_global", larger.globals, student.globals), ("same_local", larger.locals, student.locals)]
    return [each for each in crops if len(each[2])]
