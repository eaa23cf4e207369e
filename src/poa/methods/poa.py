"""POA: teacher, intact student and elastic student, distilled into one another (ECCV 2024, arXiv 2408.01031)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from poa.data.views import Views
from poa.elastic.space import Size
from poa.families.base import Family
from poa.losses.distillation import same_view
from poa.methods.network import BranchOutput
from poa.methods.single import SelfDistillation, mean, prefixed


class POA(SelfDistillation):
    """Self-distillation with a third branch, the elastic student: at every step another size of the intact one.

    Args:
        family: Backbones of all sizes.
        further: As of ``SelfDistillation``.
    """

    def __init__(self, family: Family, **further: Any) -> None:
        super().__init__(family, **further)
        self.sub_networks = family.sub_networks(self.build, castable=lambda name: name.startswith("backbone."))

    def weights(self, sizes: Sequence[Size], *, num_locals: int) -> dict[str, float]:  # noqa: ARG002
        """Weight of each named term; the students share what one student weighs alone.

        Args:
            sizes: Left aside: terms are means over them.
            num_locals: Local crops an image; 0 drops the local terms.
        """
        alone = self.losses.of_student(num_locals=num_locals)
        koleo = alone.pop("koleo") * (0.5 if self.losses.variant == "code" else 1.0)
        weights: dict[str, float] = {}
        for branch, share in (("intact", self.losses.intact_share), ("elastic", 1.0 - self.losses.intact_share)):
            weights |= {f"{branch}/{name}": share * weight for name, weight in alone.items()}
            weights |= {f"{branch}/koleo": koleo}
        same = 1.0 - self.losses.intact_share
        return weights | {f"elastic/same_{name}": same for name in ("global", "local") if name in alone}

    def forward(self, views: Views, sizes: Sequence[Size], *, temperature: float) -> dict[str, Tensor]:
        """Unweighted losses by name, averaged over heads, and over sizes for the elastic student.

        Args:
            views: This process's part of the batch.
            sizes: Elastic students of this step; may be empty.
            temperature: The teacher's temperature.
        """
        targets = self.targets(views, temperature)
        intact = self.run(self.student, views)  # always first and always there: every parameter gets a gradient
        losses = prefixed("intact", self.terms(intact, targets, views))
        parameters = dict(self.student.named_parameters())
        device = views.globals.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        for size in sizes:
            network = self.sub_networks.bind(size, parameters, training=self.training, dtype=dtype)
            elastic = self.run(network, views)
            terms = self.terms(elastic, targets, views) | self._same_view(elastic, intact)
            for name, value in prefixed("elastic", terms).items():
                losses[name] = losses.get(name, 0.0) + value / len(sizes)
        return losses

    def _same_view(self, elastic: BranchOutput, intact: BranchOutput) -> dict[str, Tensor]:
        """Terms that hold the elastic student against the intact one on the same views (POA, Sec. 3)."""
        temperature = self.losses.student_temperature
        by_head = [
            {
                f"same_{kind}": same_view(
                    getattr(teacher, f"{kind}s"),
                    teacher.prototypes,
                    getattr(student, f"{kind}s"),
                    student.prototypes,
                    teacher_temperature=temperature,
                    temperature=temperature,
                )
                for kind in (("global", "local") if len(student.locals) else ("global",))
            }
            for student, teacher in zip(elastic.heads, intact.heads, strict=True)
        ]
        return mean(by_head)
