"""Floating-point operations of a training, counted from shapes: what equal compute means."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from poa.config.pretraining import Config
from poa.data.masks import num_kept
from poa.elastic.space import Size
from poa.evaluation.cost import Cost, costs, costs_of
from poa.families.base import Backbone, Family, Features
from poa.models.registry import family_of
from poa.pretraining.schedule import sampling_of

Way = Literal["poa", "single", "seed"]
"""How all sizes are trained: one elastic run; each size alone; or each distilled from the largest, trained alone."""
BACKWARD = 2.0
"""A backward pass costs about two forward passes."""
PROBED_STEPS = 1000
"""Of a run, over which costs are averaged where they change in its course."""
GLOBALS = 2
"""Global crops an image."""


def training_flops(config: Config, way: Way, size: Size) -> float:
    """Floating-point operations for one image in one step, on average over a run: matrix products, both ways.

    Elastic students count with the mean over the sizes that are drawn, and students with the patches that they compute.
    Sinkhorn-Knopp, the optimiser, augmentation and decoding are left out: they cost the same whatever the size.

    Args:
        config: Settings of the elastic run.
        way: How the size is trained. The teacher of ``seed`` is the largest size.
        size: The largest of the run.
    """
    family, views = family_of(config), config.views
    small = min(PROBED_STEPS, round(PROBED_STEPS * views.small_epochs / config.epochs))
    parts = ((views.first_size, range(small)), (views.global_size, range(small, PROBED_STEPS)))
    return sum(
        len(steps) / PROBED_STEPS * _step_flops(_Passes(config, family, side), way, size, steps)
        for side, steps in parts
        if steps
    )


def _step_flops(passes: "_Passes", way: Way, size: Size, steps: range) -> float:
    """Of these steps on average."""
    if way == "seed":
        return passes.distillation(size)
    total = passes.teacher(size) + (1 + BACKWARD) * passes.student(size)
    if way == "poa":
        sampling = sampling_of(passes.config, passes.family, num_steps=PROBED_STEPS)
        students = {each: passes.student(each) for each in passes.family.space.sizes}
        total += (1 + BACKWARD) * fmean(sampling.mean(students, step) for step in steps[:: PROBED_STEPS // 100])
    return total


@dataclass(frozen=True)
class _Passes:
    """Operations for one image whose global crops have a side of so many pixels."""

    config: Config
    family: Family
    side: int

    def student(self, size: Size) -> float:
        """Forward pass: backbone, and heads on crops and masked patches."""
        views = self.config.views
        backbone = self._globals(size, dropped=views.drop_patches) + self._locals(size)
        return backbone + self._heads(size, GLOBALS + views.num_locals + self._masked())

    def teacher(self, size: Size) -> float:
        """The same of the teacher, which sees global crops alone, and these whole."""
        return self._globals(size) + self._heads(size, GLOBALS + self._masked())

    def distillation(self, size: Size) -> float:
        """Both networks see whole crops; the student's MLP maps into the teacher's space, that of the queues."""
        largest, queue = self.family.space.intact, self.config.distill.queue
        own, wide = _width(self.family, size), _width(self.family, largest)
        rows = GLOBALS + self.config.views.num_locals
        student = self._globals(size) + self._locals(size) + 2.0 * rows * (own * own + own * wide + wide * queue)
        teaching = self._globals(largest) + self._locals(largest) + 2.0 * rows * wide * queue
        return teaching + (1 + BACKWARD) * student

    def _globals(self, size: Size, *, dropped: float = 0.0) -> float:
        """Backbone on the global crops, without a share of their patches."""
        if not dropped:
            return GLOBALS * costs_of(self.family, self.side)[size].flops
        kept = num_kept(self.family.mask_grid(self.side), dropped)
        return GLOBALS * _costs_of_some(self.family, self.side, kept)[size].flops

    def _locals(self, size: Size) -> float:
        views = self.config.views
        return views.num_locals * costs_of(self.family, views.local_size)[size].flops if views.num_locals else 0.0

    def _heads(self, size: Size, rows: float) -> float:
        return 2.0 * rows * self.config.head_weights(_width(self.family, size))

    def _masked(self) -> float:
        """Masked patches, on average."""
        views = self.config.views
        share = 0.0 if views.drop_patches else views.mask_share
        return GLOBALS * self.family.mask_grid(self.side) ** 2 * share * sum(views.mask_ratio) / 2


@cache
def _width(family: Family, size: Size) -> int:
    with torch.device("meta"):
        return family.build(size).num_features


@cache
def _costs_of_some(family: Family, side: int, kept: int) -> Mapping[Size, Cost]:
    """Costs of all sizes that compute so many patches of each image."""
    return costs(
        lambda size: _SomePatches(family.build(size), kept),
        family.space.sizes,
        image_size=side,
        channels=family.in_chans,
    )


class _SomePatches(nn.Module):
    """A backbone that computes the first patches of each image."""

    def __init__(self, backbone: Backbone, kept: int) -> None:
        super().__init__()
        self.backbone, self.kept = backbone, torch.arange(kept)[None]

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Features:
        return self.backbone.visible(images, self.kept)
