"""Backbone and projection heads: what is intact, elastic or teacher."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from poa.data.views import Views
from poa.families.base import Backbone
from poa.heads import ProjectionHead
from poa.methods.base import Branch


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
