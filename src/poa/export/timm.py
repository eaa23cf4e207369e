"""Models as folders that timm (and the Hugging Face hub) loads, each compared with what was trained."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from poa.data.images import Preprocessing
from poa.elastic.space import Size
from poa.errors import UserError, counted
from poa.families.base import Backbone, Family, Features
from poa.files import for_models, whole_folder
from poa.text import markdown_text, note, plain_console, python_literal, unicode_text

CLASSIFIER = "classifier.safetensors"
"""File of a classifier that timm cannot build."""
_CARD = """---
library_name: timm
tags: [{task}, timm]
---
# {name}

{summary}

```python
{code}
```

{notes}
"""
_CODE_SIZE = """import timm

model = timm.create_model({folder}, pretrained=True)  # num_classes=10 adds a classifier"""
_CODE_FINETUNED = """import timm

model = timm.create_model({folder}, pretrained=True)
classes = model.pretrained_cfg["label_names"]"""
_NOTE_MLP = """The model returns features. Its classifier, two layers with GELU between them, is a separate file:

```python
from safetensors.torch import load_file

weights = load_file({file})  # 0.weight, 0.bias, 2.weight, 2.bias
```

"""


@dataclass(frozen=True, slots=True)
class Blueprint:
    """How timm builds a model.

    Attributes:
        architecture: timm's name.
        arguments: Further arguments; JSON can hold them.
        classes: Names of the classes, in the order of the outputs; None for a size cut out of a run.
        classifier: Name, in the model, of a classifier that timm cannot build, which is written to a file of its own.
    """

    architecture: str
    arguments: Mapping[str, Any]
    classes: tuple[str, ...] | None = None
    classifier: str | None = None


def write_model(
    model: nn.Module,
    blueprint: Blueprint,
    folder: Path,
    *,
    preprocessing: Preprocessing,
    card: str,
    reference: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Write a timm model, moved to the CPU, with ``card`` as its README.md; a folder that is there is replaced.

    What timm then loads has to give the same features as ``reference``, bit for bit (by default as the model itself),
    else a ``RuntimeError`` is raised and nothing is left.
    """
    model = model.cpu().eval()
    with whole_folder(folder) as unfinished:
        for name, content in _files(model, blueprint, preprocessing, card).items():
            (unfinished / name).write_bytes(content)
        _check(unfinished, model, blueprint, reference or model, image_size=preprocessing.image_size)


def _files(model: nn.Module, blueprint: Blueprint, preprocessing: Preprocessing, card: str) -> dict[str, bytes]:
    """The content of each file of a folder."""
    prefix = None if blueprint.classifier is None else f"{blueprint.classifier}."
    state = model.state_dict()
    own = {key.removeprefix(prefix): value for key, value in state.items() if prefix and key.startswith(prefix)}
    rest = {key: value for key, value in state.items() if not (prefix and key.startswith(prefix))}
    return {
        "model.safetensors": _bytes_of(rest),
        **({CLASSIFIER: _bytes_of(own)} if prefix else {}),
        "config.json": (json.dumps(_config(model, blueprint, preprocessing), indent=1) + "\n").encode(),
        "README.md": card.encode(),
    }


def save_weights(weights: Mapping[str, Tensor], file: Path) -> None:
    """Write weights to a file that everybody may read, unlike those of safetensors' own ``save_file``."""
    file.write_bytes(_bytes_of(weights))


def _bytes_of(weights: Mapping[str, Tensor]) -> bytes:
    contiguous = {name: value.contiguous() for name, value in weights.items()}
    content: bytes = save(contiguous, metadata={"format": "pt"})
    return content


def model_card(*, task: str, name: str, summary: str, code: str, notes: str) -> str:
    """The README.md of a model, as the Hugging Face hub shows it; ``task`` is one of the hub's."""
    return _CARD.format(task=task, name=markdown_text(name), summary=summary, code=code, notes=notes)


def local_dir(folder: Path) -> str:
    """What timm's ``create_model`` is given to load a folder, as a Python program has it."""
    return python_literal(f"local-dir:{folder}")


def unlike(folder: Path) -> RuntimeError:
    """The error of a written model that does something else than the trained one."""
    return RuntimeError(f"the model written to {folder} is not the one that was trained; please report this")


def num_parameters(*models: nn.Module) -> int:
    """Values in all parameters together."""
    return sum(parameter.numel() for model in models for parameter in model.parameters())


def write_size(
    network: Backbone,
    elastic: Callable[..., Features],
    *,
    family: Family,
    size: Size,
    folder: Path,
    preprocessing: Preprocessing,
    source: str,
) -> Path:
    """Write a size of a run as a plain timm model, compared with the same size run in place (``elastic``).

    The folder must be new or empty, or hold just this already, as a command that was stopped left it; then it is kept,
    and a note says so. ``source`` says on the model card where the weights come from.
    """
    blueprint = Blueprint(*family.timm_config(size))
    card = model_card(
        task="image-feature-extraction",
        name=str(size),
        summary=f"{type(network.model).__name__} of size {size} (width x depth), cut out of one elastic pre-training "
        f"({markdown_text(source)}).\n{num_parameters(network.model):,} parameters, {preprocessing.image_size} pixels, "
        "no classifier.",
        code=_CODE_SIZE.format(folder=local_dir(folder)),
        notes=images_note(preprocessing),
    )
    if for_models(folder).exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not _holds(folder, _files(network.model, blueprint, preprocessing, card)):
            raise UserError(f"{folder} already exists. Choose another --out, or delete it first.")
        note(plain_console(stderr=True), f"{folder} already holds this model, with the same weights. It is kept.")
        return folder
    write_model(
        network.model,
        blueprint,
        folder,
        preprocessing=preprocessing,
        card=card,
        reference=lambda images: elastic(images).cls,
    )
    return folder


def _holds(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Whether a folder has these files, with this content, and no others."""
    return (
        folder.is_dir()
        and {path.name for path in folder.iterdir()} == files.keys()
        and all(path.is_file() and path.read_bytes() == files[path.name] for path in folder.iterdir())
    )


def write_finetuned(
    model: nn.Module, blueprint: Blueprint, *, name: str, folder: Path, preprocessing: Preprocessing, source: str
) -> None:
    """Write a fine-tuned model with the names of its classes."""
    mlp = "" if blueprint.classifier is None else _NOTE_MLP.format(file=python_literal(str(folder / CLASSIFIER)))
    card = model_card(
        task="image-classification",
        name=name,
        summary=f"{type(model).__name__}, fine-tuned on {counted(len(blueprint.classes or ()), 'class')} "
        f"({markdown_text(source)}).\n"
        f"{num_parameters(model):,} parameters, {preprocessing.image_size} pixels.",
        code=_CODE_FINETUNED.format(folder=local_dir(folder)),
        notes=f"{mlp}{images_note(preprocessing)}",
    )
    write_model(model, blueprint, folder, preprocessing=preprocessing, card=card)


def images_note(preprocessing: Preprocessing) -> str:
    """How a model card says what images have to be."""
    return f"Images: RGB in 0..1, mean {preprocessing.mean}, standard deviation {preprocessing.std}."


def _config(model: Any, blueprint: Blueprint, preprocessing: Preprocessing) -> dict[str, Any]:
    """What timm needs to know to build the model and to prepare images for it."""
    known, classes = model.pretrained_cfg, blueprint.classes
    num_classes = 0 if blueprint.classifier else len(classes or ())
    return {
        "architecture": blueprint.architecture,
        "num_classes": num_classes,
        "num_features": int(model.num_features),
        **({} if classes is None else {"label_names": list(map(unicode_text, classes))}),
        "model_args": {name: value for name, value in blueprint.arguments.items() if name != "num_classes"},
        "pretrained_cfg": {
            "tag": "poa" if classes is None else "poa_finetuned",
            "num_classes": num_classes,
            "input_size": [3, preprocessing.image_size, preprocessing.image_size],
            "fixed_input_size": classes is not None and bool(known.get("fixed_input_size")),
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
def _check(
    folder: Path, model: nn.Module, blueprint: Blueprint, reference: Callable[[Tensor], Tensor], *, image_size: int
) -> None:
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    found = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images)
    if blueprint.classifier is not None:
        head = model.get_submodule(blueprint.classifier)
        head.load_state_dict(load_file(folder / CLASSIFIER))
        found = head(found)
    if not torch.equal(found, reference(images)):
        raise unlike(folder)
