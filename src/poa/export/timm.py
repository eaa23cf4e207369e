"""Hand a size out as a plain timm model: a folder that timm loads by itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors.torch import save

from poa.elastic.space import Size
from poa.errors import UserError
from poa.families.base import Backbone, Family, Features
from poa.files import whole_folder

CARD = """---
library_name: timm
tags: [image-feature-extraction, timm]
---
# {size}

A {architecture} of size {size} (width x depth), cut out of one elastic pre-training ({source}).
{parameters:,} parameters, {image_size} pixels, no classifier.

```python
import timm

model = timm.create_model("local-dir:{folder}", pretrained=True)  # num_classes=10 adds a classifier
```

Images: RGB in 0..1, mean {mean}, standard deviation {std}.
"""


class Preparation(NamedTuple):
    """How images are prepared for a network.

    Attributes:
        mean: Channel means, of values in 0..1.
        std: Channel standard deviations.
        crop: Share of the resized image that the centre crop keeps.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop: float


def export(
    network: Backbone,
    elastic: Callable[..., Features],
    *,
    family: Family,
    size: Size,
    folder: Path,
    preparation: Preparation,
    source: str,
) -> Path:
    """Write a size, and check what was written: timm's model must give the elastic sub-network's features, bit for bit.

    Args:
        network: The size as a network of its own.
        elastic: The size run in place, to compare with.
        family: Of the network.
        size: Which one.
        folder: Where to; must be new or empty.
        preparation: How images are prepared for the network.
        source: Where the weights come from, for the model card.

    Returns:
        The folder.

    Raises:
        UserError: The folder is in use or cannot be written.
        RuntimeError: The written model differs from the sub-network.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} already exists. Choose another --out, or delete it first.")
    card = CARD.format(
        size=size,
        architecture=type(network.model).__name__,
        source=source,
        parameters=sum(parameter.numel() for parameter in network.model.parameters()),
        image_size=family.image_size,
        folder=folder,
        mean=preparation.mean,
        std=preparation.std,
    )
    with whole_folder(folder) as temporary:
        _write_weights(network, temporary)
        (temporary / "config.json").write_text(
            json.dumps(_describe(network, family, size, preparation), indent=1) + "\n"
        )
        (temporary / "README.md").write_text(card)
        _check(temporary, elastic, image_size=family.image_size)
    return folder


def _write_weights(network: Backbone, folder: Path) -> None:
    weights = {name: value.contiguous() for name, value in network.model.state_dict().items()}
    # not `save_file`, whose files only their owner can read
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))


def _describe(network: Backbone, family: Family, size: Size, preparation: Preparation) -> dict[str, Any]:
    """What timm needs to know to build the model and to prepare images for it."""
    architecture, arguments = family.timm_config(size)
    known: Any = network.model.pretrained_cfg
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": network.num_features,
        "model_args": dict(arguments),
        "pretrained_cfg": {
            "tag": "poa",
            "num_classes": 0,
            "input_size": [3, family.image_size, family.image_size],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": preparation.crop,
            "crop_mode": "center",
            "mean": list(preparation.mean),
            "std": list(preparation.std),
            "pool_size": None,
            "classifier": known["classifier"],
            "first_conv": known["first_conv"],
        },
    }


@torch.inference_mode()
def _check(folder: Path, elastic: Callable[..., Features], *, image_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, image_size, image_size, generator=generator)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    if not torch.equal(model(images), elastic(images).cls):
        raise RuntimeError(f"the model written to {folder} is not the sub-network that was trained; please report this")
