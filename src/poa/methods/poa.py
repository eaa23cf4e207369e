"""POA: teacher, intact student and elastic student, distilled into one another (ECCV 2024, arXiv 2408.01031)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from poa import distributed
from poa.data.views import Views
from poa.elastic.network import SubNetworks
from poa.elastic.space import Size
from poa.families.base import Family
from poa.heads import ProjectionHead
from poa.losses.distillation import cross_entropy, local_cross_view, mask_weights, masked_patch_loss, same_view
from poa.losses.koleo import koleo
from poa.losses.targets import MovingAverageCenter, sinkhorn
from poa.methods.network import BranchOutput, HeadOutput, Network
from poa.training.ema import update_ema


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

    def weights(self, *, num_locals: int) -> dict[str, float]:
        """Weight of each named term of the total loss.

        Args:
            num_locals: Local crops an image; 0 drops the local terms.
        """
        pairs = 2 + 2 * num_locals  # 2 global-global pairs, each local crop against both teacher views
        code = self.variant == "code"
        globals_, locals_ = (2 / pairs, 2 * num_locals / pairs) if code else (1.0, 1.0)
        koleo = self.koleo * (1.0 if code else 2.0)  # the raw term is the mean over the two views
        weights: dict[str, float] = {}
        for branch, share in (("intact", self.intact_share), ("elastic", 1.0 - self.intact_share)):
            weights |= {f"{branch}/global": share * globals_, f"{branch}/local": share * locals_}
            weights |= {f"{branch}/ibot": share * self.ibot, f"{branch}/koleo": koleo}
        same = 1.0 - self.intact_share
        weights |= {"elastic/same_global": same, "elastic/same_local": same}
        return {name: weight for name, weight in weights.items() if num_locals or not name.endswith("local")}


class Targets(NamedTuple):
    """What one head of the teacher asks of the students.

    Attributes:
        globals: For each global crop, the distribution of the *other* view of the same image.
        patches: For each masked patch, its own distribution.
    """

    globals: Float[Tensor, "crops prototypes"]
    patches: Float[Tensor, "masked prototypes"]


class POA(nn.Module):
    """The method as one module, to be wrapped whole for data parallelism.

    Args:
        family: Backbones of all sizes.
        heads: Projection heads.
        losses: Weights of the terms.
        drop_path: Rate of stochastic depth in the students.
        checkpointing: Recompute each student's forward pass in the backward pass instead of storing it.
        compile_blocks: Compile the backbones' blocks.
    """

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

        intact = family.space.intact
        self.student = build(intact)
        self.teacher = build(intact, 0.0).requires_grad_(False).eval()
        self.teacher.load_state_dict(self.student.state_dict())
        moving = losses.centering == "moving-average"
        self.cls_centers = nn.ModuleList(MovingAverageCenter(k) for k in heads.prototypes if moving)
        self.patch_centers = nn.ModuleList(MovingAverageCenter(k) for k in heads.prototypes if moving)
        self.sub_networks = SubNetworks(
            build,
            intact,
            source=family.source,
            groups=family.groups,
            castable=lambda name: name.startswith("backbone."),
        )

    def train(self, mode: bool = True) -> "POA":
        """Students switch; the teacher always evaluates."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, views: Views, sizes: Sequence[Size], *, temperature: float) -> dict[str, Tensor]:
        """Unweighted losses by name, averaged over heads, and over sizes for the elastic student.

        Args:
            views: This process's part of the batch.
            sizes: Elastic students of this step; may be empty.
            temperature: The teacher's temperature.
        """
        targets = self._targets(views, temperature)
        intact = self._run(self.student, views)  # always first and always there: every parameter gets a gradient
        losses = {f"intact/{name}": value for name, value in self._terms(intact, targets, views).items()}
        parameters = dict(self.student.named_parameters())
        device = views.globals.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        for size in sizes:
            network = self.sub_networks.bind(size, parameters, training=self.training, dtype=dtype)
            elastic = self._run(network, views)
            terms = self._terms(elastic, targets, views) | self._same_view(elastic, intact)
            for name, value in terms.items():
                name = f"elastic/{name}"
                losses[name] = losses.get(name, 0.0) + value / len(sizes)
        return losses

    def _run(self, network: Callable[[Views], BranchOutput], views: Views) -> BranchOutput:
        if not self.checkpointing:
            return network(views)
        output: BranchOutput = checkpoint(network, views, use_reentrant=False)
        return output

    @torch.no_grad()
    def _targets(self, views: Views, temperature: float) -> list[Targets]:
        targets = []
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
            targets.append(Targets(*made))
        return targets

    def _terms(self, branch: BranchOutput, targets: Sequence[Targets], views: Views) -> dict[str, Tensor]:
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
        return _mean(by_head) | {"koleo": self._koleo(branch.cls)}

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
        return _mean(by_head)

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


def _mean(by_head: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([terms[name] for terms in by_head]).mean() for name in by_head[0]}
