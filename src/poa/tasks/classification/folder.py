"""Fine-tuned models read back from their folders."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import timm
from safetensors.torch import load_file
from torch import Tensor, nn

from poa.data.images import Preprocessing
from poa.errors import UserError, first_line
from poa.export.timm import CLASSIFIER
from poa.models.folder import made_for, model_in, resized_for


class Classifier(NamedTuple):
    """A network from normalised images to logits of the classes, in evaluation mode."""

    network: nn.Module
    classes: tuple[str, ...]
    preprocessing: Preprocessing


def is_classifier(folder: Path) -> bool:
    """Whether a folder holds a model with the names of its classes."""
    try:
        return bool(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("label_names"))
    except (OSError, ValueError, AttributeError):
        return False


def read_classifier(folder: Path, *, image_size: int | None = None) -> Classifier:
    """Read a fine-tuned model, for images of ``image_size`` pixels or those that it is made for.

    Raises:
        UserError: The folder does not hold such a model as it was written.
    """
    shapes, _, _ = model_in(folder, flag="The network of")
    made = made_for(shapes, name=str(folder))
    side = image_size or made.side
    known: Any = shapes.pretrained_cfg
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        own = {"img_size": side} if side != made.side and known.get("fixed_input_size") else {}
        model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True, **own)
        if (folder / CLASSIFIER).exists():
            model = nn.Sequential(model, _two_layers(load_file(folder / CLASSIFIER)))
    except Exception as error:  # of timm and safetensors about damaged files
        raise UserError(
            f"{folder} does not hold a whole fine-tuned model ({first_line(error)}). Restore its files, or fine-tune "
            "again."
        ) from None
    return Classifier(
        model.eval().requires_grad_(False),
        tuple(map(str, content["label_names"])),
        resized_for(side, made),
    )


def _two_layers(weights: dict[str, Tensor]) -> nn.Module:
    (hidden, width), num_classes = weights["0.weight"].shape, len(weights["2.bias"])
    head = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, num_classes))
    head.load_state_dict(weights)
    return head
