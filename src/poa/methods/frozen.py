"""A frozen teacher: its standardised features, the projection into them, and how far a student is from them.

What is learned is that of AM-RADIO (arXiv 2312.06709, Sec. 3); features are standardised as PHI-S (arXiv 2410.01680)
finds it useful, here by channel and with statistics of the batches so far.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from poa.config.pretraining import DistillSettings
from poa.families.base import Features
from poa.losses.features import feature_distance, resized_grid
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


def learned_widths(widths: tuple[int, int], distillation: DistillSettings) -> tuple[int, int]:
    """Widths of a teacher's class and patch features; 0 where patches have no weight."""
    return widths[0], widths[1] if distillation.patch_weight else 0


def term_weights(distillation: DistillSettings, *, num_locals: int) -> dict[str, float]:
    """Weight of each term of one student, of those that are computed."""
    terms = {"global": 1.0, "patch": distillation.patch_weight, "local": distillation.local_weight if num_locals else 0}
    return {name: weight for name, weight in terms.items() if weight}
