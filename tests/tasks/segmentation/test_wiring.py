"""Every setting of segmentation acts: another value trains another network.

A new setting without a row fails.
"""

from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from poa.config.segmentation import Segmentation
from poa.data.images import Preprocessing
from poa.data.index import open_index
from poa.tasks.maps import Maps
from poa.tasks.segmentation.masks import Pairs, pair_up
from poa.tasks.segmentation.model import Segmenter
from poa.tasks.segmentation.train import train
from tasks.segmentation.mask_images import write_pairs

CPU = torch.device("cpu")
PREPROCESSING = Preprocessing(24, 24, (0.3, 0.3, 0.3), (0.3, 0.3, 0.3))
BASE = Segmentation(
    head="upernet",
    channels=8,
    frozen=False,
    epochs=2,
    batch_size=2,
    lr=1e-2,
    layer_decay=0.5,
    warmup_share=0.5,
    drop_path=0.3,
    crop=16,
    stride=8,
)
TRAINING: dict[str, Any] = {
    "head": "linear",
    "channels": 4,
    "auxiliary": 0.1,
    "epochs": 3,
    "batch_size": 4,
    "lr": 1e-3,
    "layer_decay": 0.9,
    "warmup_share": 0.0,
    "warmup_lr": 1e-3,
    "min_lr": 1e-3,
    "power": 2.0,
    "weight_decay": 0.5,
    "drop_path": 0.0,
    "resize": 32,
    "scale": (1.5, 2.0),
    "crop": 24,
    "most": 0.3,
    "flip": 0.0,
    "jitter": 0.1,
    "seed": 1,
}
ELSEWHERE = {
    **dict.fromkeys(("stride", "whole", "test_scales", "test_flip"), "act in the test: test_predict"),
    "taps": "of a linear head: below",
    "frozen": "excludes drop path: below",
}
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    images, masks = write_pairs(tmp_path_factory.mktemp("pairs"), num_images=4)
    return pair_up(open_index(images), open_index(masks))


def trained(settings: Segmentation, pairs: Pairs) -> State:
    torch.manual_seed(0)
    shape = {"img_size": 24, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_classes": 0}
    model = timm.create_model(
        "vit_tiny_patch16_224", **shape, dynamic_img_size=True, drop_path_rate=settings.drop_path
    ).eval()
    network = Segmenter(Maps(model, image_size=(24, 24)), settings, num_classes=3)
    train(network, pairs, settings, PREPROCESSING, device=CPU)
    state: State = network.state_dict()
    return state


@pytest.fixture(scope="module")
def usual(pairs: Pairs) -> State:
    return trained(BASE, pairs)


def equal(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_same_settings_train_the_same(usual: State, pairs: Pairs) -> None:
    """Else the next tests could not fail."""
    assert equal(usual, trained(BASE, pairs))


@pytest.mark.parametrize("field", TRAINING)
def test_another_value_trains_another_network(usual: State, pairs: Pairs, field: str) -> None:
    assert not equal(usual, trained(BASE.changed(**{field: TRAINING[field]}), pairs))


@pytest.mark.parametrize("over", [{"taps": "last"}, {"frozen": True}])
def test_another_value_for_a_linear_head(pairs: Pairs, over: dict[str, Any]) -> None:
    linear = BASE.changed(head="linear", drop_path=0.0)
    assert not equal(trained(linear, pairs), trained(linear.changed(**over), pairs))


def test_the_head_alone_decays_as_set(pairs: Pairs) -> None:
    frozen = BASE.changed(head="linear", drop_path=0.0, frozen=True)
    assert not equal(trained(frozen, pairs), trained(frozen.changed(weight_decay=0.5), pairs))


def test_every_setting_has_a_row() -> None:
    assert set(Segmentation.model_fields) == set(TRAINING) | set(ELSEWHERE)
