"""From the name of a network and its settings to a family and its search space."""

import json
from collections.abc import Mapping
from dataclasses import fields
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import timm
import torch

from poa.config.network import ModelSettings
from poa.config.own import is_own, own_class
from poa.config.pretraining import ELASTIC, Config
from poa.elastic.space import SearchSpace, Size
from poa.errors import UserError, first_line, nearest
from poa.families.base import Family
from poa.families.convnext import ConvNeXt
from poa.families.dinov3 import DINOv3
from poa.families.resnet import ResNet
from poa.families.slim_resnet import SlimResNet
from poa.families.swin import Swin
from poa.families.vit import ViT
from poa.models.folder import model_in

FAMILIES: Mapping[str, type[Family]] = {
    "vit": ViT,
    "swin": Swin,
    "resnet": ResNet,
    "convnext": ConvNeXt,
    "dinov3": DINOv3,
    "slim-resnet": SlimResNet,
}
MOST_SIZES = 10_000
"""Of a search space."""
STAGES = 4
"""Number of stages of every network whose maps shrink."""
_OF_SPACE = {"widths", "width_min", "width_max", "width_step", "depth_min", "depth_max", "depth_step", "sampling_bias"}
_OF_TRAINING = {"name", "drop_path", "stem_init"}
_NOT_SHOWN = {"window_size": "window_size", "ls_init_value": "layer_scale", "init_values": "layer_scale"}
"""Arguments of timm's models that a finished model does not show, and what they are called here."""
_OF_USE = {"img_size", "in_chans", "num_classes", "drop_rate", "drop_path_rate", "dynamic_img_size", "strict_img_size"}
"""Arguments that say how a model is used, not what it is."""
_AS_ALWAYS = {"global_pool": ("avg", "token")}
"""Values of arguments that go without saying; of a ViT its family says which it has."""


def family_of(config: Config) -> Family:
    """The family of backbones and all sizes of a run; refused where widths, depths, patches and crops do not fit."""
    kind, named = describe(config.model.name)
    given = {name: value for name, value in config.model.model_dump().items() if value is not None}
    known = {field.name for field in fields(kind)}
    _check_known(given, known, kind=kind)
    settings = dict(named) | given
    if "depths" in given and "depth_max" not in given:
        settings["depth_max"] = tuple(given["depths"][stage] for stage in kind.elastic)
    if config.method not in ELASTIC:
        widest = max(settings.get("widths") or (settings["width_max"],))
        settings |= {"widths": (widest,), "depth_min": settings["depth_max"]}
    family = kind(
        space=space_of(kind, settings),
        image_size=config.views.global_size,
        in_chans=config.values.number,
        **{name: value for name, value in settings.items() if name in known},
    )
    if config.views.num_locals:
        family.check_image_size(config.views.local_size, setting="views.local-size")
    return family


def only(config: Config, size: Size) -> Config:
    """The same settings with a size of the search space as the intact network."""
    smaller = {"widths": None, "width_max": size.width, "depth_max": size.depths}
    return config.model_copy(update={"model": config.model.model_copy(update=smaller)})


def drop_path_of(model: ModelSettings) -> float:
    """Rate of stochastic depth in the students."""
    return float(describe(model.name)[1]["drop_path"] if model.drop_path is None else model.drop_path)


def describe(name: str) -> tuple[type[Family], Mapping[str, Any]]:
    """Family of a network, and its settings by the names of ``ModelSettings``.

    The name is a family, ours or MODULE:CLASS, whose published network is meant; a timm model, with or without the tag
    of its weights; or a folder that timm loads.
    """
    if name in FAMILIES:
        return FAMILIES[name], FAMILIES[name].published
    if is_folder(name):
        model, architecture, arguments = model_in(folder_of(name), flag="--model")
    elif is_own(name):
        own = own_class(name, flag="--model", kind=Family)
        return own, own.published
    else:
        architecture, arguments = name.partition(".")[0], {}
        if not timm.is_model(architecture):
            choices = nearest(architecture, [*FAMILIES, *timm.list_models()])
            raise UserError(f"--model {name}: there is no such family, folder or timm model. {choices}")
        with torch.device("meta"):
            model = timm.create_model(architecture, num_classes=0)
    for kind in FAMILIES.values():
        if type(model) is kind.network:
            try:
                found = kind.read(model)
                told = {
                    _NOT_SHOWN[k]: x for k, x in arguments.items() if k in _NOT_SHOWN and isinstance(x, int | float)
                }
                of_training = {key: kind.published[key] for key in ("drop_path", "sampling_bias")}
                settings = of_training | {"architecture": architecture} | found | told
                _check_arguments(kind, settings, arguments)
                ModelSettings(**{key: x for key, x in settings.items() if key in ModelSettings.model_fields})
            except Exception as error:  # of parts that are not as in any model of timm's
                raise UserError(f"--model {name} cannot be cut into sizes: {first_line(error)}.") from None
            return kind, settings
    families = ", ".join(FAMILIES)
    raise UserError(
        f"--model {name} is of the family {type(model).__name__}, which cannot be cut into sizes yet. Choose a "
        f"timm model of the families {families}; CONTRIBUTING.md says how to add one."
    )


def family_name(kind: type[Family]) -> str:
    """The name of a family, or of the one of ours that it is derived from; empty if there is none."""
    return next((name for name, ours in FAMILIES.items() if issubclass(kind, ours)), "")


def is_folder(name: str) -> bool:
    """Whether a network is named by a folder. Names of families and of timm's models come first: write ./NAME then."""
    known = name in FAMILIES or timm.is_model(name.partition(".")[0])
    return not known and (folder_of(name) / "config.json").is_file()


def folder_of(name: str) -> Path:
    """The folder; timm writes ``local-dir:`` before it."""
    return Path(name.removeprefix("local-dir:"))


def explicit(config: Config) -> Config:
    """Settings that name an architecture instead of a folder, so that the run does not depend on the folder."""
    if not is_folder(config.model.name):
        return config
    found = dict(describe(config.model.name)[1])
    given = config.model.model_dump(exclude_none=True)
    if "depths" in given:
        del found["depth_max"]
    known = {key: value for key, value in found.items() if key in ModelSettings.model_fields}
    model = ModelSettings.model_validate(known | given | {"name": found["architecture"]})
    return config.model_copy(update={"model": model})


def _check_arguments(kind: type[Family], settings: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """See that a family builds the same model as timm does with these arguments."""
    if not arguments:
        return
    known = {field.name for field in fields(kind)}
    family = kind(
        space=space_of(kind, {"depth_step": 1, **settings}),
        image_size=64 * settings.get("patch_size", 1),
        **{name: value for name, value in settings.items() if name in known},
    )
    ours = json.loads(json.dumps(family.arguments(family.space.intact)))  # as a file would hold them
    for name in sorted(arguments.keys() - _OF_USE):
        value = arguments[name]
        if value not in _AS_ALWAYS.get(name, ()) and (name not in ours or ours[name] != value):
            raise UserError(f"{name}={json.dumps(value)} is not supported")


def space_of(kind: type[Family], settings: Mapping[str, Any]) -> SearchSpace:
    """All sizes. The largest width and depth are always among them, whatever the steps.

    The smallest values are half of the largest where they are not given, and the step between widths is the head
    dimension or what suits the family.
    """
    widths = _widths(kind, settings)
    depth_step, deepest = settings["depth_step"], settings["depth_max"]
    shallowest = settings.get("depth_min") or tuple((depth + 1) // 2 for depth in deepest)
    for end, depths in (("min", shallowest), ("max", deepest)):
        if len(depths) != len(kind.elastic):
            raise UserError(
                f"--model.depth-{end} takes one number for each elastic stage, here {len(kind.elastic)}, got "
                f"{len(depths)}."
            )
    for low, high in zip(shallowest, deepest, strict=True):
        _check_ends("depth", low, high)
    stages = [[*range(low, high, depth_step), high] for low, high in zip(shallowest, deepest, strict=True)]
    if (number := len(widths) * prod(map(len, stages))) > MOST_SIZES:
        raise UserError(
            f"These are {number:,} sizes, and at most {MOST_SIZES:,} are possible. Raise --model.width-step or "
            "--model.depth-step."
        )
    bias = settings["sampling_bias"]
    depths = sorted(product(*stages), key=sum)
    return SearchSpace.grid(widths, tuple(depths), bias=bias, width_bias=bias if kind.biased_widths else 1.0)


def _widths(kind: type[Family], settings: Mapping[str, Any]) -> list[int]:
    if settings.get("widths"):
        return sorted(set(settings["widths"]))
    step = settings.get("width_step") or settings.get("head_dim") or kind.width_unit
    width = settings["width_max"]
    narrowest = settings.get("width_min") or max(1, -(-width // (2 * step))) * step
    _check_ends("width", narrowest, width)
    return [*range(narrowest, width, step), width]


def _check_ends(name: str, low: int, high: int) -> None:
    if low > high:
        raise UserError(
            f"The smallest {name} {low} is above the largest, {high}. Lower --model.{name}-min to at most {high}."
        )


def _check_known(given: Mapping[str, Any], known: set[str], *, kind: type[Family]) -> None:
    strange = sorted(given.keys() - known - _OF_SPACE - _OF_TRAINING)
    if strange:
        flags = ", ".join(f"--model.{name.replace('_', '-')}" for name in strange)
        raise UserError(f"{flags} has no effect on a {kind.__name__}. Leave it out.")
    if "depths" in given and len(given["depths"]) != STAGES:
        raise UserError(f"--model.depths takes {STAGES} numbers, one for each stage, got {len(given['depths'])}.")
