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


def test_presets() -> None:
    published = preset_of(PRESETS, "ade20k-upernet-vit-s")
    assert (published.crop, published.stride, published.batch_size, published.channels) == (512, 341, 16, 384)
    assert (published.lr, published.layer_decay, published.drop_path, published.auxiliary) == (6e-5, 0.8, 0.1, 0.4)
    steps = published.epochs * (20_210 // 16)
    assert abs(steps - 160_000) < 1263
    assert round(steps * published.warmup_share) == pytest.approx(1500, abs=6)
    assert {each.frozen for name, each in PRESETS.items() if "linear" in name} == {True}
    with pytest.raises(UserError, match="no preset 'ade'"):
        preset_of(PRESETS, "ade")
