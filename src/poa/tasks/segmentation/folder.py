"""Hand a segmentation network out as a folder: the backbone for timm, the head beside it, and how they fit together."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from poa.data.images import Preprocessing
from poa.export.finetuned import Blueprint, write_model
from poa.files import whole_folder
from poa.tasks.segmentation.model import LinearHead, Segmenter

HEAD = "head.safetensors"
PROGRAM = "segmenter.pt2"
DESCRIPTION = "segmentation.json"
_LARGEST_BATCH = 4096
_CARD = """---
library_name: timm
tags: [image-segmentation, timm]
---
# {name}

A {architecture} with {head} head for {num_classes} classes ({source}).
{parameters:,} parameters, windows of {window} pixels.

```python
{code}
```

Images: RGB in 0..1, mean {mean}, standard deviation {std}, sides that are multiples of {multiple}.
The names of the classes, in the order of the scores, are `classes` in `{description}`.
"""
_CODE_LINEAR = """import timm, torch
from safetensors.torch import load_file
from torch.nn.functional import interpolate

backbone = timm.create_model("local-dir:{folder}", pretrained=True).eval()
head = torch.nn.Sequential(torch.nn.BatchNorm2d({channels}), torch.nn.Conv2d({channels}, {num_classes}, 1)).eval()
head.load_state_dict(load_file("{folder}/head.safetensors"))
maps = backbone.forward_intermediates(images, indices={indices}, norm=True, intermediates_only=True)
maps = torch.cat([interpolate(each, maps[0].shape[2:], mode="bilinear") for each in maps], dim=1)
scores = interpolate(head(maps), images.shape[2:], mode="bilinear")"""
_CODE_PROGRAM = """import torch

segmenter = torch.export.load("{folder}/segmenter.pt2").module()
scores = segmenter(images)  # of {window}x{window} pixels, any number of them"""


@dataclass(frozen=True, slots=True)
class Description:
    """What is to be known of a network besides its weights.

    Attributes:
        classes: Names, in the order of the scores.
        ignore: Id of pixels without a class.
        window: Side of the windows in pixels.
        preprocessing: How images are prepared.
        source: Where the network comes from.
    """

    classes: tuple[str, ...]
    ignore: int
    window: int
    preprocessing: Preprocessing
    source: str


def write_segmenter(network: Segmenter, plan: Blueprint, about: Description, *, name: str, folder: Path) -> None:
    """Write a network, and check that what is read back does the same; one that is there is replaced.

    Args:
        network: As trained; moved to the CPU.
        plan: How timm builds its backbone.
        about: What else is to be known.
        name: What to call it.
        folder: Where to.

    Raises:
        UserError: The folder cannot be written.
        RuntimeError: What is read back differs.
    """
    network = network.cpu().eval()
    with whole_folder(folder) as temporary:
        write_model(
            network.maps.model,
            plan,
            name=name,
            folder=temporary,
            preprocessing=about.preprocessing,
            source=about.source,
        )
        state = {key: value.contiguous() for key, value in _head(network).state_dict().items()}
        (temporary / HEAD).write_bytes(save(state, metadata={"format": "pt"}))
        is_linear = isinstance(network.head, LinearHead)
        if not is_linear:
            _write_program(network, temporary / PROGRAM, window=_whole(about.window, network))
        (temporary / DESCRIPTION).write_text(json.dumps(_describe(network, about), indent=1) + "\n")
        (temporary / "README.md").write_text(_card(network, plan, about, name=name, folder=folder))
        (_check_linear if is_linear else _check_program)(network, temporary, window=_whole(about.window, network))


def _head(network: Segmenter) -> nn.Module:
    """What is saved of the head: a linear one's plain layers."""
    return network.head.layers if isinstance(network.head, LinearHead) else network.head


def _whole(window: int, network: Segmenter) -> int:
    """The window, made larger by as little as the backbone needs."""
    return window + -window % network.maps.multiple


def _indices(network: Segmenter) -> list[int]:
    """What timm's ``forward_intermediates`` is asked for so that it gives what the head sees."""
    maps = network.maps
    return [maps.indices[maps.different.index(number)] for number in maps.different if number in network.seen] or [
        maps.indices[-1]
    ]


def _describe(network: Segmenter, about: Description) -> Mapping[str, Any]:
    return {
        "classes": list(about.classes),
        "ignore": about.ignore,
        "indices": _indices(network),
        "levels": [[level.channels, level.stride] for level in network.maps.levels],
        "window": about.window,
        "multiple": network.maps.multiple,
        "mean": list(about.preprocessing.mean),
        "std": list(about.preprocessing.std),
    }


def _card(network: Segmenter, plan: Blueprint, about: Description, *, name: str, folder: Path) -> str:
    is_linear = isinstance(network.head, LinearHead)
    code = (_CODE_LINEAR if is_linear else _CODE_PROGRAM).format(
        folder=folder,
        channels=sum(network.maps.levels[number].channels for number in network.seen),
        num_classes=len(about.classes),
        indices=_indices(network),
        window=_whole(about.window, network),
    )
    return _CARD.format(
        name=name,
        architecture=plan.architecture,
        head="a linear" if is_linear else "an UperNet",
        num_classes=len(about.classes),
        source=about.source,
        parameters=sum(each.numel() for part in (network.maps, network.head) for each in part.parameters()),
        window=about.window,
        code=code,
        mean=about.preprocessing.mean,
        std=about.preprocessing.std,
        multiple=network.maps.multiple,
        description=DESCRIPTION,
    )


@torch.no_grad()
def _write_program(network: Segmenter, file: Path, *, window: int) -> None:
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    program = torch.export.export(network, (_images(window),), dynamic_shapes=({0: batch},))
    torch.export.save(program, file)


def _images(window: int) -> Tensor:
    return torch.randn(2, 3, window, window, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def _check_linear(network: Segmenter, folder: Path, *, window: int) -> None:
    """As the model card says."""
    images, head = _images(window), _head(network)
    expected = network(images)
    backbone: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    maps = backbone.forward_intermediates(images, indices=_indices(network), norm=True, intermediates_only=True)
    maps = torch.cat([F.interpolate(each, maps[0].shape[2:], mode="bilinear") for each in maps], dim=1)
    head.load_state_dict(load_file(folder / HEAD))
    _compare(F.interpolate(head(maps), images.shape[2:], mode="bilinear"), expected, folder)


@torch.inference_mode()
def _check_program(network: Segmenter, folder: Path, *, window: int) -> None:
    images = _images(window)
    _compare(torch.export.load(folder / PROGRAM).module()(images), network(images), folder)


def _compare(found: Tensor, expected: Tensor, folder: Path) -> None:
    if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())):
        raise RuntimeError(f"the network written to {folder} is not the one that was trained; please report this")
