"""Every setting of fine-tuning acts: with another value another model comes out. A new setting without a row fails."""

from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from poa.config.finetune import Finetune
from poa.data.images import Preprocessing
from poa.data.index import open_index
from poa.tasks.classification.data import Labelled, draw_rows, labelled
from poa.tasks.classification.train import finetune

CPU = torch.device("cpu")
PREPROCESSING = Preprocessing(8, 8, (0.3, 0.3, 0.3), (0.35, 0.35, 0.35))
BASE = Finetune(
    epochs=2,
    batch_size=8,
    warmup_share=0.4,
    crop_scale=(0.5, 1.0),
    rand_augment="rand-m9-mstd0.5-inc1",
    erasing=0.5,
    drop_path=0.3,
    ema=0.9,
    repeats=2,
)
OTHER: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 16,
    "lr": 1e-3,
    "lr_reference": 16,
    "layer_decay": 0.5,
    "warmup_share": 0.0,
    "warmup_lr": 1e-4,
    "min_lr": 1e-4,
    "weight_decay": 0.5,
    "mixup": 0.0,
    "cutmix": 0.0,
    "smoothing": 0.3,
    "rand_augment": "rand-m5-inc1",
    "erasing": 0.0,
    "crop_scale": (0.9, 1.0),
    "flip": 0.0,
    "drop_path": 0.0,
    "ema": 0.5,
    "head": "mlp",
    "precision": "bf16",
    "share": 0.5,
    "per_class": 1,
    "repeats": 1,
    "seed": 1,
}


@cache
def digits() -> Labelled:
    return labelled(open_index("digits/train", limit=24), open_index("digits/test", limit=10))[0]


def trained(settings: Finetune) -> dict[str, Tensor]:
    torch.manual_seed(0)
    shape = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 10}
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", **shape, drop_path_rate=settings.drop_path)
    for parameter in model.head.parameters():  # type: ignore[union-attr]  # a linear layer
        nn.init.normal_(parameter, std=0.1)  # else nothing but the head learns at first
    images = digits().take(draw_rows(digits().labels, settings))
    model, _ = finetune(model, images, settings, PREPROCESSING, device=CPU)
    return model.state_dict()


@cache
def usual() -> dict[str, Tensor]:
    return trained(BASE)


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_same_settings_train_the_same() -> None:
    """Else the next test could not fail."""
    assert equal(usual(), trained(BASE))


@pytest.mark.parametrize("field", OTHER)
def test_another_value_trains_another_model(field: str) -> None:
    assert not equal(usual(), trained(BASE.changed(**{field: OTHER[field]})))


def test_every_setting_has_a_row() -> None:
    assert set(Finetune.model_fields) == set(OTHER)
