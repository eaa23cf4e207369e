"""Hand a detector out as a folder: the backbone for timm, all else beside it, and a program that puts them together."""

import importlib.util
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads

from poa.data.images import Preprocessing
from poa.export.finetuned import Blueprint, write_model
from poa.files import whole_folder
from poa.tasks.detection.model import DetectorPlan
from poa.tasks.detection.standalone import program

HEAD = "head.safetensors"
PROGRAM = "detector.py"
DESCRIPTION = "detection.json"
_BACKBONE = "backbone.maps.model."
"""What the names of the backbone's weights begin with."""
_CARD = """---
library_name: timm
tags: [object-detection, timm]
---
# {name}

A {head} on a {architecture} for {num_classes} classes ({source}).
{parameters:,} parameters, images of {side} pixels on their shorter side.

```python
import sys

sys.path.insert(0, "{folder}")
from detector import load

detector = load()
found = detector([image])[0]
```

`image`: RGB in 0..1, 3 x height x width, of any size; several make a longer list. `found`: {found}, in
pixels of the image. The label `n` is the `n`-th of the `categories` in `{description}`, counted from 1.
`detector.py` needs timm, torchvision and safetensors. What it loads is torchvision's `GeneralizedRCNN`, which can be
trained further as torchvision's own.
"""


@dataclass(frozen=True, slots=True)
class Description:
    """What is to be known of a detector besides its weights.

    Attributes:
        plan: How it is put together.
        categories: Names by id, in the order of the labels.
        image_size: Side of the square images that the backbone is made for, in pixels.
        source: Where the network comes from.
    """

    plan: DetectorPlan
    categories: Mapping[int, str]
    image_size: int
    source: str


def write_detector(network: Any, blueprint: Blueprint, about: Description, *, name: str, folder: Path) -> None:
    """Write a detector, and check that what is read back does the same; one that is there is replaced.

    Args:
        network: As trained; moved to the CPU.
        blueprint: How timm builds its backbone.
        about: What else is to be known.
        name: What to call it.
        folder: Where to.

    Raises:
        UserError: The folder cannot be written.
        RuntimeError: What is read back differs.
    """
    network = network.cpu().eval()
    plan, size = about.plan, about.image_size
    mean, std = ((first, second, third) for first, second, third in (plan.mean, plan.std))
    with whole_folder(folder) as temporary:
        write_model(
            network.backbone.maps.model,
            blueprint,
            name=name,
            folder=temporary,
            preprocessing=Preprocessing(size, size, mean, std),
            source=about.source,
        )
        state = {key: value.contiguous() for key, value in network.state_dict().items() if not _is_backbone(key)}
        (temporary / HEAD).write_bytes(save(state, metadata={"format": "pt"}))
        (temporary / PROGRAM).write_text(program(description=DESCRIPTION, head=HEAD, prefix=_BACKBONE))
        (temporary / DESCRIPTION).write_text(json.dumps(_describe(about), indent=1) + "\n")
        (temporary / "README.md").write_text(_card(network, blueprint, about, name=name, folder=folder))
        _check(network, temporary, side=plan.side)


def _is_backbone(name: str) -> bool:
    return name.startswith(_BACKBONE)


def _describe(about: Description) -> Mapping[str, Any]:
    categories = [{"id": number, "name": name} for number, name in about.categories.items()]
    return {"categories": categories, "plan": asdict(about.plan)}


def _card(network: Any, blueprint: Blueprint, about: Description, *, name: str, folder: Path) -> str:
    plan = about.plan
    return _CARD.format(
        name=name,
        head=plan.head,
        architecture=blueprint.architecture,
        num_classes=plan.num_classes,
        source=about.source,
        parameters=sum(each.numel() for each in network.parameters()),
        side=plan.side,
        folder=folder,
        found="`boxes` (left, top, right, bottom), `labels`, `scores`" + (" and `masks`" if plan.has_masks else ""),
        description=DESCRIPTION,
    )


def _detections(network: Any, image: Tensor) -> Mapping[str, Tensor]:
    """What is detected, however unlikely: a threshold might leave nothing to compare."""
    heads = [each for each in network.modules() if isinstance(each, RoIHeads)]
    thresholds = [each.score_thresh for each in heads]
    for each in heads:
        each.score_thresh = 0.0
    detections: Mapping[str, Tensor] = network([image])[0]
    for each, threshold in zip(heads, thresholds, strict=True):
        each.score_thresh = threshold
    return detections


@torch.inference_mode()
def _check(network: Any, folder: Path, *, side: int) -> None:
    """As the model card says."""
    spec = importlib.util.spec_from_file_location("detector", folder / PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    image = torch.rand(3, side, side + side // 4, generator=torch.Generator().manual_seed(0))
    found, expected = (_detections(each, image) for each in (module.load(folder), network))
    if found.keys() != expected.keys() or not all(torch.equal(found[key], expected[key]) for key in expected):
        raise RuntimeError(f"the detector written to {folder} is not the one that was trained; please report this")
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
