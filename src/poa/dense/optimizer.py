"""The optimizer of dense tasks: new parts at the full learning rate, layers of the backbone at lower ones."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from torch import nn

from poa.dense.detection_settings import Detection
from poa.dense.segmentation_settings import Segmentation


def adamw(backbone: nn.Module, new: Sequence[nn.Module], settings: Segmentation | Detection) -> torch.optim.Optimizer:
    """AdamW; the backbone's layers learn the more slowly the earlier they come, or not at all where it is frozen.

    Args:
        backbone: A timm model.
        new: All else that is trained.
        settings: With learning rate, its decay from layer to layer, and weight decay.
    """
    options: dict[str, Any] = {"opt": "adamw", "lr": settings.lr, "weight_decay": settings.weight_decay}
    groups = [group for part in new for group in param_groups_weight_decay(part, settings.weight_decay)]
    groups = [group for group in groups if group["params"]]
    if settings.frozen:
        frozen: torch.optim.Optimizer = create_optimizer_v2(groups, **options)
        return frozen
    decay = {"layer_decay": settings.layer_decay} if settings.layer_decay < 1 else {}
    optimizer: torch.optim.Optimizer = create_optimizer_v2(backbone, **options, **decay)
    for group in groups:
        optimizer.add_param_group(group)
    return optimizer
