"""How POA compares what the heads of two networks make of a batch: the kinds of ``LossSettings.kind``."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from poa.losses import prototypes as by_prototypes
from poa.losses.coding_rate import coding_rate, disagreement
from poa.losses.prototypes import MovingAverageCenter


class Objective(ABC):
    """What students are asked for, and how far they are from it.

    Outputs lie on the unit sphere; ``prototypes`` are those of the head that made them, no rows if it has none.
    """

    @abstractmethod
    def asked(
        self,
        outputs: Float[Tensor, "rows dim"],
        prototypes: Float[Tensor, "prototypes dim"],
        *,
        temperature: float,
        center: MovingAverageCenter | None,
    ) -> Float[Tensor, "rows targets"]:
        """Targets from the teacher's outputs, without gradient."""

    @abstractmethod
    def other_view(
        self,
        targets: Float[Tensor, "crops targets"],
        outputs: Float[Tensor, "crops dim"],
        prototypes: Float[Tensor, "prototypes dim"],
    ) -> Float[Tensor, ""]:
        """Global crops against targets of the other view of the same image, mean over crops."""

    @abstractmethod
    def local_crops(
        self,
        targets: Float[Tensor, "crops targets"],
        outputs: Float[Tensor, "local_crops dim"],
        prototypes: Float[Tensor, "prototypes dim"],
    ) -> Float[Tensor, ""]:
        """Local crops against targets of both global views of the same image, mean over pairs."""

    @abstractmethod
    def masked(
        self,
        targets: Float[Tensor, "masked targets"],
        outputs: Float[Tensor, "masked dim"],
        prototypes: Float[Tensor, "prototypes dim"],
        *,
        weights: Float[Tensor, "masked"],
        num_images: int,
    ) -> Float[Tensor, ""]:
        """Masked patches against their own targets: the weighted sum, over the number of global crops."""

    @abstractmethod
    def same_view(
        self,
        asked: Float[Tensor, "rows dim"],
        asked_prototypes: Float[Tensor, "prototypes dim"],
        outputs: Float[Tensor, "rows dim"],
        prototypes: Float[Tensor, "prototypes dim"],
    ) -> Float[Tensor, ""]:
        """A student against a larger one on the same crops, mean over rows; no gradient reaches the larger one."""

    def spread(
        self,
        outputs: Float[Tensor, "crops dim"],  # noqa: ARG002
        teacher: Float[Tensor, "crops dim"],  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """Further terms, by name, that keep different images apart.

        Args:
            outputs: A student's, for the first views of all images, then for their second views.
            teacher: The teacher's outputs for the same crops.
        """
        return {}


@dataclass(frozen=True)
class Prototypes(Objective):
    """Cross-entropy between distributions over prototypes (DINOv2; POA, Sec. 3).

    Attributes:
        temperature: Divides the students' logits.
    """

    temperature: float

    def asked(
        self, outputs: Tensor, prototypes: Tensor, *, temperature: float, center: MovingAverageCenter | None
    ) -> Tensor:
        """By Sinkhorn-Knopp; or centred by a moving average, which then moves."""
        if center is None:
            return by_prototypes.sinkhorn(outputs, prototypes, temperature=temperature)
        targets: Tensor = center(outputs, prototypes, temperature=temperature)
        center.update(outputs, prototypes)
        return targets

    def other_view(self, targets: Tensor, outputs: Tensor, prototypes: Tensor) -> Tensor:
        """Cross-entropy."""
        return by_prototypes.cross_entropy(targets, outputs, prototypes, temperature=self.temperature)

    def local_crops(self, targets: Tensor, outputs: Tensor, prototypes: Tensor) -> Tensor:
        """Cross-entropy."""
        pairs = 2 * len(outputs) / (len(targets) // 2)
        return by_prototypes.local_cross_view(targets, outputs, prototypes, temperature=self.temperature) / pairs

    def masked(
        self, targets: Tensor, outputs: Tensor, prototypes: Tensor, *, weights: Tensor, num_images: int
    ) -> Tensor:
        """Cross-entropy."""
        return by_prototypes.masked_patch_loss(
            targets, outputs, prototypes, weights=weights, num_images=num_images, temperature=self.temperature
        )

    def same_view(self, asked: Tensor, asked_prototypes: Tensor, outputs: Tensor, prototypes: Tensor) -> Tensor:
        """Cross-entropy; both sides at the students' temperature."""
        temperatures = {"teacher_temperature": self.temperature, "temperature": self.temperature}
        return by_prototypes.same_view(asked, asked_prototypes, outputs, prototypes, **temperatures)


@dataclass(frozen=True)
class CodingRate(Objective):
    """Cosines between outputs, and the coding rate of a student's outputs (SimDINO, arXiv 2502.10385).

    Attributes:
        distortion: See :func:`~poa.losses.coding_rate.coding_rate`.
    """

    distortion: float

    def asked(
        self,
        outputs: Tensor,
        prototypes: Tensor,  # noqa: ARG002
        *,
        temperature: float,  # noqa: ARG002
        center: MovingAverageCenter | None,  # noqa: ARG002
    ) -> Tensor:
        """The outputs themselves."""
        return outputs.detach()

    def other_view(self, targets: Tensor, outputs: Tensor, prototypes: Tensor) -> Tensor:  # noqa: ARG002
        """One minus the cosine."""
        return disagreement(targets, outputs)

    def local_crops(self, targets: Tensor, outputs: Tensor, prototypes: Tensor) -> Tensor:  # noqa: ARG002
        """One minus the cosine; it is linear in the target, so that the mean of both views serves."""
        both = torch.stack(targets.chunk(2)).mean(0)
        return disagreement(both.repeat(len(outputs) // len(both), 1), outputs)

    def masked(
        self,
        targets: Tensor,
        outputs: Tensor,
        prototypes: Tensor,  # noqa: ARG002
        *,
        weights: Tensor,
        num_images: int,
    ) -> Tensor:
        """One minus the cosine."""
        return disagreement(targets, outputs, weights=weights) / num_images

    def same_view(
        self,
        asked: Tensor,
        asked_prototypes: Tensor,  # noqa: ARG002
        outputs: Tensor,
        prototypes: Tensor,  # noqa: ARG002
    ) -> Tensor:
        """One minus the cosine."""
        return disagreement(asked, outputs)

    def spread(self, outputs: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Minus the coding rate, a view at a time, of the mean of student and teacher (official: ``expa_type`` 1)."""
        views = zip(outputs.chunk(2), teacher.detach().chunk(2), strict=True)
        rates = [coding_rate((ours + theirs) / 2, distortion=self.distortion) for ours, theirs in views]
        return {"rate": -torch.stack(rates).mean()}
