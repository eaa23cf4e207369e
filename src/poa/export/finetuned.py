"""Hand a fine-tuned model out as a folder that timm loads, with its classifier and the names of the classes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from poa.data.images import Preprocessing
from poa.errors import UserError
from poa.files import whole_folder
from poa.models import registry
from poa.models.source import ModelSource
from poa.tasks.maps import any_size

CLASSIFIER = "classifier.safetensors"
"""File of a classifier that timm has no words for."""
_CARD = """---
library_name: timm
tags: [image-classification, timm]
---
# {name}

A {architecture}, fine-tuned on {num_classes} classes ({source}).
{parameters:,} parameters, {image_size} pixels.

```python
import timm

model = timm.create_model("local-dir:{folder}", pretrained=True)
classes = model.pretrained_cfg["label_names"]
```
{classifier}
Images: RGB in 0..1, mean {mean}, standard deviation {std}.
"""
_CARD_OF_MLP = """
The model gives features. Its classifier has two layers, with GELU between them, and lies beside it:

```python
from safetensors.torch import load_file

weights = load_file("{folder}/classifier.safetensors")  # 0.weight, 0.bias, 2.weight, 2.bias
```
"""


@dataclass(frozen=True, slots=True)
class Blueprint:
    """How timm builds a fine-tuned model.

    Attributes:
        architecture: timm's name.
        arguments: Further arguments; JSON can hold them.
        classes: Names of the classes, in the order of the outputs.
        classifier: Name of the classifier inside the model.
        is_linear: Whether the classifier is timm's own.
    """

    architecture: str
    arguments: Mapping[str, Any]
    classes: tuple[str, ...]
    classifier: str
    is_linear: bool


def blueprint(
    source: ModelSource, name: str, model: nn.Module, *, classes: Sequence[str], is_linear: bool
) -> Blueprint:
    """Find out how timm builds a model, before it is trained.

    Args:
        source: Whose model.
        name: Of the network.
        model: With timm's own classifier.
        classes: Names of the classes.
        is_linear: Whether the classifier stays timm's own.

    Raises:
        UserError: timm builds another model from what is known.
    """
    known: Any = model.pretrained_cfg
    folder = registry.folder_of(source.name) / "config.json"
    architecture, arguments = str(known["architecture"]), dict[str, Any]()
    if source.family is not None:
        architecture, own = source.family.timm_config(source.family.space.find(name))
        arguments |= own
    elif folder.is_file():
        arguments |= json.loads(folder.read_text()).get("model_args", {})
    side = source.preprocessing.image_size
    if source.family is None and known.get("fixed_input_size") and known["input_size"][-1] != side:
        arguments["img_size"] = side
    arguments["num_classes"] = len(classes)
    with torch.device("meta"):
        built = timm.create_model(architecture, **arguments)
    if _shapes(built) != _shapes(model):
        raise UserError(
            f"{source.name} cannot be fine-tuned: timm does not build the same model from its name and settings, so "
            "that the result could not be loaded. Save it as a folder with config.json (timm's save_for_hf), give that."
        )
    return Blueprint(architecture, arguments, tuple(classes), str(known["classifier"]), is_linear)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def backbone_of(source: ModelSource, name: str, *, drop_path: float = 0.0) -> tuple[nn.Module, Blueprint]:
    """A network without a classifier, and how timm builds it, for images of any size where it can.

    Args:
        source: Whose network.
        name: Of the network.
        drop_path: Rate of its last block.

    Raises:
        UserError: timm builds another model from what is known.
    """
    model = source.timm_model(name, num_classes=0, drop_path=0.0)
    plan = blueprint(source, name, model, classes=(), is_linear=True)
    plan = replace(plan, arguments={**plan.arguments, **any_size(model)})
    further = {"drop_path_rate": drop_path} if drop_path else {}
    with torch.random.fork_rng(devices=[]):
        backbone: nn.Module = timm.create_model(plan.architecture, **plan.arguments, **further)
    backbone.load_state_dict(model.state_dict())
    return backbone, plan


def write_model(
    model: nn.Module, plan: Blueprint, *, name: str, folder: Path, preprocessing: Preprocessing, source: str
) -> None:
    """Write a fine-tuned model, and check that timm loads the same; a model that is there is replaced.

    Args:
        model: The trained model.
        plan: How timm builds it.
        name: What to call it.
        folder: Where to.
        preprocessing: How images are prepared for it.
        source: Where it comes from, for the model card.

    Raises:
        UserError: The folder cannot be written.
        RuntimeError: The written model differs from the trained one.
    """
    model = model.cpu().eval()
    with whole_folder(folder) as temporary:
        state = {key: value.contiguous() for key, value in model.state_dict().items()}
        prefix = f"{plan.classifier}."
        inside = {key: value for key, value in state.items() if plan.is_linear or not key.startswith(prefix)}
        _save(inside, temporary / "model.safetensors")
        if not plan.is_linear:
            own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            _save(own, temporary / CLASSIFIER)
        (temporary / "config.json").write_text(json.dumps(_describe(model, plan, preprocessing), indent=1) + "\n")
        (temporary / "README.md").write_text(_card(model, plan, name, folder, preprocessing, source))
        _check(temporary, model, plan, preprocessing)


def _save(weights: dict[str, Tensor], file: Path) -> None:
    file.write_bytes(save(weights, metadata={"format": "pt"}))  # not `save_file`, whose files only their owner reads


def _card(model: nn.Module, plan: Blueprint, name: str, folder: Path, preprocessing: Preprocessing, source: str) -> str:
    return _CARD.format(
        name=name,
        architecture=plan.architecture,
        num_classes=len(plan.classes),
        source=source,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        image_size=preprocessing.image_size,
        folder=folder,
        classifier="" if plan.is_linear else _CARD_OF_MLP.format(folder=folder),
        mean=preprocessing.mean,
        std=preprocessing.std,
    )


def _describe(model: Any, plan: Blueprint, preprocessing: Preprocessing) -> dict[str, Any]:
    """What timm needs to know to build the model and to prepare images for it."""
    known = model.pretrained_cfg
    num_classes = len(plan.classes) if plan.is_linear else 0
    return {
        "architecture": plan.architecture,
        "num_classes": num_classes,
        "num_features": int(model.num_features),
        "label_names": list(plan.classes),
        "model_args": {**plan.arguments, "num_classes": num_classes},
        "pretrained_cfg": {
            "tag": "poa_finetuned",
            "num_classes": num_classes,
            "input_size": [3, preprocessing.image_size, preprocessing.image_size],
            "fixed_input_size": bool(known.get("fixed_input_size")),
            "interpolation": "bicubic",
            "crop_pct": preprocessing.image_size / preprocessing.resize,
            "crop_mode": "center",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "pool_size": None,
            "classifier": known["classifier"],
            "first_conv": known["first_conv"],
        },
    }


@torch.inference_mode()
def _check(folder: Path, model: nn.Module, plan: Blueprint, preprocessing: Preprocessing) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, preprocessing.image_size, preprocessing.image_size, generator=generator)
    loaded: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    found = loaded(images)
    if not plan.is_linear:
        head = model.get_submodule(plan.classifier)
        head.load_state_dict(load_file(folder / CLASSIFIER))
        found = head(found)
    if not torch.equal(found, model(images)):
        raise RuntimeError(f"the model written to {folder} is not the one that was trained; please report this")
