"""Backbone and projection heads: what is intact, elastic or teacher."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from poa import distributed
from poa.data.views import Views
from poa.elastic.space import Size
from poa.families.base import Backbone, Family
from poa.losses.prototypes import (
    MovingAverageCenter,
    cross_entropy,
    koleo,
    local_cross_view,
    mask_weights,
    masked_patch_loss,
    same_view,
    sinkhorn,
)
from poa.methods.base import Branch, Method
from poa.methods.heads import ProjectionHead
from poa.training.schedules import update_ema


class HeadOutput(NamedTuple):
    """What one head makes of one batch of views.

    Attributes:
        globals: Global crops, first views of all images, then second views.
        locals: Local crops, crop by crop; no rows if there are none.
        patches: Masked patches in row-major order of the masks.
        prototypes: The head's prototypes.
    """

    globals: Float[Tensor, "crops dim"]
    locals: Float[Tensor, "local_crops dim"]
    patches: Float[Tensor, "masked dim"]
    prototypes: Float[Tensor, "prototypes dim"]


class BranchOutput(NamedTuple):
    """What one branch makes of one batch of views.

    Attributes:
        cls: Backbone features of the global crops.
        heads: One output a head.
    """

    cls: Float[Tensor, "crops width"]
    heads: tuple[HeadOutput, ...]


class Network(Branch):
    """A backbone and its projection heads.

    Args:
        backbone: Any backbone of a family.
        heads: Heads of the backbone's width.
    """

    def __init__(self, backbone: Backbone, heads: Sequence[ProjectionHead]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads: nn.ModuleList = nn.ModuleList(heads)

    def forward(self, views: Views, *, teacher: bool = False) -> BranchOutput:
        """Run all views; the teacher sees global crops only, and no masks.

        Args:
            views: One batch.
            teacher: Whether this is the teacher's pass.
        """
        cls, patches = self.backbone(views.globals, None if teacher else views.masks)
        rows = [cls]
        if not teacher and len(views.locals):
            rows.append(self.backbone(views.locals, None).cls)
        rows.append(patches[views.masks])
        lengths = [len(cls), len(views.locals) if len(rows) == 3 else 0, len(rows[-1])]
        stacked = torch.cat(rows)  # one pass through each head
        outputs = []
        for head in self.heads:
            assert isinstance(head, ProjectionHead)
            globals_, locals_, masked = head(stacked).split(lengths)
            outputs.append(HeadOutput(globals_, locals_, masked, head.prototypes()))
        return BranchOutput(cls, tuple(outputs))


@dataclass(frozen=True)
class HeadSettings:
    """Shape of the projection heads; one head for each number of prototypes."""

    prototypes: tuple[int, ...] = (8192, 16384, 32768, 65536)
    hidden: int = 2048
    bottleneck: int = 256


@dataclass(frozen=True)
class LossSettings:
    """How the terms are weighed.

    Attributes:
        variant: ``code``: all cross-view pairs weigh the same, KoLeo is halved over the two students, as the official
            code has it. ``paper``: global and local cross-view terms weigh 1 each, KoLeo is summed, as printed.
        intact_share: Weight lambda of the intact student against the elastic one.
        ibot: Weight of the masked-patch term.
        koleo: Weight of the KoLeo term.
        koleo_over_ranks: Look for nearest neighbours among the images of all processes, not of this one alone.
        student_temperature: Temperature of both students, and of the intact student as a same-view teacher.
        centering: How teacher outputs become targets.
    """

    variant: Literal["code", "paper"] = "code"
    intact_share: float = 0.8
    ibot: float = 1.0
    koleo: float = 0.1
    koleo_over_ranks: bool = False
    student_temperature: float = 0.1
    centering: Literal["sinkhorn", "moving-average"] = "sinkhorn"

    def of_student(self, *, num_locals: int) -> dict[str, float]:
        """Weights of the terms of one student taken for itself (DINOv2; KoLeo is summed over both global crops).

        Args:
            num_locals: Local crops an image; 0 drops the local term.
        """
        pairs = 2 + 2 * num_locals  # 2 global-global pairs, each local crop against both teacher views
        globals_, locals_ = (2 / pairs, 2 * num_locals / pairs) if self.variant == "code" else (1.0, 1.0)
        weights = {"global": globals_, "local": locals_, "ibot": self.ibot, "koleo": 2 * self.koleo}
        return {name: weight for name, weight in weights.items() if num_locals or name != "local"}


class Targets(NamedTuple):
    """What one head of the teacher asks of the students.

    Attributes:
        globals: For each global crop, the distribution of the *other* view of the same image.
        patches: For each masked patch, its own distribution.
    """

    globals: Float[Tensor, "crops prototypes"]
    patches: Float[Tensor, "masked prototypes"]


class SelfDistillation(Method):
    """Teacher and student of one size; the teacher follows the student as a moving average and is handed out.

    Args:
        family: Backbones; its intact network is trained.
        heads: Projection heads.
        losses: Weights of the terms.
        drop_path: Rate of stochastic depth in the student.
        checkpointing: Recompute a student's forward pass in the backward pass instead of storing it.
        compile_blocks: Compile the backbones' blocks.
    """

    served: ClassVar[str] = "teacher"

    def __init__(
        self,
        family: Family,
        *,
        heads: HeadSettings,
        losses: LossSettings,
        drop_path: float = 0.0,
        checkpointing: bool = False,
        compile_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.losses, self.checkpointing = losses, checkpointing

        def build(size: Size, rate: float = drop_path) -> Network:
            backbone = family.build(size, drop_path=rate)
            for block in backbone.blocks if compile_blocks else ():
                block.compile()
            shape: dict[str, Any] = {"hidden": heads.hidden, "bottleneck": heads.bottleneck}
            width = backbone.num_features
            return Network(backbone, [ProjectionHead(width, num_prototypes=k, **shape) for k in heads.prototypes])

        self.build = build
        intact = family.space.intact
        self.student: Network = build(intact)
        self.teacher = build(intact, 0.0).requires_grad_(False).eval()
        self.teacher.load_state_dict(self.student.state_dict())
        moving = losses.centering == "moving-average"
        self.cls_centers = nn.ModuleList(MovingAverageCenter(k) for k in heads.prototypes if moving)
        self.patch_centers = nn.ModuleList(MovingAverageCenter(k) for k in heads.prototypes if moving)

    @property
    def log_prototypes(self) -> float:
        """The logarithm of the number of prototypes, averaged over heads: the loss against uniform targets."""
        numbers = [head.weight_v.shape[0] for head in self.student.heads if isinstance(head, ProjectionHead)]
        return sum(map(math.log, numbers)) / len(numbers)

    def weights(self, sizes: Sequence[Size], *, num_locals: int) -> dict[str, float]:  # noqa: ARG002
        """Those of a student taken for itself."""
        return {f"intact/{name}": x for name, x in self.losses.of_student(num_locals=num_locals).items()}

    def train(self, mode: bool = True) -> "SelfDistillation":
        """The student switches; the teacher always evaluates."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, views: Views, sizes: Sequence[Size], *, temperature: float) -> dict[str, Tensor]:
        """Unweighted losses by name, averaged over heads.

        Args:
            views: This process's part of the batch.
            sizes: None.
            temperature: The teacher's temperature.
        """
        assert not sizes, "there is one size"
        targets = self.targets(views, temperature)
        return prefixed("intact", self.terms(self.run(self.student, views), targets, views))

    def run(self, network: Callable[[Views], BranchOutput], views: Views) -> BranchOutput:
        """One student's pass."""
        if not self.checkpointing:
            return network(views)
        output: BranchOutput = checkpoint(network, views, use_reentrant=False)
        return output

    @torch.no_grad()
    def targets(self, views: Views, temperature: float) -> list[Targets]:
        """What the teacher asks, a head each."""
        asked = []
        for number, head in enumerate(self.teacher(views, teacher=True).heads):
            swapped = head.globals.unflatten(0, (2, -1)).flip(0).flatten(0, 1)
            made = []
            for rows, centers in ((swapped, self.cls_centers), (head.patches, self.patch_centers)):
                if self.losses.centering == "sinkhorn":
                    made.append(sinkhorn(rows, head.prototypes, temperature=temperature))
                    continue
                center = centers[number]
                assert isinstance(center, MovingAverageCenter)
                made.append(center(rows, head.prototypes, temperature=temperature))
                center.update(rows, head.prototypes)
            asked.append(Targets(*made))
        return asked

    def terms(self, branch: BranchOutput, targets: Sequence[Targets], views: Views) -> dict[str, Tensor]:
        """Terms that hold a student against the teacher, and KoLeo."""
        weights, temperature = mask_weights(views.masks), self.losses.student_temperature
        num_images = len(views.globals)

        def of_head(head: HeadOutput, target: Targets) -> dict[str, Tensor]:
            terms = {
                "global": cross_entropy(target.globals, head.globals, head.prototypes, temperature=temperature),
                "ibot": masked_patch_loss(
                    target.patches,
                    head.patches,
                    head.prototypes,
                    weights=weights,
                    num_images=num_images,
                    temperature=temperature,
                ),
            }
            if len(head.locals):
                pairs = 2 * len(head.locals) / (num_images // 2)
                total = local_cross_view(target.globals, head.locals, head.prototypes, temperature=temperature)
                terms["local"] = total / pairs
            return terms

        by_head = [of_head(head, target) for head, target in zip(branch.heads, targets, strict=True)]
        return mean(by_head) | {"koleo": self._koleo(branch.cls)}

    def _koleo(self, cls: Float[Tensor, "crops width"]) -> Tensor:
        views = cls.float().chunk(2)
        if not self.losses.koleo_over_ranks:
            return (koleo(views[0]) + koleo(views[1])) / 2
        first = distributed.rank() * len(views[0])
        total = [koleo(view, neighbours=distributed.gather_rows(view), offset=first) for view in views]
        return (total[0] + total[1]) / 2

    def update_teacher(self, momentum: float) -> None:
        """Move the teacher towards the intact student.

        Args:
            momentum: Share of the old teacher that is kept.
        """
        update_ema(self.teacher, self.student, momentum=momentum)


def prefixed(branch: str, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Terms under the name of their branch."""
    return {f"{branch}/{name}": value for name, value in terms.items()}


def mean(by_head: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Terms averaged over heads."""
    return {name: torch.stack([terms[name] for terms in by_head]).mean() for name in by_head[0]}


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
