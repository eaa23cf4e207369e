"""Folders in the hands of Hugging Face's transformers, which builds its own models around timm's."""

import ast
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers.utils import logging

import tiny
from poa.data.images import Preprocessing
from poa.elastic.space import SearchSpace, Size
from poa.export.card import Origin
from poa.export.timm import Blueprint, write_finetuned, write_model, write_size
from poa.families.base import Family
from poa.families.slim_resnet import SlimResNet
from poa.models.registry import family_of
from poa.models.source import any_size
from poa.tasks.classification.train import with_head
from trained import randomise

CLASSES = ("cat", "dog_2", "emu")
logging.disable_progress_bar()


def families() -> dict[str, Family]:
    slim = SlimResNet(SearchSpace.grid((16, 32), [(1, 1, 1, 1)]), image_size=32)
    return {name: family_of(tiny.config(name)) for name in tiny.FAMILIES} | {"slim-resnet": slim}


FAMILIES = families()
PHOTOS = [Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 50, 3), np.uint8)) for number in range(2)]


def preprocessing(family: Family) -> Preprocessing:
    return Preprocessing(family.image_size, family.image_size * 5 // 4, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def extracted(family: Family, folder: Path) -> Path:
    size = family.space.sizes[0]
    network = family.build(size)
    randomise(network)
    network.eval()
    return write_size(
        network,
        network,
        family=family,
        size=size,
        folder=folder,
        preprocessing=preprocessing(family),
        origin=Origin("a test"),
    )


def finetuned(family: Family, folder: Path, *, head: str = "linear") -> Path:
    model, blueprint = classifier(family, family.space.sizes[0], head)
    write_finetuned(
        model, blueprint, name="x", folder=folder, preprocessing=preprocessing(family), origin=Origin("a test")
    )
    return folder


def classifier(family: Family, size: Size, head: str) -> tuple[nn.Module, Blueprint]:
    architecture, arguments = family.timm_config(size)
    arguments = {**arguments, "num_classes": len(CLASSES)}
    model: Any = timm.create_model(architecture, **arguments)
    model = randomise(with_head(model, head, num_classes=len(CLASSES), seed=0))
    own = None if head == "linear" else model.pretrained_cfg["classifier"]
    return model, Blueprint(architecture, arguments, CLASSES, own)


def programs(folder: Path) -> dict[str, str]:
    """On the card, by what is above them."""
    return dict(re.findall(r"### (.*)\n(?:.*\n\n)?```python\n((?:.*\n)*?)```", (folder / "README.md").read_text()))


def loaded(folder: Path, photos: Sequence[Image.Image] = PHOTOS) -> tuple[nn.Module, Tensor]:
    """timm's model, and photos as transformers prepares them for it, which is as timm does."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    found: Tensor = AutoImageProcessor.from_pretrained(folder)(photos)["pixel_values"]
    assert torch.equal(found, torch.stack([prepare(photo) for photo in photos]))
    return model, found


def aligned(model: Any) -> Any:
    """The model with copies of its weights, which lie as in the file: some CPUs multiply such in another order."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_features_of_a_size(name: str, tmp_path: Path) -> None:
    folder = extracted(FAMILIES[name], tmp_path / "model")
    model, images = loaded(folder)
    assert torch.equal(aligned(AutoModel.from_pretrained(folder))(images).pooler_output, model(images))


@pytest.mark.parametrize("name", tiny.FAMILIES)
@torch.inference_mode()
def test_classes_of_a_finetuned_model(name: str, tmp_path: Path) -> None:
    folder = finetuned(FAMILIES[name], tmp_path / "model")
    model, images = loaded(folder)
    found = aligned(AutoModelForImageClassification.from_pretrained(folder))
    assert torch.equal(found(images).logits, model(images))
    assert found.config.id2label == dict(enumerate(CLASSES))


@torch.inference_mode()
def test_a_copied_folder_is_used_as_its_card_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = finetuned(FAMILIES["vit"], tmp_path / "classes"), extracted(FAMILIES["vit"], tmp_path / "size")
    for folder in written:
        here = shutil.copytree(folder, tmp_path / f"{folder.name}-copy")
        shutil.rmtree(folder)
        monkeypatch.chdir(here)
        PHOTOS[0].save("photo.jpg", quality=100)
        names: dict[str, Any] = {}
        exec(programs(here)["transformers"], names)
        model, (pixels, _) = loaded(here, photos=[Image.open("photo.jpg"), PHOTOS[1]])
        expected = model(pixels[None])
        if folder == written[0]:
            order = [CLASSES[number] for number in expected[0].argsort(descending=True)]
            assert [each["label"] for each in ast.literal_eval(capsys.readouterr().out)] == order
        else:
            assert torch.equal(names["features"], expected)


@pytest.mark.parametrize("name", ["vit", "swin"])
@torch.inference_mode()
def test_backbones_of_tasks_take_images_of_any_size(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    architecture, arguments = family.timm_config(family.space.sizes[0])
    model: Any = timm.create_model(architecture, **arguments)
    blueprint = Blueprint(architecture, {**arguments, **any_size(model)})
    write_model(randomise(model), blueprint, tmp_path / "model", preprocessing=preprocessing(family), card="")
    images = torch.randn(1, 3, 2 * family.image_size, 3 * family.image_size)
    found = aligned(AutoModel.from_pretrained(tmp_path / "model"))(images).pooler_output
    assert torch.equal(found, loaded(tmp_path / "model")[0](images))


@torch.inference_mode()
def test_a_model_without_a_classifier_gets_no_random_one(tmp_path: Path) -> None:
    """Not even one with two layers of a classifier beside it, which timm and transformers cannot build."""
    size, mlp = extracted(FAMILIES["vit"], tmp_path / "size"), finetuned(FAMILIES["vit"], tmp_path / "mlp", head="mlp")
    for folder in (size, mlp):
        with pytest.raises(ValueError, match="no classifier"):
            AutoModelForImageClassification.from_pretrained(folder)
    model, images = loaded(mlp)
    assert torch.equal(aligned(AutoModel.from_pretrained(mlp))(images).pooler_output, model(images))
