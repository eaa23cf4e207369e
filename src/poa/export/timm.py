"""Models as folders that timm and transformers load, each compared with what was trained."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from poa.config.channels import USUAL
from poa.data.images import Preprocessing
from poa.elastic.plan import even_blocks
from poa.elastic.space import Size
from poa.errors import UserError, counted
from poa.export.card import CARD, Origin, Use, model_card
from poa.families.base import Backbone, Family, Features
from poa.files import for_models, whole_file, whole_folder
from poa.text import note, plain_console, unicode_text

CLASSIFIER = "classifier.safetensors"
"""File of a classifier that timm cannot build."""
CONFIG, WEIGHTS = "config.json", "model.safetensors"
VALUES = "values"
"""Key of a config by which poa knows which channels and bits of images a network sees; timm passes over it."""
EXPORTED = "exported"
"""Folder of the files that ``poa export`` makes of a model, in that of the model."""
_OURS = {CONFIG, WEIGHTS, CLASSIFIER, CARD, EXPORTED}
"""What is in the folder of a model."""
TIMM = """import timm
from PIL import Image

model = timm.create_model("local-dir:.", pretrained=True).eval()
prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
{found} = model(prepare(Image.open("photo.jpg").convert("RGB"))[None])"""
TIMM_VALUES = """import numpy as np
import timm
import torch

model = timm.create_model("local-dir:.", pretrained=True).eval()
stored = np.load("image.npy")  # {number} x {side} x {side} values, as in the files of images
largest = np.iinfo(stored.dtype).max if stored.dtype.kind == "u" else 1
values = ((stored.astype(np.float32) - {low}) / ({high} - {low})).clip(0, 1)
mean, std = (np.float32(model.pretrained_cfg[name]).reshape(-1, 1, 1) for name in ("mean", "std"))
{found} = model(torch.from_numpy((values - mean) / std)[None])"""
_TIMM_CLASSES = f"""{TIMM.format(found="scores")}
names = model.pretrained_cfg["label_names"]
print(names[int(scores.argmax())])"""
_TIMM_MLP = f"""{TIMM.format(found="features")}

from safetensors.torch import load_file
from torch import nn

weights = load_file("{CLASSIFIER}")
first, last = weights["0.weight"], weights["2.weight"]
classifier = nn.Sequential(nn.Linear(*first.T.shape), nn.GELU(), nn.Linear(*last.T.shape))
classifier.load_state_dict(weights)
scores = classifier(features)
print(model.pretrained_cfg["label_names"][int(scores.argmax())])"""
_TRANSFORMERS = """from PIL import Image
from transformers import AutoImageProcessor, AutoModel

prepare, model = AutoImageProcessor.from_pretrained("."), AutoModel.from_pretrained(".")
features = model(**prepare(Image.open("photo.jpg").convert("RGB"))).pooler_output"""
_TRANSFORMERS_CLASSES = """from transformers import pipeline

print(pipeline("image-classification", model=".")("photo.jpg"))"""
_ONNX = """from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

image = Image.open("photo.jpg").convert("RGB")
shorter = min(image.size)
image = image.resize([{resize} * side // shorter for side in image.size], Image.Resampling.BICUBIC)
left, top = (round((side - {side}) / 2) for side in image.size)
pixels = np.asarray(image.crop((left, top, left + {side}, top + {side})), np.float32) / 255
pixels = (pixels - np.float32({mean})) / np.float32({std})
session = onnxruntime.InferenceSession(next(Path("{exported}").glob("*.onnx")))
({found},) = session.run(None, {{"images": pixels.transpose(2, 0, 1)[None]}})"""
_MAKE_ONNX = "`poa export . --format onnx`, run here once, writes a file that needs neither poa nor torch."


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
    """Write a timm model, moved to the CPU, with ``card`` as its model card; a folder that is there is replaced.

    What timm then loads has to give the same features as ``reference``, bit for bit (by default as the model itself),
    else a ``RuntimeError`` is raised and nothing is left.
    """
    model = model.cpu().eval()
    with whole_folder(folder) as unfinished:
        for name, content in _files(model, blueprint, preprocessing, card).items():
            (unfinished / name).write_bytes(content)
        _check(unfinished, model, blueprint, reference or model, preprocessing)


def _files(model: nn.Module, blueprint: Blueprint, preprocessing: Preprocessing, card: str) -> dict[str, bytes]:
    """The content of each file of a folder."""
    prefix = None if blueprint.classifier is None else f"{blueprint.classifier}."
    state = model.state_dict()
    own = {key.removeprefix(prefix): value for key, value in state.items() if prefix and key.startswith(prefix)}
    rest = {key: value for key, value in state.items() if not (prefix and key.startswith(prefix))}
    return {
        WEIGHTS: _bytes_of(rest),
        **({CLASSIFIER: _bytes_of(own)} if prefix else {}),
        CONFIG: (json.dumps(_config(model, blueprint, preprocessing), indent=1) + "\n").encode(),
        CARD: card.encode(),
    }


def save_weights(weights: Mapping[str, Tensor], file: Path) -> None:
    """Write weights to a file that everybody may read, unlike those of safetensors' own ``save_file``."""
    file.write_bytes(_bytes_of(weights))


def _bytes_of(weights: Mapping[str, Tensor]) -> bytes:
    contiguous = {name: value.contiguous() for name, value in weights.items()}
    content: bytes = save(contiguous, metadata={"format": "pt"})
    return content


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
    origin: Origin,
    overwrite: bool = False,
) -> Path:
    """Write a size as a plain timm model, compared with the same size run in place (``elastic``).

    The folder must be new or empty, or hold just this already, as a command that was stopped left it; then it is kept,
    and a note says so. With ``overwrite`` it may also hold another model that was written here.
    """
    blueprint = Blueprint(*family.timm_config(size))
    card = model_card(
        task="image-feature-extraction",
        name=str(size),
        summary=f"{type(network.model).__name__} of size {size} (width x depth), cut out of one elastic network. "
        f"{num_parameters(network.model):,} parameters, {network.num_features} features an image, "
        "no classifier.",
        uses=uses(preprocessing, found="features"),
        preprocessing=preprocessing,
        model=network_facts(network.model, blueprint) | _cut_facts(family, size),
        origin=origin,
    )
    if for_models(folder).exists() and (not folder.is_dir() or any(folder.iterdir())):
        files = _files(network.model, blueprint, preprocessing, card)
        if _holds(folder, {name: content for name, content in files.items() if name != CARD}):
            _keep(folder, card, overwrite=overwrite)
            return folder
        _check_replaceable(folder, overwrite=overwrite)
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
    """Whether a folder has these files, with this content."""
    return all((folder / name).is_file() and (folder / name).read_bytes() == files[name] for name in files)


def _keep(folder: Path, card: str, *, overwrite: bool) -> None:
    """Leave a model as it is, and say so; with ``overwrite`` renew its card, which may tell of fewer scores."""
    file, told = folder / CARD, "It is kept."
    if not _holds(folder, {CARD: card.encode()}):
        told = f"It is kept; --overwrite writes its {CARD} again."
        if overwrite:
            with whole_file(file) as temporary:
                temporary.write_text(card, encoding="utf-8")
            told = f"It is kept, and its {CARD} is written again."
    note(plain_console(stderr=True), f"{folder} already holds this model, with the same weights. {told}")


def _check_replaceable(folder: Path, *, overwrite: bool) -> None:
    """See that a folder may be replaced: it is to be, and all in it is part of models or made of them."""
    if not overwrite:
        raise UserError(f"{folder} already exists. Choose another --out, or replace the model there with --overwrite.")
    if not folder.is_dir() or not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds no model, so that --overwrite does not replace it. Choose another --out.")
    others = sorted(path.name for path in folder.iterdir() if path.name not in _OURS)
    if others:
        raise UserError(
            f"{folder} also holds {others[0]}, which is no part of a model and would be lost. Move it elsewhere, or "
            "choose another --out."
        )


def write_finetuned(
    model: nn.Module, blueprint: Blueprint, *, name: str, folder: Path, preprocessing: Preprocessing, origin: Origin
) -> None:
    """Write a fine-tuned model with the names of its classes."""
    classes = blueprint.classes or ()
    ways = uses(preprocessing, found="logits")
    if blueprint.classifier is not None:
        before = "The model returns features. Its classifier, two layers with GELU between them, is a separate file."
        ways = [Use("timm", _TIMM_MLP, before), *uses(preprocessing, found="features")[1:2], *ways[2:]]
    card = model_card(
        task="image-classification",
        name=name,
        summary=f"{type(model).__name__}, fine-tuned on {counted(len(classes), 'class')}. "
        f"{num_parameters(model):,} parameters.",
        uses=ways,
        preprocessing=preprocessing,
        model=network_facts(model, blueprint),
        origin=origin,
        classes=classes,
    )
    write_model(model, blueprint, folder, preprocessing=preprocessing, card=card)


def uses(preprocessing: Preprocessing, *, found: str) -> list[Use]:
    """How timm, transformers and ONNX Runtime load a model that gives ``features``, or ``logits`` of classes."""
    if preprocessing.values != USUAL:
        low, high = preprocessing.values.range or (0, "largest")
        values = {"low": low, "high": high, "side": preprocessing.image_size, "number": preprocessing.values.number}
        return [Use("timm", TIMM_VALUES.format(found=found, **values))]
    is_classifier = found == "logits"
    onnx = _ONNX.format(
        resize=preprocessing.resize,
        side=preprocessing.image_size,
        mean=list(preprocessing.mean),
        std=list(preprocessing.std),
        found=found,
        exported=EXPORTED,
    )
    return [
        Use("timm", _TIMM_CLASSES if is_classifier else TIMM.format(found=found)),
        Use("transformers", _TRANSFORMERS_CLASSES if is_classifier else _TRANSFORMERS),
        Use("ONNX Runtime", onnx, _MAKE_ONNX),
    ]


def network_facts(model: Any, blueprint: Blueprint, *, part: str = "") -> dict[str, str]:
    """What a card says about a timm model: how timm builds it, and how large it is; each named as of a ``part``."""
    arguments = {name: value for name, value in blueprint.arguments.items() if name != "num_classes"}
    told = ", ".join(f"{name} {json.dumps(value)}" for name, value in arguments.items())
    return {
        f"{part}architecture": f"{blueprint.architecture} of timm {timm.__version__}"
        + (f" with {told}" if told else ""),
        f"{part}parameters": f"{num_parameters(model):,}",
        f"{part}features": str(int(model.num_features)),
    }


def _cut_facts(family: Family, size: Size) -> dict[str, str]:
    """Which part of the intact network a size is."""
    intact = family.space.intact
    if size == intact:
        return {"part": "all of the network that was trained"}
    kept = [
        f"{', '.join(map(str, even_blocks(whole.blocks, part.blocks)))} of {whole.blocks}"
        for whole, part in zip(family.stages(intact), family.stages(size), strict=True)
    ]
    return {"part": f"of {intact}: width {size.width} of {intact.width}; blocks, counted from 0: {'; '.join(kept)}"}


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
        **({VALUES: stated} if (stated := preprocessing.values.stated()) else {}),
        "pretrained_cfg": {
            "tag": "poa" if classes is None else "poa_finetuned",
            "num_classes": num_classes,
            "input_size": [preprocessing.values.number, preprocessing.image_size, preprocessing.image_size],
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
    folder: Path,
    model: nn.Module,
    blueprint: Blueprint,
    reference: Callable[[Tensor], Tensor],
    preprocessing: Preprocessing,
) -> None:
    sides = (preprocessing.image_size,) * 2
    images = torch.randn(2, preprocessing.values.number, *sides, generator=torch.Generator().manual_seed(0))
    found = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images)
    if blueprint.classifier is not None:
        head = model.get_submodule(blueprint.classifier)
        head.load_state_dict(load_file(folder / CLASSIFIER))
        found = head(found)
    if not torch.equal(found, reference(images)):
        raise unlike(folder)
