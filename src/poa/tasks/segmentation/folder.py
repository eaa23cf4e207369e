"""A segmentation network as a folder: the backbone for timm, the head beside it, and how they fit together."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from poa.config.segmentation import Segmentation
from poa.data.images import Preprocessing
from poa.errors import UserError, counted, first_line
from poa.export.card import Origin, Use, model_card
from poa.export.program import traced, write_program
from poa.export.timm import Blueprint, network_facts, num_parameters, save_weights, unlike, write_model
from poa.files import whole_folder
from poa.models.folder import load_model
from poa.tasks.maps import Maps
from poa.tasks.segmentation.model import LinearHead, Segmenter
from poa.tasks.segmentation.predict import usual_stride
from poa.text import unicode_text

HEAD, PROGRAM, DESCRIPTION = "head.safetensors", "segmenter.pt2", "segmentation.json"
_OF_TEST = ("resize", "stride", "whole", "test_scales", "test_flip")
"""Settings by which masks are predicted; older folders do not have them."""
_CODE_LINEAR = """import timm, torch
from safetensors.torch import load_file
from torch.nn.functional import interpolate

backbone = timm.create_model("local-dir:.", pretrained=True).eval()
head = torch.nn.Sequential(torch.nn.BatchNorm2d({channels}), torch.nn.Conv2d({channels}, {num_classes}, 1)).eval()
head.load_state_dict(load_file("{head}"))
maps = backbone.forward_intermediates(images, indices={indices}, norm=True, intermediates_only=True)
maps = torch.cat([interpolate(each, maps[0].shape[2:], mode="bilinear") for each in maps], dim=1)
scores = interpolate(head(maps), images.shape[2:], mode="bilinear")"""
_CODE_PROGRAM = """import torch

segmenter = torch.export.load("{program}").module()
scores = segmenter(images)  # of {window}x{window} pixels, any number of them"""


def write_segmenter(
    network: Segmenter,
    blueprint: Blueprint,
    folder: Path,
    *,
    name: str,
    origin: Origin,
    classes: tuple[str, ...],
    ignore: int,
    settings: Segmentation,
    preprocessing: Preprocessing,
) -> None:
    """Write a network, moved to the CPU, and check that what is read back does the same (else a ``RuntimeError``).

    ``origin`` says where the backbone comes from, ``classes`` are in the order of the scores, pixels of id ``ignore``
    have none, ``settings`` say how masks are predicted, and the size of ``preprocessing`` is that of the windows.
    """
    network = network.cpu().eval()
    maps, is_linear = network.maps, isinstance(network.head, LinearHead)
    about = {
        "classes": list(map(unicode_text, classes)),
        "ignore": ignore,
        "indices": _indices(network),
        "levels": [[level.channels, level.stride] for level in maps.levels],
        "window": preprocessing.image_size,
        "multiple": maps.multiple,
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "prediction": settings.model_dump(mode="json", include=set(_OF_TEST)),
    }
    window = preprocessing.image_size + -preprocessing.image_size % maps.multiple
    images = torch.randn(2, 3, window, window, generator=torch.Generator().manual_seed(0))
    code = (_CODE_LINEAR if is_linear else _CODE_PROGRAM).format(
        head=HEAD,
        program=PROGRAM,
        channels=sum(maps.levels[number].channels for number in network.seen),
        num_classes=len(classes),
        indices=_indices(network),
        window=window,
    )
    head = f"{'a linear' if is_linear else 'an UperNet'} head for {counted(len(classes), 'class')}"
    card = model_card(
        task="image-segmentation",
        name=name,
        summary=f"{type(maps.model).__name__} with {head}. {num_parameters(maps, network.head):,} parameters, windows "
        f"of {preprocessing.image_size} pixels.",
        uses=[Use("timm" if is_linear else "torch", code, "`images`: a batch of normalised images, see below.")],
        preprocessing=preprocessing,
        model=network_facts(maps.model, blueprint, part="backbone: "),
        origin=origin,
        classes=classes,
        further="That is for the backbone alone. Images are segmented whole or window by window, with the same mean "
        f"and standard deviation; sides are multiples of {maps.multiple} pixels.\n"
        f"The names of the classes, in the order of the scores, are `classes` in `{DESCRIPTION}`.",
    )
    with whole_folder(folder) as unfinished:
        write_model(maps.model, blueprint, unfinished, preprocessing=preprocessing, card=card)
        save_weights(_head(network).state_dict(), unfinished / HEAD)
        (unfinished / DESCRIPTION).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        (_check_linear if is_linear else _write_program)(network, unfinished, images)


class ReadSegmenter(NamedTuple):
    """A segmentation network that was written.

    Attributes:
        network: In evaluation mode.
        classes: Their names, in the order of the scores.
        ignore: Id of pixels without a class.
        settings: How masks are predicted.
        preprocessing: Its size is that of the windows.
    """

    network: Segmenter
    classes: tuple[str, ...]
    ignore: int
    settings: Segmentation
    preprocessing: Preprocessing


def is_segmenter(folder: Path) -> bool:
    """Whether a folder holds a segmentation network."""
    return (folder / DESCRIPTION).is_file()


def read_segmenter(folder: Path) -> ReadSegmenter:
    """What ``write_segmenter`` wrote to a folder, on the CPU; a ``UserError`` if it is not there or damaged."""
    backbone = load_model(folder)
    try:
        about = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        weights = load_file(folder / HEAD)
        window, ignore, classes = int(about["window"]), int(about["ignore"]), tuple(map(str, about["classes"]))
        settings = Segmentation(
            crop=window, **{"stride": usual_stride(window)} | about.get("prediction", {}), **_built(weights)
        )
        maps = Maps(backbone, image_size=(window, window))
        is_last = len(about["indices"]) < len(maps.indices)
        network = Segmenter(
            maps, settings.changed(taps="last" if is_last else "all", auxiliary=0.0), num_classes=len(classes)
        )
        _head(network).load_state_dict(weights)
        (red, green, blue), deviations = map(float, about["mean"]), tuple(map(float, about["std"]))
        preprocessing = Preprocessing(window, window, (red, green, blue), (deviations[0], deviations[1], deviations[2]))
    except Exception as error:  # of files that others may have written
        raise UserError(
            f"The segmentation network in {folder} cannot be loaded ({first_line(error)}). Restore its files, or train "
            "it again with `poa segment`."
        ) from None
    network = network.eval().requires_grad_(False)
    return ReadSegmenter(network, classes, ignore, settings, preprocessing)


def _built(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Settings of the head that has these weights."""
    if "fuse.0.weight" not in weights:
        return {"head": "linear"}
    return {"head": "upernet", "channels": len(weights["fuse.0.weight"])}


def _head(network: Segmenter) -> nn.Module:
    """What is saved of the head: a linear one's plain layers."""
    return network.head.layers if isinstance(network.head, LinearHead) else network.head


def _indices(network: Segmenter) -> list[int]:
    """What timm's ``forward_intermediates`` is asked for so that it gives what the head sees."""
    maps = network.maps
    return [maps.indices[maps.different.index(number)] for number in maps.different if number in network.seen] or [
        maps.indices[-1]
    ]


@torch.inference_mode()
def _check_linear(network: Segmenter, folder: Path, images: Tensor) -> None:
    """As the model card says."""
    expected, head = network(images), _head(network)
    backbone: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    maps = backbone.forward_intermediates(images, indices=_indices(network), norm=True, intermediates_only=True)
    maps = torch.cat([F.interpolate(each, maps[0].shape[2:], mode="bilinear") for each in maps], dim=1)
    head.load_state_dict(load_file(folder / HEAD))
    _compare(F.interpolate(head(maps), images.shape[2:], mode="bilinear"), expected, folder)


@torch.no_grad()
def _write_program(network: Segmenter, folder: Path, images: Tensor) -> None:
    """Write the network as one program, and compare it."""
    write_program(traced(network, images, name=str(folder)), folder / PROGRAM, {})
    _compare(torch.export.load(folder / PROGRAM).module()(images), network(images), folder)


def _compare(found: Tensor, expected: Tensor, folder: Path) -> None:
    if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())):
        raise unlike(folder)
