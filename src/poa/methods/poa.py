"""POA: one pre-training for networks of many sizes (arXiv 2408.01031, Sec. 3).

Three branches learn by self-distillation. The teacher turns the global crops of a batch into targets. The intact
student predicts them from all crops, some of their patches hidden; so does the elastic student, at every step another
sub-network of the intact one, which also predicts the intact student's outputs for the same crops. The teacher follows
the intact student as a moving average and is exported: all sizes are cut from it.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from poa import distributed
from poa.config.network import HeadSettings
from poa.config.own import own_class
from poa.config.pretraining import LossSettings
from poa.data.views import Views
from poa.elastic.space import Size
from poa.families.base import Backbone, Family
from poa.losses.coding_rate import CodingRate
from poa.losses.features import gram_distance
from poa.losses.objective import HeadOutput, Objective, Student, Targets
from poa.losses.prototypes import MovingAverageCenter, Prototypes, koleo, mask_weights
from poa.methods.base import Branch, Method, elastic_students, named, of_branch
from poa.methods.frozen import Projected
from poa.methods.layers import ProjectionHead, Projector
from poa.training.schedules import update_ema


class BranchOutput(NamedTuple):
    """What a branch makes of a batch.

    Attributes:
        cls: The backbone's class features of global crops.
        locals: Those of local crops; no rows if there are none.
        patches: The backbone's patch features of global crops.
        heads: An output of each head.
        projected: Features in the space of a frozen teacher, if there is one.
    """

    cls: Float[Tensor, "crops width"]
    locals: Float[Tensor, "local_crops width"]
    patches: Float[Tensor, "crops patches width"]
    heads: tuple[HeadOutput, ...]
    projected: Projected | None = None


class Network(Branch):
    """A backbone and its heads: one for each number of prototypes (Sec. 3.3), or one projector without prototypes."""

    def __init__(self, backbone: Backbone, heads: HeadSettings, *, prototypes: bool = True) -> None:
        super().__init__()
        self.backbone = backbone
        width = backbone.num_features
        inner = {"layers": heads.layers, "hidden": heads.hidden, "bottleneck": heads.bottleneck}
        self.heads: nn.ModuleList = nn.ModuleList(
            [ProjectionHead(width, num_prototypes=k, **inner) for k in heads.prototypes]
            if prototypes
            else [Projector(width, **inner)]
        )

    def forward(
        self, views: Views, *, teacher: bool = False, prototypes: Sequence[Tensor] | None = None
    ) -> BranchOutput:
        """Run all views; the teacher sees global crops only, and these whole.

        ``prototypes``, a matrix for each head, stand in for the network's own where they are equal and there already.
        """
        if views.kept is None or teacher:
            cls, patches = self.backbone(views.globals, None if teacher else views.masks)
        else:
            cls, patches = self.backbone.visible(views.globals, views.kept)
        local = cls[:0] if teacher or not len(views.locals) else self.backbone(views.locals, None).cls
        rows = (cls, local, views.hidden_of(patches))
        stacked, lengths = torch.cat(rows), [len(each) for each in rows]  # one pass through each head
        projectors = [head for head in self.heads if isinstance(head, Projector)]  # a frozen teacher's head is none
        if prototypes is None:
            prototypes = [head.prototypes() for head in projectors]
        outputs = []
        for head, own in zip(projectors, prototypes, strict=True):
            globals_, locals_, masked = head(stacked).split(lengths)
            outputs.append(HeadOutput(globals_, locals_, masked, own))
        return BranchOutput(cls, local, patches, tuple(outputs))


class POA(Method):
    """Teacher, intact student and elastic students; without the latter it is self-distillation as in DINOv2.

    Args:
        family: Backbones of all sizes; the intact one is trained and the others are cut from it.
        heads: Projection heads.
        losses: Weights and temperatures of the terms.
        elastic: Whether there are elastic students.
        taught_by_next: An elastic student learns from the one before it in the order of the step, the first from the
            intact student; by default all learn from the intact one.
        drop_path: Rate of stochastic depth in the students.
        checkpointing: Recompute the students' blocks and heads in the backward pass instead of storing them.
        compile_blocks: Compile the backbones' blocks.
        network: Makes a branch of a backbone.
    """

    def __init__(
        self,
        family: Family,
        *,
        heads: HeadSettings,
        losses: LossSettings,
        elastic: bool = True,
        taught_by_next: bool = False,
        drop_path: float = 0.0,
        checkpointing: bool = False,
        compile_blocks: bool = False,
        network: Callable[..., Network] = Network,
    ) -> None:
        super().__init__()
        self.losses, self.elastic, self.taught_by_next = losses, elastic, taught_by_next
        has_prototypes = losses.kind == "prototypes"
        self.objective = objective_of(losses, keep_logits=heads.memory == "normal")

        def build(size: Size, rate: float = drop_path) -> Network:
            made = network(family.build(size, drop_path=rate), heads, prototypes=has_prototypes)
            return made.prepare(checkpointing=checkpointing, compile_blocks=compile_blocks)

        intact = family.space.intact
        self.student: Network = build(intact)
        self.teacher = build(intact, 0.0).requires_grad_(False).eval()
        self.teacher.load_state_dict(self.student.state_dict())
        moving = has_prototypes and losses.centering == "moving-average"
        self.cls_centers = nn.ModuleList(MovingAverageCenter(k) for k in heads.prototypes if moving)
        self.patch_centers = nn.ModuleList(MovingAverageCenter(k) for k in heads.prototypes if moving)
        self.sub_networks = family.sub_networks(build, castable=lambda name: name.startswith("backbone."))

    def forward(self, views: Views, sizes: Sequence[Size], *, temperature: float) -> dict[str, Tensor]:
        """Unweighted terms, means over heads, and over sizes for the elastic students."""
        losses: dict[str, Tensor] = {}
        for branch, _, terms in self.passes(views, sizes, temperature):
            students = len(sizes) if branch == "elastic" else 1
            for name, value in named(branch, terms).items():
                losses[name] = losses.get(name, 0.0) + value / students
        return losses

    def passes(
        self, views: Views, sizes: Sequence[Size], temperature: float
    ) -> Iterator[tuple[str, BranchOutput, dict[str, Tensor]]]:
        """The students in turn: branch, output without that of its heads, and unweighted terms."""
        assert self.elastic or not sizes, "there is one size"
        outputs = [self.student(views)]  # always first and always there: every parameter gets a gradient
        prototypes = [head.prototypes for head in outputs[0].heads]  # all sizes have the same
        for network in elastic_students(self.sub_networks, self.student, sizes, device=views.globals.device):
            outputs.append(network(views, prototypes=prototypes))
        del prototypes
        num_locals = 2 * len(views.locals) // len(views.globals)
        weights = self.weights(sizes, num_locals=num_locals)
        masks = mask_weights(views.masks, views.hidden)

        def losses(asked: Targets, *heads: HeadOutput) -> list[dict[str, Tensor]]:
            return self.objective.losses(asked, self._students(heads, weights), patch_weights=masks)

        with torch.no_grad():
            teacher: BranchOutput = self.teacher(views, teacher=True)
        seen, heads = teacher.patches, [[*output.heads] for output in (teacher, *outputs)]
        del teacher
        outputs = [output._replace(heads=()) for output in outputs]
        asked, *students = map(_taken, heads)
        # map, so that what belongs to one head is gone before the targets of the next one are made
        by_head = list(map(losses, self.targets(asked, temperature), *students))
        for number, output in enumerate(outputs):
            terms = _mean([head[number] for head in by_head])
            terms["koleo"] = self._koleo(output.cls)
            if self.losses.gram:
                terms["gram"] = gram_distance(views.seen_of(output.patches), views.seen_of(seen))
            yield "elastic" if number else "intact", output, terms

    def _students(self, heads: Sequence[HeadOutput], weights: Mapping[str, float]) -> list[Student]:
        """The intact student, and the elastic ones, which share their weights and learn from a larger one (Eq. 7)."""
        students = [Student(heads[0], None, of_branch("intact", weights))]
        shared = {name: weight / max(len(heads) - 1, 1) for name, weight in of_branch("elastic", weights).items()}
        for number, head in enumerate(heads[1:]):
            students.append(Student(head, number if self.taught_by_next else 0, shared))
        return students

    def weights(self, sizes: Sequence[Size], *, num_locals: int, frozen: float = 1.0) -> dict[str, float]:  # noqa: ARG002
        """Weight of each term (Eq. 10); those of the elastic students are means over sizes.

        ``code``: all cross-view pairs weigh the same, and the two students share KoLeo, as in the official code.
        ``paper``: global and local cross-view terms weigh 1 each, KoLeo is summed over students, as printed.
        """
        losses, code = self.losses, self.losses.variant == "code"
        pairs = 2 + 2 * num_locals  # 2 global-global pairs, each local crop against both teacher views
        student = {"global": 2 / pairs if code else 1.0, "ibot": losses.ibot}
        if losses.kind == "coding-rate":
            student["rate"] = losses.rate
        if losses.gram:
            student["gram"] = losses.gram
        if num_locals:
            student["local"] = 2 * num_locals / pairs if code else 1.0
        koleo_weight = 2 * losses.koleo  # of both global crops
        if not self.elastic:
            return named("intact", student | {"koleo": koleo_weight})
        if code:
            koleo_weight *= 0.5
        weights: dict[str, float] = {}
        for branch, share in (("intact", losses.intact_share), ("elastic", 1.0 - losses.intact_share)):
            weights |= named(branch, {name: share * weight for name, weight in student.items()})
            weights[f"{branch}/koleo"] = koleo_weight
        same = 1.0 - losses.intact_share
        return weights | {f"elastic/same_{name}": same for name in ("global", "local") if name in student}

    def targets(self, heads: Iterable[HeadOutput], temperature: float) -> Iterator[Targets]:
        """What the teacher's heads ask in turn; with moving averages the centres move too."""
        centers = zip(self.cls_centers, self.patch_centers, strict=True)

        def asked(head: HeadOutput) -> Targets:
            return self.objective.targets(head, temperature=temperature, centers=next(centers, (None, None)))

        return map(asked, heads)

    def _koleo(self, cls: Float[Tensor, "crops width"]) -> Tensor:
        """Mean over both views; neighbours are looked for among the images of this process, or of all."""
        views = cls.float().chunk(2)
        if not self.losses.koleo_over_ranks:
            return (koleo(views[0]) + koleo(views[1])) / 2
        first = distributed.rank() * len(views[0])
        total = [koleo(view, neighbours=distributed.gather_rows(view), offset=first) for view in views]
        return (total[0] + total[1]) / 2

    def train(self, mode: bool = True) -> "POA":
        """The student switches; the teacher always evaluates."""
        super().train(mode)
        self.teacher.eval()
        return self

    def update_teacher(self, momentum: float) -> None:
        """Move the teacher towards the intact student."""
        update_ema(self.teacher, self.student, momentum=momentum)

    @property
    def exported(self) -> Branch:
        """The teacher."""
        return self.teacher

    @property
    def log_prototypes(self) -> float:
        """The logarithm of the number of prototypes, averaged over heads: the loss against uniform targets."""
        numbers = [head.weight_v.shape[0] for head in self.student.heads if isinstance(head, ProjectionHead)]
        return sum(map(math.log, numbers)) / len(numbers) if numbers else math.inf


def objective_of(losses: LossSettings, *, keep_logits: bool) -> Objective:
    """The kind of loss that the settings name."""
    if losses.kind == "own":
        own: Objective = own_class(losses.own, flag="--losses.own", kind=Objective)(losses)
        return own
    if losses.kind == "coding-rate":
        return CodingRate(losses.distortion)
    return Prototypes(losses.student_temperature, keep_logits=keep_logits)


def _taken(heads: list[HeadOutput]) -> Iterator[HeadOutput]:
    """One after another, each taken off the list, so that it does not outlive its use."""
    while heads:
        yield heads.pop(0)


def _mean(by_head: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([terms[name] for terms in by_head]).mean() for name in by_head[0]}
