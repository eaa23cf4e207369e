"""What training costs: floating-point operations for each image seen, counted from the shapes of all passes."""

from collections.abc import Mapping

import torch

from poa.config.pretraining import Config
from poa.elastic.space import SearchSpace, Size
from poa.evaluation.cost import costs
from poa.models.registry import family_of

BACKWARD = 2.0
"""A backward pass costs about two forward passes."""
GLOBALS = 2
"""Global crops an image."""


def training_flops(config: Config, *, teacher: Config | None = None) -> float:
    """Operations for one image in one step: matrix products of backbones and heads, there and back.

    An elastic student counts with the mean over the sampling list. Sinkhorn-Knopp, the optimiser, augmentation and
    decoding are left out: they cost the same whatever the size.

    Args:
        config: Settings of the run.
        teacher: Settings of the run whose intact network is distilled, for method ``seed``.
    """
    if config.method == "seed":
        assert teacher is not None
        return _of_distillation(config, teacher)
    passes, space = _student_passes(config), family_of(config).space
    intact = passes[space.intact]
    total = _teacher_pass(config) + (1 + BACKWARD) * intact
    if config.method == "poa":
        total += (1 + BACKWARD) * config.elastic_samples * _mean(passes, space)
    return total


def _mean(passes: Mapping[Size, float], space: SearchSpace) -> float:
    drawn = space.entries[:-1]  # the intact network's own entry is never drawn
    return sum(passes[size] for size in drawn) / len(drawn)


def _crops(config: Config) -> Mapping[Size, tuple[int, int]]:
    """Of the backbone of each size: operations of all global, and of all local crops of an image."""
    family, views = family_of(config), config.views
    large = costs(family.build, family.space.sizes, image_size=views.global_size)
    small = costs(family.build, family.space.sizes, image_size=views.local_size) if views.num_locals else {}
    return {
        size: (GLOBALS * cost.flops, views.num_locals * small[size].flops if small else 0)
        for size, cost in large.items()
    }


def _student_passes(config: Config) -> Mapping[Size, float]:
    """Forward pass of a student of each size for one image: backbone, and heads on crops and masked patches."""
    rows = GLOBALS + config.views.num_locals + _masked(config)
    return {size: sum(crops) + _heads(config, size, rows) for size, crops in _crops(config).items()}


def _teacher_pass(config: Config) -> float:
    """Forward pass of the teacher, which sees global crops alone."""
    intact = family_of(config).space.intact
    return _crops(config)[intact][0] + _heads(config, intact, GLOBALS + _masked(config))


def _masked(config: Config) -> float:
    """Masked patches an image, on average."""
    views, grid = config.views, family_of(config).mask_grid(config.views.global_size)
    return GLOBALS * grid**2 * views.mask_share * sum(views.mask_ratio) / 2


def _heads(config: Config, size: Size, rows: float) -> float:
    heads, width = config.heads, _width(config, size)
    mlp = width * heads.hidden + heads.hidden**2 + heads.hidden * heads.bottleneck
    return 2.0 * rows * sum(mlp + heads.bottleneck * prototypes for prototypes in heads.prototypes)


def _width(config: Config, size: Size) -> int:
    with torch.device("meta"):
        return family_of(config).build(size).num_features


def _of_distillation(config: Config, teacher: Config) -> float:
    """The teacher sees all crops; the student's MLP leads into the teacher's space, where queues are compared."""
    size, taught_by = family_of(config).space.intact, family_of(teacher).space.intact
    own, wide = _width(config, size), _width(teacher, taught_by)
    rows = GLOBALS + config.views.num_locals
    student = sum(_crops(config)[size]) + 2.0 * rows * (own * own + own * wide + wide * config.distill.queue)
    asked = sum(_crops(teacher)[taught_by]) + 2.0 * rows * wide * config.distill.queue
    return asked + (1 + BACKWARD) * student
