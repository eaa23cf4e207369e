"""Distillation of a frozen teacher into networks of many sizes at once.

The teacher's class and patch features of the global crops, standardised by channel, are what all students learn: the
intact one at every step, and the elastic students of the step, which are cut out of it. They predict them through one
projection, whose first layer is cut by width as that of a head. The elastic students also learn the intact student's
predictions of the same crops. The teacher runs once a step, whatever the number of sizes (as in DINOv3's distillation
into several students, arXiv 2508.10104, Sec. 5.2); what is learned is that of AM-RADIO (arXiv 2312.06709, Sec. 3).
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from poa.config.pretraining import DistillSettings
from poa.data.views import Views
from poa.elastic.space import Size
from poa.families.base import Backbone, Family
from poa.methods.base import Branch, Method, elastic_students, named
from poa.methods.frozen import FrozenTeacher, Projected, Projection, learned_widths, term_weights


class Student(Branch):
    """A backbone, and a projection into the teacher's space."""

    def __init__(self, backbone: Backbone, *, hidden: int, outputs: tuple[int, int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.backbone.mask_token.requires_grad_(False)  # nothing is hidden
        self.heads = Projection(backbone.num_features, hidden=hidden, outputs=outputs)

    def forward(
        self,
        crops: Float[Tensor, "crops channels height side"],
        local_crops: Float[Tensor, "local_crops channels local_height local_side"],
    ) -> Projected:
        """Project the features of all crops."""
        features = self.backbone(crops, None)
        local = self.backbone(local_crops, None).cls if len(local_crops) else features.cls[:0]
        projected: Projected = self.heads(features, local)
        return projected


class Distill(Method):
    """A frozen teacher, the intact student and elastic students; in a search space of one size the intact one alone.

    Args:
        family: Backbones of all sizes; the intact one is trained and the others are cut from it.
        teacher: Images to ``Features``.
        widths: Of the teacher's class and patch features.
        distillation: What is learned, and how much.
        hidden: Width of the projection's hidden layers.
        intact_share: Weight of the intact student against the elastic one.
        taught_by_next: An elastic student learns from the one before it in the order of the step, the first from the
            intact student; by default all learn from the intact one.
        drop_path: Rate of stochastic depth in the students.
        checkpointing: Recompute the students' blocks and heads in the backward pass instead of storing them.
        compile_blocks: Compile the backbones' blocks.
    """

    def __init__(
        self,
        family: Family,
        teacher: nn.Module,
        *,
        widths: tuple[int, int],
        distillation: DistillSettings,
        hidden: int = 2048,
        intact_share: float = 0.8,
        taught_by_next: bool = False,
        drop_path: float = 0.0,
        checkpointing: bool = False,
        compile_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.distillation, self.taught_by_next = distillation, taught_by_next
        self.elastic, self.intact_share = len(family.space.sizes) > 1, intact_share
        outputs = learned_widths(widths, distillation)

        def build(size: Size) -> Student:
            made = Student(family.build(size, drop_path=drop_path), hidden=hidden, outputs=outputs)
            return made.prepare(checkpointing=checkpointing, compile_blocks=compile_blocks)

        self.student: Student = build(family.space.intact)
        self.frozen = FrozenTeacher(teacher, outputs=outputs, smooth_l1=distillation.smooth_l1)
        self.sub_networks = family.sub_networks(build, castable=lambda name: name.startswith("backbone."))

    def weights(self, sizes: Sequence[Size], *, num_locals: int, frozen: float = 1.0) -> dict[str, float]:  # noqa: ARG002
        """Weight of each term; those of the elastic students are means over sizes."""
        terms = term_weights(self.distillation, num_locals=num_locals)
        if not self.elastic:
            return named("intact", terms)
        same = {f"same_{name}": weight for name, weight in terms.items() if name != "patch"}
        weights: dict[str, float] = {}
        for branch, share, asked in (("intact", self.intact_share, {}), ("elastic", 1.0 - self.intact_share, same)):
            weights |= named(branch, {name: share * weight for name, weight in (terms | asked).items()})
        return weights

    def forward(self, views: Views, sizes: Sequence[Size], *, temperature: float) -> dict[str, Tensor]:  # noqa: ARG002
        """Unweighted terms, means over sizes for the elastic students; masks and temperature play no part."""
        local_crops = views.locals if self.distillation.local_weight else views.locals[:0]
        intact = self.student(views.globals, local_crops)  # always: every parameter gets a gradient
        grid = 0 if intact.patches is None else intact.patches.shape[1]
        asked = self.frozen.targets(views.globals, grid=grid)
        losses = named("intact", self.frozen.terms(intact, asked))
        larger = intact
        for network in elastic_students(self.sub_networks, self.student, sizes, device=views.globals.device):
            elastic = network(views.globals, local_crops)
            terms = self.frozen.terms(elastic, asked) | self.frozen.same_view_terms(elastic, larger)
            larger = elastic if self.taught_by_next else intact
            for name, value in named("elastic", terms).items():
                losses[name] = losses.get(name, 0.0) + value / len(sizes)
        return losses

    def update_teacher(self, momentum: float) -> None:  # the teacher stands still
        """Nothing follows the optimiser's step."""
