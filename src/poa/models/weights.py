"""Read trained weights from the folder of a run, a folder that timm loads, a file or by a timm name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from poa.config.nested import merge, named
from poa.config.pretraining import SLIMMABLE
from poa.config.resolve import read_recipe, read_yaml
from poa.errors import UserError, first_line, nearest
from poa.models import hub, registry
from poa.models import run as runs
from poa.models.folder import made_for, model_in
from poa.models.tensors import ENDINGS, check_types, read_file, unwrapped
from poa.text import shell_word

OFFLINE_KINDS = (
    "a folder that timm loads (config.json and model.safetensors or pytorch_model.bin), the folder of a run, one of "
    "its checkpoints, "
    f"or a file of weights ({', '.join(ENDINGS)})"
)
FILES = ("model.safetensors", "pytorch_model.bin")
"""Files of weights in a folder, the better one first."""

Normalisation = tuple[Sequence[float], Sequence[float]]
"""Means and standard deviations of the channels of normalised images."""


@dataclass(frozen=True)
class TrainedWeights:
    """Trained weights.

    Attributes:
        name: What the user gave.
        weights: By name, without what all names begin with.
        aside: Names of tensors that are no part of the network.
        remedy: What to do if they do not fit, in a sentence.
        model: The network they belong to, where that is known; perhaps in shapes only.
        normalisation: Of the images they were trained on, where that is known.
    """

    name: str
    weights: Mapping[str, Tensor]
    aside: tuple[str, ...]
    remedy: str
    model: nn.Module | None = None
    normalisation: Normalisation | None = None


def read(name: str) -> TrainedWeights:
    """Trained weights, on the CPU; a file or folder of that name comes before a timm name."""
    path = registry.folder_of(name)
    if (chosen := runs.in_run(path)) is not None:
        return _of_run(name, runs.load(chosen.folder, checkpoint=chosen.step))
    if path.is_dir():
        return _of_run(name, runs.load(path)) if runs.is_run(path) else _of_folder(name, path)
    if path.is_file():
        remedy = (
            "Name the network of these weights with --model NAME, or set --model.width-max, --model.depth-max "
            "and so on to match their shapes."
        )
        return TrainedWeights(name, *read_file(path, name=name), remedy=remedy)
    if name.startswith(hub.PREFIXES) or timm.is_model(name.partition(".")[0]):
        return _of_timm(name)
    if path.name.endswith(ENDINGS) or "/" in name:
        raise UserError(f"--init {name}: there is no such file or folder. Give {OFFLINE_KINDS}, or a timm name.")
    choices = nearest(name.partition(".")[0], timm.list_models())
    raise UserError(f"--init {name}: there is no such file, folder or timm model. {choices} Or give {OFFLINE_KINDS}.")


def with_network(
    given: Mapping[str, Any], *, recipe: str | None = None, file: str | Path | None = None, resume: bool = False
) -> Mapping[str, Any]:
    """Settings with the network of the trained weights that they start from, where they name none.

    What they say of the network otherwise, such as its widths, lies over it. A run tells its sizes too. Files of
    weights, and ``hf-hub:`` before they are downloaded, do not tell their network.

    Args:
        given: Nested settings by name.
        recipe: Name of a recipe, below them and the file.
        file: A YAML file of further settings, below them; it may name the recipe.
        resume: Whether the run in ``out``, if it has begun, is resumed: it has its network.
    """
    settings = merge({} if file is None else named(read_yaml(Path(file))), named(given))
    init, model, out = settings.get("init"), settings.get("model", {}), settings.get("out")
    if not (init and isinstance(init, str) and isinstance(model, Mapping)) or "name" in model:
        return given
    if resume and isinstance(out, str | PathLike) and runs.is_run(Path(out)):
        return given
    name = recipe or settings.get("recipe")
    if settings.get("method", read_recipe(name).get("method") if name else None) in SLIMMABLE:  # which refuse weights
        return given
    found = _network_of(init)
    return {**given, "model": {**found, **model}} if found else given


def _network_of(name: str) -> dict[str, Any]:
    """Settings of the network of trained weights, none where they do not tell it."""
    path = registry.folder_of(name)
    if (chosen := runs.in_run(path)) is not None:
        return _settings_of(runs.load(chosen.folder))
    if runs.is_run(path):
        return _settings_of(runs.load(path))
    is_known = (path / "config.json").is_file() or (not path.exists() and timm.is_model(name.partition(".")[0]))
    return {"name": name} if is_known else {}


def _settings_of(run: runs.Run) -> dict[str, Any]:
    """Of its network, without those of its training."""
    return run.config.model.model_dump(exclude_none=True, exclude={"sampling_bias", "drop_path"})


def _of_run(name: str, run: runs.Run) -> TrainedWeights:
    weights, aside = unwrapped(run.teacher.state_dict())
    flags = " ".join(f"--model.{key.replace('_', '-')} {_word(value)}" for key, value in _settings_of(run).items())
    views = run.config.views
    return TrainedWeights(
        f"{name}, teacher at step {run.step}",
        weights,
        aside,
        remedy=f"Train the network of that run: {flags}.",
        model=run.teacher.model,
        normalisation=(views.mean, views.std),
    )


def _of_folder(name: str, folder: Path) -> TrainedWeights:
    file = next((folder / each for each in FILES if (folder / each).is_file()), None)
    if file is None or not (folder / "config.json").is_file():
        raise UserError(
            f"--init {name} is neither the folder of a run nor one with config.json and {' or '.join(FILES)}. "
            f"Give {OFFLINE_KINDS}, or a timm name."
        )
    model, _, _ = model_in(folder, flag="--init")
    wanted = model.state_dict()
    found, aside = read_file(file, name=name, wanted=wanted.keys())
    check_types(name, found, wanted)
    return TrainedWeights(
        name,
        found,
        aside,
        remedy=f"Train the network of these weights: --model {shell_word(name)}.",
        model=model,
        normalisation=made_for(model, name=f"--init {name}")[-2:],
    )


def _of_timm(name: str) -> TrainedWeights:
    try:
        model = hub.create_model(name, pretrained=True)
    except ConnectionError as error:
        raise UserError(
            f"--init {name}: its weights cannot be downloaded ({error}). Without internet access give {OFFLINE_KINDS}."
        ) from None
    except Exception as error:  # of timm and of the client of the server: the name is the user's
        names = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}*"))
        known = "" if ":" in name else f" timm has these weights of it: {names}."
        raise UserError(
            f"--init {name}: timm cannot load its weights ({first_line(error)}).{known} Or give {OFFLINE_KINDS}."
        ) from None
    flag = model.pretrained_cfg["architecture"] if ":" in name else name
    return TrainedWeights(
        name,
        model.state_dict(),
        (),
        remedy=f"Train the network of these weights: --model {flag}.",
        model=model,
        normalisation=made_for(model, name=f"--init {name}")[-2:],
    )


def _word(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
