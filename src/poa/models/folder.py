"""Networks in folders that timm loads: what others wrote there is checked before anything is built from it."""

import json
import math
from collections.abc import Mapping
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.data.constants import DEFAULT_CROP_PCT
from torch import nn

from poa.config.channels import RGB, USUAL, Values, values_in
from poa.data.images import Preprocessing
from poa.errors import UserError, counted, first_line
from poa.export.timm import VALUES
from poa.machine.limits import memory_of_machine

MOST_BYTES = 64 * 2**20
"""Of config.json, which may name many classes."""
MOST_BLOCKS = 1000
"""Of a network, or of one of its stages."""
MOST = 2**16
"""Any other number that a network is built from, such as its width."""
MOST_PIXELS = 2048
"""Side of the images that a network is made for."""


class Made(NamedTuple):
    """What timm knows about the images that a network is made for: side in pixels, share of the crop, channels."""

    side: int
    crop_share: float | None
    mean: tuple[float, ...]
    std: tuple[float, ...]


def model_in(folder: Path, *, flag: str) -> tuple[nn.Module, str, Mapping[str, Any]]:
    """The timm model of a folder, in shapes only (meta device), its architecture and its arguments."""
    file = folder / "config.json"
    try:
        if file.stat().st_size > MOST_BYTES:
            raise UserError(f"it is larger than {MOST_BYTES // 2**20} MB")
        content = json.loads(file.read_text(encoding="utf-8"))
        architecture, arguments = str(content["architecture"]), dict(content.get("model_args") or {})
        check_arguments(arguments)
        with torch.device("meta"):
            model = timm.create_model(f"local-dir:{folder}", num_classes=0)
        check_memory(model)
        return model, architecture, arguments
    except Exception as error:  # timm raises all kinds for arguments that it does not expect
        raise UserError(
            f"{flag} {folder}: timm cannot build a model from {file} ({first_line(error)}). "
            "Give a folder that timm.create_model('local-dir:FOLDER') loads."
        ) from None


def check_arguments(arguments: Mapping[str, Any], *, within: str = "") -> None:
    """Refuse numbers that would make building a network endless."""
    for name, value in arguments.items():
        full = f"{within}{name}"
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, Mapping):
                check_arguments(each, within=f"{full}.")
            most = MOST_BLOCKS if any(part in full for part in ("depth", "layers", "blocks")) else MOST
            if isinstance(each, int | float) and not abs(each) <= most:  # nan is neither above nor below
                raise UserError(f"its {full} of {each:.6g} must be a number up to {most}")


def made_for(model: Any, *, name: str) -> Made:
    """What timm knows about the images of a model; a ``UserError`` where that makes no sense."""
    known = model.pretrained_cfg
    try:
        (channels, _, side), crop = map(int, known["input_size"]), known.get("crop_pct")
        mean, std = (tuple(map(float, known[name])) for name in ("mean", "std"))
        share = None if crop is None else float(crop)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(
            f"{name}: its pretrained_cfg has no input_size, mean and std of images: {first_line(error)}"
        ) from None
    classifier = known.get("classifier") or ()
    right = (
        isinstance(classifier, str | list | tuple)
        and all(isinstance(each, str) for each in classifier)
        and 0 < side <= MOST_PIXELS
        and len(mean) == len(std) == channels
        and (share is None or 0.1 <= share <= 2)
        and all(map(math.isfinite, (*mean, *std)))
        and min(std) > 0
    )
    if not right:
        raise UserError(
            f"{name}: its pretrained_cfg cannot be used: input_size {side}, crop_pct {share}, mean {mean}, std {std}, "
            f"classifier {classifier!r}. Correct it in config.json, or choose "
            "another network."
        )
    return Made(side, share, mean, std)


def values_of(folder: Path, made: Made) -> Values:
    """Which channels and bits the network of a folder sees, as the folder says or as many as timm knows.

    Raises:
        UserError: What the folder says makes no sense.
    """
    file = folder / "config.json"
    stated = json.loads(file.read_text(encoding="utf-8")).get(VALUES) if file.is_file() else None
    number = len(made.mean)
    if stated is None:
        return USUAL if number == RGB else Values(number)
    try:
        values = values_in(stated)
    except (AttributeError, TypeError, ValueError):
        values = Values(0)
    if values.number != number:
        raise UserError(
            f"{file}: {VALUES} {stated} does not fit the {counted(number, 'channel')} of the network. Correct it."
        )
    return values


def resized_for(side: int, made: Made, values: Values = USUAL) -> Preprocessing:
    """How images are prepared for a timm model at ``side`` pixels, which need not be those that it is made for."""
    resize = math.floor(side / (made.crop_share or DEFAULT_CROP_PCT) + 1e-6)
    return Preprocessing(side, resize, mean=made.mean, std=made.std, values=values)


def check_memory(model: nn.Module, *, copies: int = 1) -> None:
    """Refuse a network, given in shapes only, whose parameters do not fit into the memory of the machine."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    needed, there = 4 * copies * parameters, memory_of_machine()
    if there is not None and needed > there:
        raise UserError(
            f"its {parameters / 1e6:,.0f} million parameters need {needed / 1e9:,.0f} GB of memory, "
            f"the machine has {there / 1e9:,.0f} GB"
        )


def load_model(folder: Path) -> Any:
    """The timm model of a folder with its weights and its classifier, in evaluation mode, without gradients."""
    model_in(folder, flag="The model of")
    file = folder / "model.safetensors"
    if not file.is_file():
        raise UserError(f"The model of {folder} has no weights: {file.name} is missing. Restore the file.")
    try:
        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except Exception as error:  # of timm, torch and safetensors about files that others may have written
        raise UserError(
            f"The weights in {file} cannot be loaded ({first_line(error)}). Restore the file, or write the model again."
        ) from None
    return model.eval().requires_grad_(False)


def weights_of(path: Path) -> str:
    """What results know the model of a folder, or of a file, by: a digest of its files of weights and settings."""
    files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("*.json")])
    digest = sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as content:
            digest.update(file_digest(content, "sha256").digest())
    return f"{path.resolve().name}, sha256 {digest.hexdigest()[:16]}"
