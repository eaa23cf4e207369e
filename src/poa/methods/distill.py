"""Distillation of a frozen teacher into networks of many sizes at once.

The teacher's class and patch features of the global crops, standardised by channel, are what all students learn: the
intact one at every step, and the elastic students of the step, which are cut out of it. They predict them through one
projection, whose first layer is cut by width as that of a head. The elastic students also learn the intact student's
predictions of the same crops. The teacher runs once a step, whatever the number of sizes (as in DINOv3's distillation
into several students, arXiv 2508.10104, Sec. 5.2); what is learned is that of AM-RADIO (arXiv 2312.06709, Sec. 3).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from poa.config.pretraining import DistillSettings
from poa.data.views import Views
from poa.elastic.space import Size
from poa.families.base import Backbone, Family, Features
from poa.losses.features import feature_distance, resized_grid
from poa.methods.base import Branch, Method, elastic_students, named
from poa.methods.layers import RunningStandard


class Projected(NamedTuple):
    """Features in the teacher's space.

    Attributes:
        cls: Of global crops, first views of all images, then second views.
        locals: Of local crops, crop by crop; no rows if there are none.
        patches: Of the global crops' patches, if they are learned.
    """

    cls: Float[Tensor, "crops width"]
    locals: Float[Tensor, "local_crops width"]
    patches: Float[Tensor, "crops patches patch_width"] | None


class Projection(nn.Module):
    """An MLP of two layers for class features and one for patches, computed in float32 also under autocast.

    Args:
        width: Of the student's features, the only part that is elastic.
        hidden: Width of the hidden layers.
        outputs: Widths of the teacher's class and patch features; 0 for what is not learned.
    """

    def __init__(self, width: int, *, hidden: int, outputs: tuple[int, int]) -> None:
        super().__init__()
        self.cls, self.patches = (
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, output)) if output else None
            for output in outputs
        )

    def forward(self, crops: Features, local_crops: Float[Tensor, "local_crops width"]) -> Projected:
        """Features of global crops, and class features of local ones, in the teacher's space."""
        assert self.cls is not None
        with torch.autocast(crops.cls.device.type, enabled=False):
            dtype = next(self.parameters()).dtype
            rows = self.cls(torch.cat([crops.cls, local_crops]).to(dtype))
            cls, local = rows.split([len(crops.cls), len(local_crops)])
            return Projected(cls, local, None if self.patches is None else self.patches(crops.patches.to(dtype)))


class FrozenTeacher(nn.Module):
    """A frozen network, and how far students are from its standardised features.

    Args:
        network: Images to ``Features``; normalised images are as the run has them.
        outputs: Widths of its class and patch features; 0 where patches are not learned.
        smooth_l1: Share of smooth L1 in a distance; the rest is that of angles.
    """

    def __init__(self, network: nn.Module, *, outputs: tuple[int, int], smooth_l1: float) -> None:
        super().__init__()
        self.network = network.requires_grad_(False).eval()
        self.smooth_l1 = smooth_l1
        self.standard = nn.ModuleList(RunningStandard(width) for width in outputs if width)

    def train(self, mode: bool = True) -> "FrozenTeacher":  # noqa: ARG002
        """It always evaluates."""
        return super().train(False)

    @torch.no_grad()
    def targets(self, crops: Float[Tensor, "crops channels height side"], *, grid: int) -> Features:
        """Standardised features, the patches on a student's grid of so many; none where patches are not learned."""
        cls, patches = self.network(crops)
        asked = self.standard[0](cls)
        if len(self.standard) == 1:
            return Features(asked, patches[:, :0].to(asked.dtype))
        patches = resized_grid(patches.to(asked.dtype), grid)
        return Features(asked, self.standard[1](patches.flatten(0, 1)).view_as(patches))

    def terms(self, given: Projected, asked: Features) -> dict[str, Tensor]:
        """Distances of a student: each local crop is compared with both global crops of its image."""
        found = {"global": self._distance(given.cls, asked.cls)}
        if given.patches is not None:
            found["patch"] = self._distance(given.patches.flatten(0, 1), asked.patches.flatten(0, 1))
        if len(given.locals):
            times = 2 * len(given.locals) // len(asked.cls)
            pairs = [self._distance(given.locals, view.repeat(times, 1)) for view in asked.cls.chunk(2)]
            found["local"] = torch.stack(pairs).mean()
        return found

    def same_view_terms(self, elastic: Projected, intact: Projected) -> dict[str, Tensor]:
        """Distances of an elastic student from the intact one on the same crops, as in POA (Eq. 7)."""
        found = {"same_global": self._distance(elastic.cls, intact.cls)}
        if len(elastic.locals):
            found["same_local"] = self._distance(elastic.locals, intact.locals)
        return found

    def _distance(self, given: Float[Tensor, "rows width"], asked: Float[Tensor, "rows width"]) -> Float[Tensor, ""]:
        return feature_distance(given, asked, smooth_l1=self.smooth_l1)


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
        drop_path: Rate of stochastic depth in the students.
        checkpointing: Recompute a student's forward pass in the backward pass instead of storing it.
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
        drop_path: float = 0.0,
        checkpointing: bool = False,
        compile_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.distillation, self.checkpointing = distillation, checkpointing
        self.elastic, self.intact_share = len(family.space.sizes) > 1, intact_share
        outputs = learned_widths(widths, distillation)

        def build(size: Size) -> Student:
            backbone = family.build(size, drop_path=drop_path)
            for block in backbone.blocks if compile_blocks else ():
                block.compile()
            return Student(backbone, hidden=hidden, outputs=outputs)

        self.student: Student = build(family.space.intact)
        self.frozen = FrozenTeacher(teacher, outputs=outputs, smooth_l1=distillation.smooth_l1)
        self.sub_networks = family.sub_networks(build, castable=lambda name: name.startswith("backbone."))

    def weights(self, sizes: Sequence[Size], *, num_locals: int) -> dict[str, float]:  # noqa: ARG002
        """Weight of each term; those of the elastic students are means over sizes."""
        terms = {"global": 1.0}
        if self.distillation.patch_weight:
            terms["patch"] = self.distillation.patch_weight
        if num_locals and self.distillation.local_weight:
            terms["local"] = self.distillation.local_weight
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
        intact = self._run(self.student, views.globals, local_crops)  # always: every parameter gets a gradient
        grid = 0 if intact.patches is None else intact.patches.shape[1]
        asked = self.frozen.targets(views.globals, grid=grid)
        losses = named("intact", self.frozen.terms(intact, asked))
        for network in elastic_students(self.sub_networks, self.student, sizes, device=views.globals.device):
            elastic = self._run(network, views.globals, local_crops)
            terms = self.frozen.terms(elastic, asked) | self.frozen.same_view_terms(elastic, intact)
            for name, value in named("elastic", terms).items():
                losses[name] = losses.get(name, 0.0) + value / len(sizes)
        return losses

    def _run(self, network: Callable[..., Projected], crops: Tensor, local_crops: Tensor) -> Projected:
        if not self.checkpointing:
            return network(crops, local_crops)
        output: Projected = checkpoint(network, crops, local_crops, use_reentrant=False)
        return output

    def update_teacher(self, momentum: float) -> None:  # the teacher stands still
        """Nothing follows the optimiser's step."""


def learned_widths(widths: tuple[int, int], distillation: DistillSettings) -> tuple[int, int]:
    """Widths of a teacher's class and patch features; 0 where patches have no weight."""
    return widths[0], widths[1] if distillation.patch_weight else 0
