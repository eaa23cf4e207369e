"""Tiny runs that `faults.py` interrupts: their settings, and the commands of each."""

from typing import Any

COMMON: dict[str, Any] = {
    **{"data": "digits/train", "limit": 64, "epochs": 2, "batch_size": 16, "saving": {"every_epochs": 0.5}},
    **{"precision": "fp32", "device": "cpu", "workers": 0, "monitor": {"num_images": 64}},
}
TINY: dict[str, Any] = {
    **COMMON,
    "heads": {"prototypes": [16], "hidden": 16, "bottleneck": 8},
    "views": {"global_size": 16, "local_size": 8, "num_locals": 2, "blur_kernel": 3},
    "losses": {"ibot_start_epoch": 0, "teacher_temperature_epochs": 1},
    "optimizer": {"warmup_epochs": 1, "freeze_last_layer_epochs": 0},
}
VIT = {"name": "vit", "width_min": 32, "width_max": 64, "head_dim": 32, "depth_min": 2, "depth_max": 3, "patch_size": 8}
SWIN = {"name": "swin", "width_min": 16, "width_max": 32, "width_step": 16, "head_dim": 8, "depths": [2, 1, 3, 1]}
SWIN |= {"depth_min": [2], "patch_size": 2, "window_size": 2}
RESNET = {"name": "resnet", "width_min": 32, "width_max": 64, "channels": 16, "depths": [1, 2, 2, 1]}
RESNET |= {"depth_min": [1, 1]}
SLIM = {"width_min": 8, "width_max": 16, "width_step": 8, "depth_min": [1, 1, 1, 1], "depth_max": [1, 1, 1, 1]}
SETTINGS: dict[str, dict[str, Any]] = {
    "vit": {**TINY, "model": VIT, "workers": 2},
    "swin": {**TINY, "model": SWIN},
    "resnet": {**TINY, "model": RESNET, "views": {**TINY["views"], "global_size": 20, "local_size": 20}},
    "slimclr-mocov2": {
        **COMMON,
        **{"recipe": "slimclr-mocov2", "model": SLIM, "slim": {"queue": 48}, "optimizer": {"warmup_epochs": 1}},
        "views": {"global_size": 32, "blur_kernel": 3},
    },
    "seed": {**TINY, "model": VIT, "method": "seed", "distill": {"teacher": "../../reference/vit/run"}},
    "two ranks": {**TINY, "model": VIT, "devices": 2, "workers": 1},
}
KNN = "evaluate knn run --train digits/train --test digits/test --limit 100 --k 5"
FINETUNE = "evaluate finetune run --train digits/train --test digits/test --limit 64 --epochs 3 --batch-size 16"
SEGMENT = "evaluate segmentation run --train ../../pairs/train/images --train-masks ../../pairs/train/masks"
SEGMENT += " --test ../../pairs/test/images --test-masks ../../pairs/test/masks --epochs 3 --batch-size 4 --crop 16"
COMMANDS: dict[str, tuple[str, ...]] = {
    "vit": ("pretrain", f"{KNN} --workers 1", "extract run --size 32x2 64x3"),
    "swin": ("pretrain", KNN, "extract run --size 16x2 32x3"),
    "resnet": ("pretrain", KNN, "extract run --size 32x1-1 64x2-2"),
    "slimclr-mocov2": ("pretrain", KNN, "extract run --size 8x1-1-1-1"),
    "seed": ("pretrain", KNN, "extract run --size 64x3"),
    "two ranks": ("pretrain", "extract run --size 32x2 64x3"),
    "fine-tuning": (f"{FINETUNE} --sizes 32x2 64x3 --workers 1",),
    "segmentation": (f"{SEGMENT} --sizes 32x2 64x3",),
}
"""What is done in a folder in this order: `pretrain` with the settings of that name, or more with the run of `vit`."""
