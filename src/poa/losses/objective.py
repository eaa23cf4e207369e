"""What a kind of loss (``LossSettings.kind``) has to say: what students are asked for, and how far they are from it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


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
    def targets(self, teacher: HeadOutput, *, temperature: float, centers: Sequence[Any]) -> Targets:
        """Without gradient. ``centers`` are the ``MovingAverageCenter`` of crops and that of patches, or None."""

    @abstractmethod
    def terms(
        self, student: HeadOutput, asked: Targets, *, patch_weights: Float[Tensor, "masked"]
    ) -> dict[str, Tensor]:
        """Terms by name: ``global``, ``ibot``, with local crops ``local``, and what keeps different images apart."""

    @abstractmethod
    def same_view(self, student: HeadOutput, larger: HeadOutput) -> dict[str, Tensor]:
        """Terms of a student against a larger one on the same crops, which no gradient reaches (Eq. 7)."""


def swapped(crops: Float[Tensor, "crops dim"]) -> Float[Tensor, "crops dim"]:
    """Rows of second views first."""
    return torch.cat(crops.chunk(2)[::-1])


def same_crops(student: HeadOutput, larger: HeadOutput) -> list[tuple[str, Tensor, Tensor]]:
    """Name of the term, and the outputs of the larger student and of the student, for each kind of crop there is."""
    crops = [("same_global", larger.globals, student.globals), ("same_local", larger.locals, student.locals)]
    return [each for each in crops if len(each[2])]
