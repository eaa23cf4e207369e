"""What a kind of loss (``LossSettings.kind``) has to say: what students are asked for, and how far they are from it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
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
    """What one head of the teacher asks of the students: outputs, or whatever makes distributions of some rows.

    Attributes:
        globals: For each global crop, what the *other* view of the same image gives.
        patches: For each masked patch, what it gives itself.
    """

    globals: Any
    patches: Any


class Student(NamedTuple):
    """One head of a student among the students of a step.

    Attributes:
        output: What it makes of the batch.
        larger: The place of the student, before this one, that teaches it on the same crops (Eq. 7), if one does.
        weights: Of its terms in the loss, by name.
    """

    output: HeadOutput
    larger: int | None
    weights: Mapping[str, float]


class Objective(ABC):
    """What students are asked for, and how far one head of theirs is from it.

    One from outside of this package is made of the settings of the losses, a ``LossSettings``. Its heads have no
    prototypes, and what keeps different images apart is part of its ``global``.
    """

    @abstractmethod
    def targets(self, teacher: HeadOutput, *, temperature: float, centers: Sequence[Any]) -> Targets:
        """Without gradient. ``centers`` are the ``MovingAverageCenter`` of crops and that of patches, or None."""

    @abstractmethod
    def losses(
        self, asked: Targets, students: Sequence[Student], *, patch_weights: Float[Tensor, "masked"]
    ) -> list[dict[str, Tensor]]:
        """Unweighted terms of each student by name, to be differentiated as the sum that their weights make of them.

        They are ``global``, ``ibot``, with local crops ``local``, what keeps different images apart, and, of a student
        that a larger one teaches, ``same_global`` and ``same_local``; the gradient does not reach the larger one.
        """


def swapped(crops: Float[Tensor, "crops dim"]) -> Float[Tensor, "crops dim"]:
    """Rows of second views first."""
    return torch.cat(crops.chunk(2)[::-1])


def same_crops(student: HeadOutput, larger: HeadOutput) -> list[tuple[str, Tensor, Tensor]]:
    """Name of the term, and the outputs of the larger student and of the student, for each kind of crop there is."""
    crops = [("same_global", larger.globals, student.globals), ("same_local", larger.locals, student.locals)]
    return [each for each in crops if len(each[2])]
