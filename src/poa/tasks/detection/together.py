"""One detector for all widths of a slimmable network: trained once, then tested and written width by width."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from poa import distributed
from poa.elastic.space import Size
from poa.errors import UserError
from poa.evaluation.protocol import Outcome
from poa.families.slim_resnet import SlimResNet
from poa.models.source import ModelSource, any_size, blueprint
from poa.tasks.detection.slimmable import SlimDetectors, extract_detector, slim_detectors
from poa.tasks.detection.train_one import Task, assess_one, train_detector
from poa.tasks.training import EpochSummary

WORK = "together"
"""Folder of the checkpoints."""


def check_slimmable(source: ModelSource, chosen: Sequence[str]) -> None:
    """Check that one detector can be trained for the networks.

    Args:
        source: Whose networks.
        chosen: Their names.

    Raises:
        UserError: They are no widths of a slimmable network, fewer than two, or there are several processes.
    """
    if not isinstance(source.family, SlimResNet):
        raise UserError(
            f"One detector for all sizes needs the widths of a slimmable network (SlimCLR), got {source.name}. "
            "Leave out --together: each size then gets a detector of its own."
        )
    if len(chosen) < 2:
        raise UserError(f"One detector for all sizes needs at least two of them, got {chosen[0]}. Name more --sizes.")
    if distributed.world_size() > 1:
        raise UserError(
            f"One detector for all sizes is trained by one process, got {distributed.world_size()}. Start one."
        )


def train_together(task: Task, chosen: Sequence[str], *, work: Path) -> tuple[SlimDetectors, EpochSummary]:
    """Train one detector on several widths, from its last checkpoint on.

    Args:
        task: What all share.
        chosen: Names of the widths.
        work: Folder of its checkpoints.

    Raises:
        Diverged: The training loss is not finite.
        UserError: The networks give no maps, or it was begun with other settings.
    """
    weights = {Size.parse(name): task.source.timm_model(name, num_classes=0).state_dict() for name in chosen}

    def build(size: Size) -> nn.Module:
        return _plain(task, str(size))

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(task.settings.seed)
        detectors = slim_detectors(build, weights, task.plan, trains_norms=task.settings.batch_norm)
    reached = train_detector(
        task, detectors.whole, "all widths:", work=work, known=_known(task, chosen), narrower=detectors.narrower
    )
    return detectors, reached


def assess_width(
    task: Task, name: str, detectors: SlimDetectors, reached: EpochSummary
) -> tuple[Outcome, Mapping[str, int]]:
    """Test a width, and write it as an ordinary detector.

    Args:
        task: What all share.
        name: Of the width.
        detectors: Of all widths.
        reached: Of their training.
    """
    backbone = _plain(task, name)
    plan = blueprint(task.source, name, backbone)
    network = extract_detector(detectors, Size.parse(name), backbone, task.plan)
    return assess_one(task, name, network, plan, reached)


def _plain(task: Task, name: str) -> nn.Module:
    """The timm model of a width on the current default device, with whatever weights."""
    assert task.source.family is not None
    architecture, arguments = task.source.family.timm_config(Size.parse(name))
    model: nn.Module = timm.create_model(architecture, **{**arguments, "num_classes": 0})
    assert not any_size(model), "ResNets take images of any size as they are"
    return model


def _known(task: Task, chosen: Sequence[str]) -> Mapping[str, Any]:
    return {**task.known, "widths": list(chosen)}
