"""Settings of a run that takes about a second, for each family."""

import copy
from collections.abc import Mapping
from typing import Any

from poa.config.pretraining import Config

SETTINGS: dict[str, Any] = {
    "data": "digits",
    "limit": 64,
    "epochs": 2,
    "batch_size": 16,
    "elastic_samples": 1,
    "precision": "fp32",
    "device": "cpu",
    "workers": 0,
    "heads": {"prototypes": [16], "hidden": 16, "bottleneck": 8},
    "views": {"global_size": 16, "local_size": 8, "num_locals": 2, "blur_kernel": 3},
    "losses": {"ibot_start_epoch": 0, "teacher_temperature_epochs": 1},
    "optimizer": {"warmup_epochs": 1, "freeze_last_layer_epochs": 0},
    "monitor": {"num_images": 64},
}
CHEAPER: dict[str, Any] = {
    "losses": {"ibot": 0.0},
    "views": {"global_size": 32, "small_size": 16, "small_epochs": 1.0, "drop_patches": 0.25},
}
"""Steps that cost less, for a ViT."""
FAMILIES: dict[str, dict[str, Any]] = {
    "vit": {
        "model": {
            "name": "vit",
            "width_min": 32,
            "width_max": 64,
            "head_dim": 16,
            "depth_min": 2,
            "depth_max": 3,
            "patch_size": 8,
            "layer_scale": 0.5,
            "drop_path": 0.0,
        }
    },
    "dinov3": {
        "model": {
            "name": "dinov3",
            "width_min": 32,
            "width_max": 64,
            "width_step": 32,
            "head_dim": 16,
            "depth_min": [2],
            "depth_max": [3],
            "patch_size": 8,
            "layer_scale": 0.5,
            "drop_path": 0.0,
        }
    },
    "swin": {  # windows shift in the first stage
        "model": {
            "name": "swin",
            "width_min": 16,
            "width_max": 32,
            "width_step": 16,
            "head_dim": 8,
            "depths": [2, 1, 3, 1],
            "depth_min": [2],
            "patch_size": 2,
            "window_size": 2,
            "drop_path": 0.0,
        }
    },
    "resnet": {
        "model": {
            "name": "resnet",
            "width_min": 32,
            "width_max": 64,
            "channels": 16,
            "depths": [1, 2, 2, 1],
            "depth_min": [1, 1],
        },
        "views": {"global_size": 20, "local_size": 20},
    },
    "convnext": {
        "model": {
            "name": "convnext",
            "width_min": 16,
            "width_max": 32,
            "depths": [1, 1, 3, 1],
            "depth_min": [2],
            "layer_scale": 0.5,
            "drop_path": 0.0,
        },
        "views": {"global_size": 32, "local_size": 32},
    },
}
"""What is peculiar to a run of each family."""


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Sections laid over one another."""
    joined = {**base, **over}
    for name in base.keys() & over.keys():
        if isinstance(base[name], Mapping) and isinstance(over[name], Mapping):
            joined[name] = merged(base[name], over[name])
    return joined


def settings(family: str = "vit", /, **over: Any) -> dict[str, Any]:
    """As keyword arguments of ``poa.pretrain``."""
    return copy.deepcopy(merged(merged(SETTINGS, FAMILIES[family]), over))


def config(family: str = "vit", /, **over: Any) -> Config:
    """As the settings of a run."""
    return Config.model_validate(settings(family, **over))
