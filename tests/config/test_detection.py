from typing import Any

import pytest

from poa.config.detection import PRESETS
from poa.config.values import preset_of
from poa.errors import UserError

SMALL_DATA: dict[str, Any] = {
    "head": "mask-rcnn",
    "channels": 128,
    "hidden": 512,
    "box_head": "mlp",
    "box_loss": "smooth-l1",
    "anchor_cells": 4.0,
    "regions": 128,
    "frozen": False,
    "batch_norm": False,
    "epochs": 50,
    "batch_size": 4,
    "lr": 3e-4,
    "layer_decay": 0.8,
    "warmup_share": 0.05,
    "warmup_lr": 1e-6,
    "min_lr": 1e-6,
    "milestones": (),
    "weight_decay": 0.05,
    "drop_path": 0.0,
    "clip": 1.0,
    "sides": (224, 256, 288),
    "test_side": 256,
    "longest": 384,
    "flip": 0.5,
    "min_score": 0.05,
    "most": 100,
    "seed": 0,
}
COCO = SMALL_DATA | {
    "head": "cascade-mask-rcnn",
    "channels": 256,
    "hidden": 1024,
    "box_head": "convolutions",
    "box_loss": "giou",
    "anchor_cells": 8.0,
    "regions": 512,
    "epochs": 36,
    "batch_size": 16,
    "warmup_share": 500 / 263_844,
    "milestones": (27, 33),
    "clip": 0.0,
    "sides": (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
    "test_side": 800,
    "longest": 1333,
}
"""POA, official code, which has it from iBOT."""
VALUES = {
    "small-data": SMALL_DATA,
    "coco-vit-s": COCO | {"lr": 3e-4, "layer_decay": 0.7, "drop_path": 0.1},
    "coco-vit-b": COCO | {"lr": 1e-4, "layer_decay": 0.65, "drop_path": 0.2},
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_of_every_preset(name: str) -> None:
    """As published; those for small data as docs/results.md was made with."""
    assert preset_of(PRESETS, name).model_dump() == VALUES[name]


def test_presets_by_name() -> None:
    with pytest.raises(UserError, match="no preset 'coco'"):
        preset_of(PRESETS, "coco")
