import math
from typing import Any

import pytest

from poa.config.finetune import PRESETS, TRANSFER, Finetune
from poa.config.values import preset_of
from poa.errors import UserError


def test_learning_rate_for_a_batch_size() -> None:
    assert Finetune(lr=1e-3, lr_reference=512, batch_size=768).peak_lr == pytest.approx(1.5e-3)
    assert Finetune(lr=1e-3, batch_size=768).peak_lr == 1e-3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epochs": 0}, "--epochs cannot be 0: it should be greater than or equal to 1"),
        ({"batch_size": 0}, "--batch-size cannot be 0"),
        ({"repeats": 0}, "--repeats cannot be 0"),
        ({"lr": 0.0}, "--lr cannot be 0.0: it should be greater than 0"),
        ({"lr": -1e-3}, "--lr cannot be"),
        ({"lr": math.nan}, "--lr cannot be nan"),
        ({"mixup": -0.1}, "--mixup cannot be -0.1: it should be greater than or equal to 0"),
        ({"weight_decay": math.nan}, "--weight-decay cannot be nan"),
        ({"warmup_share": 1.0}, "--warmup-share cannot be 1.0: it should be less than 1"),
        ({"drop_path": 1.5}, "--drop-path cannot be 1.5"),
        ({"ema": 1.0}, "--ema cannot be 1.0"),
        ({"layer_decay": 0.0}, "--layer-decay cannot be 0.0: it should be greater than 0"),
        ({"crop_scale": (0.9, 0.5)}, r"--crop-scale cannot be \(0.9, 0.5\): it should be the smallest"),
        ({"crop_scale": (0.0, 0.5)}, "--crop-scale cannot be 0.0: it should be greater than 0"),
        ({"head": "cosine"}, "--head cannot be 'cosine'. Choose from linear, mlp"),
        ({"precision": "fp8"}, "--precision cannot be 'fp8'. Choose from fp32"),
        ({"share": 0.0}, "--share cannot be 0.0"),
        ({"share": 1.5}, "--share cannot be 1.5"),
        ({"per_class": 0}, "--per-class cannot be 0"),
        ({"per_class": 1, "share": 0.5}, "got both: 0.5 and 1"),
        ({"epoch": 1}, "Unknown setting '--epoch'. Did you mean 'epochs'?"),
        ({"batch_size": 15}, r"must be even, got 15. Use 16, or turn mixing off"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Finetune(**settings)
    assert Finetune(batch_size=15, mixup=0.0, cutmix=0.0).batch_size == 15


@pytest.mark.parametrize(
    ("name", "epochs", "lr", "layer_decay", "batch_size", "drop_path"),
    [
        ("imagenet-vit-s", 200, 2e-3, 0.55, 2048, 0.1),
        ("imagenet-vit-b", 100, 7e-4, 0.4, 2048, 0.2),
        ("imagenet-vit-l", 50, 1.8e-3, 0.6, 2048, 0.2),
        ("imagenet-swin-t", 200, 1.4e-3, 0.6, 1024, 0.1),
        ("imagenet-swin-s", 100, 1e-3, 0.4, 1024, 0.1),
        ("imagenet-swin-b", 50, 7e-4, 0.55, 512, 0.2),
        ("imagenet-resnet-50", 100, 1.4e-3, 0.6, 1024, 0.0),
        ("imagenet-resnet-101", 100, 1e-3, 0.4, 1024, 0.0),
        ("imagenet-resnet-152", 100, 7e-4, 0.45, 512, 0.0),
        ("cifar10-s", 1000, 8e-6, 0.9, 768, 0.1),
        ("cifar100-b", 1000, 7.5e-6, 0.8, 768, 0.2),
        ("inat18-s", 360, 4e-4, 0.8, 768, 0.1),
        ("inat19-b", 360, 4e-5, 0.75, 768, 0.2),
        ("flowers-b", 1000, 5e-4, 0.7, 768, 0.2),
        ("cars-s", 1000, 4e-4, 0.8, 768, 0.1),
        ("semi-1", 1000, 5e-6, 1.0, 1024, 0.1),
    ],
)
def test_published_settings(
    name: str, epochs: int, lr: float, layer_decay: float, batch_size: int, drop_path: float
) -> None:
    found = preset_of(PRESETS, name)
    assert (found.epochs, found.lr, found.layer_decay, found.batch_size, found.drop_path) == (
        epochs,
        lr,
        layer_decay,
        batch_size,
        drop_path,
    )
    assert (found.weight_decay, found.mixup, found.cutmix, found.smoothing) == (0.05, 0.8, 1.0, 0.1)
    is_imagenet = name.startswith("imagenet")
    assert found.ema == (0.0 if name.startswith("semi") else 0.7)
    assert found.min_lr == (1e-6 if is_imagenet else 1e-5)
    assert found.peak_lr == pytest.approx(lr if is_imagenet else lr * batch_size / 512)
    assert found.warmup_share * epochs == pytest.approx(epochs / 10 if is_imagenet else 5)
    assert found.repeats == (3 if name in TRANSFER else 1)
    assert found.erasing == (0.1 if name in TRANSFER else 0.25)


def test_presets_by_name() -> None:
    assert preset_of(PRESETS, "small-data") == Finetune()
    assert (preset_of(PRESETS, "semi-10").share, preset_of(PRESETS, "semi-10").head) == (0.1, "mlp")
    assert set(TRANSFER) < set(PRESETS)
    assert len(TRANSFER) == 12
    with pytest.raises(UserError, match=r"no preset 'imagenet-vit-x'. Did you mean"):
        preset_of(PRESETS, "imagenet-vit-x")
    with pytest.raises(UserError, match=r"no preset 'semi-1'. Choose from cifar10-s, .*cars-b"):
        preset_of(TRANSFER, "semi-1")
    assert preset_of(PRESETS, "semi-1").share == 0.01
