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


SMALL_DATA: dict[str, Any] = {
    "epochs": 50,
    "batch_size": 64,
    "lr": 2e-3,
    "lr_reference": 0,
    "layer_decay": 0.75,
    "warmup_share": 0.1,
    "warmup_lr": 1e-6,
    "min_lr": 1e-6,
    "weight_decay": 0.05,
    "mixup": 0.8,
    "cutmix": 1.0,
    "smoothing": 0.1,
    "rand_augment": "none",
    "erasing": 0.0,
    "crop_scale": (0.7, 1.0),
    "flip": 0.5,
    "drop_path": 0.1,
    "ema": 0.99,
    "head": "linear",
    "precision": "fp32",
    "share": None,
    "per_class": None,
    "repeats": 1,
    "seed": 0,
}
IMAGENET = SMALL_DATA | {
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "erasing": 0.25,
    "crop_scale": (0.08, 1.0),
    "ema": 0.7,
    "precision": "fp16",
}
"""POA, official code: what its fine-tuning scripts share."""
LONG = IMAGENET | {"epochs": 1000, "lr_reference": 512, "warmup_share": 5 / 1000, "min_lr": 1e-5}
OTHERS = LONG | {"batch_size": 768, "erasing": 0.1, "repeats": 3}
FEW = LONG | {"batch_size": 1024, "lr": 5e-6, "layer_decay": 1.0, "ema": 0.0, "head": "mlp"}
PUBLISHED: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {  # epochs, lr, layer_decay, batch_size, drop_path
    "imagenet-vit-s": (IMAGENET, (200, 2e-3, 0.55, 2048, 0.1)),
    "imagenet-vit-b": (IMAGENET, (100, 7e-4, 0.4, 2048, 0.2)),
    "imagenet-vit-l": (IMAGENET, (50, 1.8e-3, 0.6, 2048, 0.2)),
    "imagenet-swin-t": (IMAGENET, (200, 1.4e-3, 0.6, 1024, 0.1)),
    "imagenet-swin-s": (IMAGENET, (100, 1e-3, 0.4, 1024, 0.1)),
    "imagenet-swin-b": (IMAGENET, (50, 7e-4, 0.55, 512, 0.2)),
    "imagenet-resnet-50": (IMAGENET, (100, 1.4e-3, 0.6, 1024, 0.0)),
    "imagenet-resnet-101": (IMAGENET, (100, 1e-3, 0.4, 1024, 0.0)),
    "imagenet-resnet-152": (IMAGENET, (100, 7e-4, 0.45, 512, 0.0)),
    "cifar10-s": (OTHERS, (1000, 8e-6, 0.9, 768, 0.1)),
    "cifar10-b": (OTHERS, (1000, 7.5e-6, 0.9, 768, 0.2)),
    "cifar100-s": (OTHERS, (1000, 9e-6, 0.85, 768, 0.1)),
    "cifar100-b": (OTHERS, (1000, 7.5e-6, 0.8, 768, 0.2)),
    "inat18-s": (OTHERS | {"warmup_share": 5 / 360}, (360, 4e-4, 0.8, 768, 0.1)),
    "inat18-b": (OTHERS | {"warmup_share": 5 / 360}, (360, 2e-4, 0.75, 768, 0.2)),
    "inat19-s": (OTHERS | {"warmup_share": 5 / 360}, (360, 7e-5, 0.85, 768, 0.1)),
    "inat19-b": (OTHERS | {"warmup_share": 5 / 360}, (360, 4e-5, 0.75, 768, 0.2)),
    "flowers-s": (OTHERS, (1000, 6e-4, 0.6, 768, 0.1)),
    "flowers-b": (OTHERS, (1000, 5e-4, 0.7, 768, 0.2)),
    "cars-s": (OTHERS, (1000, 4e-4, 0.8, 768, 0.1)),
    "cars-b": (OTHERS, (1000, 3e-4, 0.7, 768, 0.2)),
    "semi-1": (FEW | {"share": 0.01}, (1000, 5e-6, 1.0, 1024, 0.1)),
    "semi-10": (FEW | {"share": 0.1}, (1000, 5e-6, 1.0, 1024, 0.1)),
}


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_of_every_preset(name: str) -> None:
    """As published; those for small data as docs/results.md was made with."""
    shared, own = PUBLISHED.get(name, (SMALL_DATA, (50, 2e-3, 0.75, 64, 0.1)))
    named = dict(zip(("epochs", "lr", "layer_decay", "batch_size", "drop_path"), own, strict=True))
    assert preset_of(PRESETS, name).model_dump() == shared | named


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
