"""Tiny runs that `faults.py` disturbs: their images, settings and commands."""

import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NUM_IMAGES, NUM_SHARDS = 64, 2
WRITTEN_AT = 10**9
"""Time of change of all images: a run knows them by it."""

COMMON: dict[str, Any] = {
    **{"epochs": 2, "batch_size": 16, "max_bad_share": 0, "saving": {"every_epochs": 0.5}},
    **{"precision": "fp32", "device": "cpu", "workers": 0, "monitor": {"num_images": 32}},
}
TINY: dict[str, Any] = {
    **COMMON,
    "heads": {"prototypes": [16], "hidden": 16, "bottleneck": 8},
    "views": {"global_size": 16, "local_size": 8, "num_locals": 1, "blur_kernel": 3},
    "losses": {"ibot_start_epoch": 0, "teacher_temperature_epochs": 1},
    "optimizer": {"warmup_epochs": 1, "freeze_last_layer_epochs": 0},
}
VIT = {"name": "vit", "width_min": 32, "width_max": 64, "head_dim": 32, "depth_min": 2, "depth_max": 3, "patch_size": 8}
SWIN = {"name": "swin", "width_min": 16, "width_max": 32, "width_step": 16, "head_dim": 8, "depths": [1, 1, 2, 1]}
SWIN |= {"depth_min": [1], "patch_size": 2, "window_size": 2}
RESNET = {"name": "resnet", "width_min": 32, "width_max": 64, "channels": 16, "depths": [1, 1, 2, 1]}
RESNET |= {"depth_min": [1, 1]}
CONVNEXT = {"name": "convnext", "width_min": 16, "width_max": 32, "depths": [1, 1, 2, 1], "depth_min": [1]}
SLIM = {"width_min": 8, "width_max": 16, "width_step": 8, "depth_min": [1, 1, 1, 1], "depth_max": [1, 1, 1, 1]}
FAMILIES = {"vit": VIT, "swin": SWIN, "resnet": RESNET, "convnext": CONVNEXT}
SIDES = {"resnet": {"global_size": 17, "local_size": 17}, "convnext": {"global_size": 32, "local_size": 32}}
TEACHER = {"teacher": "../../reference/vit poa/run", "teacher_size": 16}
METHODS: dict[str, dict[str, Any]] = {
    "poa": {},
    "single": {},
    "distill": {"distill": TEACHER},
    "seed": {"distill": {**TEACHER, "queue": 32}},
}
SLIMCLR: dict[str, dict[str, Any]] = {"simclr": {"hidden": 16}, "mocov2": {"queue": 48}, "mocov3": {"hidden": 16}}
PARALLEL: dict[str, dict[str, Any]] = {
    "": {},
    " ddp": {"devices": 2, "parallel": "ddp"},
    " fsdp": {"devices": 2, "parallel": "fsdp"},
}


def _settings() -> Iterator[tuple[str, dict[str, Any]]]:
    """Of each family with each method, on one process and on two; FSDP has no slimmable networks."""
    for how, shared in PARALLEL.items():
        for family, model in FAMILIES.items():
            views = {**TINY["views"], **SIDES.get(family, {})}
            for method, over in METHODS.items():
                yield (
                    f"{family} {method}{how}",
                    {**TINY, "model": model, "views": views, "method": method, **over, **shared},
                )
        for method, over in SLIMCLR.items() if how != " fsdp" else ():
            slim = {"recipe": f"slimclr-{method}", "model": SLIM, "slim": {**over, "dim": 8}}
            small = {"views": {"global_size": 32, "blur_kernel": 3}, "optimizer": {"warmup_epochs": 1}}
            yield f"slim {method}{how}", {**COMMON, **slim, **small, **shared}


SETTINGS = dict(_settings())
DATA = {name: ("folder", "shards")[number % 2] for number, name in enumerate(SETTINGS)}
"""Where the images of each lie: files in a folder, or in tars."""
SETTINGS |= {
    "workers": {**SETTINGS["vit poa"], "workers": 2},
    "programs": {**SETTINGS["vit poa ddp"], "workers": 1},
}
DATA |= {"workers": "folder", "programs": "shards"}
AS_PROGRAMS = "programs"
"""Whose ranks are programs that import everything, as they always are elsewhere; the others are forks, to save that."""
KNN = "evaluate knn run --train digits/train --test digits/test --limit 100 --k 5"
FINETUNE = "evaluate finetune run --train digits/train --test digits/test --limit 64 --epochs 3 --batch-size 16"
SEGMENT = "evaluate segmentation run --train ../../pairs/train/images --train-masks ../../pairs/train/masks"
SEGMENT += " --test ../../pairs/test/images --test-masks ../../pairs/test/masks --epochs 3 --batch-size 4 --crop 16"
COMMANDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(SETTINGS, ("pretrain",)),
    "evaluation": (KNN, f"{KNN} --name workers --workers 1", "extract run --size 32x2 64x3"),
    "fine-tuning": (f"{FINETUNE} --sizes 32x2 64x3",),
    "segmentation": (f"{SEGMENT} --sizes 32x2 64x3",),
}
"""What is done in a folder in this order: `pretrain` with the settings of that name; or more with that of `vit poa`."""


def parts_of_command(subject: str, command: str) -> list[str]:
    """Which processes a command has besides the main one: ranks, workers, and what Python starts with these."""
    settings = SETTINGS[subject] if command == "pretrain" else {}
    workers = settings.get("workers") or "--workers" in command
    has = {"rank": settings.get("devices", 1) > 1, "worker": workers, "resource tracker": workers}
    return [part for part, is_there in has.items() if is_there]


def write_data(folder: Path) -> None:
    """Images of noise as files and in tars; pairs of an image of noise on one half, and a mask of the halves."""
    for away in folder.glob("*-away"):  # of an episode that was itself interrupted
        shutil.rmtree(away)
    pictures = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 16, 16, 3), np.uint8)
    encoded = {f"{number:03}.png": _png(pixels) for number, pixels in enumerate(pictures)}
    for name, content in encoded.items():
        _write(folder / "folder" / name, content)
    for number in range(NUM_SHARDS):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as shard:
            for name in list(encoded)[number::NUM_SHARDS]:
                about = tarfile.TarInfo(name)
                about.size = len(encoded[name])
                shard.addfile(about, io.BytesIO(encoded[name]))
        _write(folder / "shards" / f"{number}.tar", packed.getvalue())
    for part, number in ((part, number) for part in ("train", "test") for number in range(8)):
        draw = np.random.default_rng([number, part == "test"])
        mask = np.zeros((16, 16), np.uint8)
        mask[:, : draw.integers(4, 12)] = 1
        image = (draw.integers(0, 256, (16, 16, 3)) * mask[..., None]).astype(np.uint8)
        for kind, pixels in (("images", image), ("masks", mask)):
            _write(folder.parent / "pairs" / part / kind / f"{number}.png", _png(pixels))


def _png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != content:
        path.write_bytes(content)
    os.utime(path, (WRITTEN_AT, WRITTEN_AT))
