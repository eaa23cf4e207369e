from typing import Any

import pytest

from poa.config.segmentation import PRESETS, Segmentation
from poa.config.values import preset_of
from poa.errors import UserError


@pytest.mark.parametrize(
    ("over", "text"),
    [
        ({"head": "mine"}, "--head cannot be 'mine'. Did you mean 'linear'"),
        ({"taps": "some"}, "--taps cannot be 'some'. Choose from all, last"),
        ({"epochs": 0}, "--epochs cannot be 0: it should be greater than or equal to 1"),
        ({"lr": 0.0}, "--lr cannot be 0.0: it should be greater than 0"),
        ({"stride": -1}, "--stride cannot be -1"),
        ({"drop_path": 1.0, "frozen": False}, "--drop-path cannot be 1.0: it should be less than 1"),
        ({"most": 1.5}, "--most cannot be 1.5"),
        ({"jitter": 2.0}, "--jitter cannot be 2.0: it should be less than or equal to 1"),
        ({"layer_decay": 0.0}, "--layer-decay cannot be 0.0"),
        ({"scale": (2.0, 1.0)}, r"--scale cannot be \(2.0, 1.0\): it should be the smallest value, then"),
        ({"scale": (0.5, 11.0)}, "--scale cannot be 11.0: it should be less than or equal to 10"),
        ({"test_scales": ()}, r"--test-scales cannot be \(\)"),
        ({"head": "upernet", "batch_size": 1}, "--batch-size must be at least 2"),
        ({"drop_path": 0.1}, "has no effect on a frozen backbone"),
        ({"whole": True, "stride": 4}, "has no effect with --whole"),
    ],
)
def test_settings_that_cannot_be(over: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        Segmentation(**over)


SMALL_DATA: dict[str, Any] = {
    "head": "linear",
    "taps": "all",
    "channels": 128,
    "auxiliary": 0.4,
    "frozen": True,
    "epochs": 30,
    "batch_size": 8,
    "lr": 2e-3,
    "layer_decay": 1.0,
    "warmup_share": 0.05,
    "warmup_lr": 1e-6,
    "min_lr": 0.0,
    "power": 1.0,
    "weight_decay": 0.05,
    "drop_path": 0.0,
    "resize": 0,
    "scale": (0.5, 2.0),
    "crop": 0,
    "most": 0.75,
    "flip": 0.5,
    "jitter": 0.4,
    "stride": 0,
    "whole": False,
    "test_scales": (1.0,),
    "test_flip": False,
    "seed": 0,
}
WHOLE = {"frozen": False, "lr": 5e-4, "layer_decay": 0.75, "drop_path": 0.1}
ADE20K = SMALL_DATA | {
    "epochs": 127,
    "batch_size": 16,
    "warmup_share": 1500 / 160_000,
    "resize": 512,
    "crop": 512,
    "jitter": 0.5,
    "stride": 341,
}
"""POA, official code: 160,000 steps of 16 images."""
UPERNET = ADE20K | {"head": "upernet", "frozen": False}
VALUES: dict[str, dict[str, Any]] = {
    "small-data": SMALL_DATA,
    "small-data-finetune": SMALL_DATA | WHOLE,
    "small-data-upernet": SMALL_DATA | WHOLE | {"head": "upernet"},
    "ade20k-linear-vit-s": ADE20K | {"lr": 3e-5},
    "ade20k-linear-vit-b": ADE20K | {"lr": 7e-4},
    "ade20k-upernet-vit-s": UPERNET | {"channels": 384, "lr": 6e-5, "layer_decay": 0.8, "drop_path": 0.1},
    "ade20k-upernet-vit-b": UPERNET
    | {"channels": 768, "lr": 4e-5, "layer_decay": 0.9, "drop_path": 0.15, "min_lr": 1e-7},
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_of_every_preset(name: str) -> None:
    """As published; those for small data as docs/results.md was made with."""
    assert preset_of(PRESETS, name).model_dump() == VALUES[name]


def test_presets() -> None:
    published = preset_of(PRESETS, "ade20k-upernet-vit-s")
    steps = published.epochs * (20_210 // 16)
    assert abs(steps - 160_000) < 1263
    assert round(steps * published.warmup_share) == pytest.approx(1500, abs=6)
    with pytest.raises(UserError, match="no preset 'ade'"):
        preset_of(PRESETS, "ade")
