"""POA with a frozen teacher beside the moving one: both students also learn the features of a trained network."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from poa.config.network import HeadSettings
from poa.config.pretraining import DistillSettings
from poa.data.views import Views
from poa.elastic.space import Size
from poa.families.base import Backbone, Family, Features
from poa.methods.base import named
from poa.methods.frozen import FrozenTeacher, Projection, learned_widths, term_weights
from poa.methods.poa import POA, BranchOutput, Network


class TaughtNetwork(Network):
    """A network whose last head is a projection into the frozen teacher's space."""

    def __init__(
        self, backbone: Backbone, heads: HeadSettings, *, outputs: tuple[int, int], with_locals: bool, **further: Any
    ) -> None:
        super().__init__(backbone, heads, **further)
        self.with_locals = with_locals
        self.heads.append(Projection(backbone.num_features, hidden=heads.hidden, outputs=outputs))

    def forward(
        self, views: Views, *, teacher: bool = False, prototypes: Sequence[Tensor] | None = None
    ) -> BranchOutput:
        """As without a frozen teacher, and for students the features of their crops in its space."""
        output = super().forward(views, teacher=teacher, prototypes=prototypes)
        if teacher:
            return output
        local = output.locals if self.with_locals else output.locals[:0]
        seen = Features(output.cls, views.seen_of(output.patches))
        return output._replace(projected=self.heads[-1](seen, local))


class TaughtPOA(POA):
    """POA, and for each student the distances from a frozen teacher's features of the same global crops.

    The students see masked crops and the frozen teacher whole ones, so that hidden patches are predicted too; those
    that students do not compute are left out. The elastic students' share is that in POA's own terms.

    Args:
        family: Backbones of all sizes.
        frozen: Images to ``Features``.
        widths: Of its class and patch features.
        distillation: What is learned of it, and how much.
        poa: Further arguments of ``POA``.
    """

    def __init__(
        self, family: Family, frozen: nn.Module, *, widths: tuple[int, int], distillation: DistillSettings, **poa: Any
    ) -> None:
        outputs = learned_widths(widths, distillation)
        with_locals = distillation.local_weight > 0
        super().__init__(family, network=partial(TaughtNetwork, outputs=outputs, with_locals=with_locals), **poa)
        self.distillation = distillation
        self.frozen = FrozenTeacher(frozen, outputs=outputs, smooth_l1=distillation.smooth_l1)

    def passes(
        self, views: Views, sizes: Sequence[Size], temperature: float
    ) -> Iterator[tuple[str, BranchOutput, dict[str, Tensor]]]:
        """The students in turn, with the terms of the frozen teacher among theirs."""
        asked: Features | None = None
        for branch, output, terms in super().passes(views, sizes, temperature):
            assert output.projected is not None
            if asked is None:
                asked = self.frozen.targets(views.globals, grid=output.patches.shape[1])
                if self.distillation.patch_weight:
                    asked = asked._replace(patches=views.seen_of(asked.patches))
            further = self.frozen.terms(output.projected, asked)
            yield branch, output, terms | {f"frozen_{name}": value for name, value in further.items()}

    def weights(self, sizes: Sequence[Size], *, num_locals: int, frozen: float = 1.0) -> dict[str, float]:
        """Those of POA, and of the frozen teacher's terms, all times ``frozen``."""
        share = self.losses.intact_share
        further = term_weights(self.distillation, num_locals=num_locals)
        weights = super().weights(sizes, num_locals=num_locals)
        for branch, part in (("intact", share), ("elastic", 1 - share)) if self.elastic else (("intact", 1.0),):
            weights |= named(branch, {f"frozen_{name}": part * frozen * x for name, x in further.items()})
        return weights
