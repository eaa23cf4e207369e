"""Read trained weights from the folder of a run, a folder that timm loads, a file or by a timm name."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import timm
from huggingface_hub import constants
from safetensors import SafetensorError
from timm.models import load_state_dict
from torch import Tensor, nn

from poa.errors import UserError, first_line, nearest
from poa.models import registry
from poa.models import run as runs

OFFLINE_KINDS = (
    "a folder that timm loads (config.json and model.safetensors or pytorch_model.bin), the folder of a run, "
    "or a file of weights (.safetensors, .pth, .pt, .bin)"
)
FILES = ("model.safetensors", "pytorch_model.bin")
"""Files of weights in a folder, the better one first."""
ENDINGS = (".safetensors", ".pth", ".pt", ".bin")
CONTAINERS = ("state_dict", "model", "method", "teacher", "student", "module")
"""Under what names a file may hold the weights, the better ones first."""
PREFIXES = ("module.", "_orig_mod.", "teacher.", "student.", "backbone.", "model.")
"""What names of tensors may begin with, the better ones first; what begins otherwise is then no part of the network."""
PATIENCE_SECONDS = 10.0
"""How long a server may take to answer."""

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
    if path.is_dir():
        return _of_run(name, path) if runs.is_run(path) else _of_folder(name, path)
    if path.is_file():
        remedy = (
            "Name the network of these weights with --model NAME, or set --model.width-max, --model.depth-max "
            "and so on to match their shapes."
        )
        return TrainedWeights(name, *_read_file(name, path), remedy=remedy)
    if name.startswith(("hf-hub:", "hf_hub:")) or timm.is_model(name.partition(".")[0]):
        return _of_timm(name)
    if path.suffix in ENDINGS or "/" in name:
        raise UserError(f"--init {name}: there is no such file or folder. Give {OFFLINE_KINDS}, or a timm name.")
    choices = nearest(name.partition(".")[0], timm.list_models())
    raise UserError(f"--init {name}: there is no such file, folder or timm model. {choices} Or give {OFFLINE_KINDS}.")


def _of_run(name: str, folder: Path) -> TrainedWeights:
    run = runs.load(folder)
    weights, aside = _unwrapped(run.teacher.state_dict())
    given = run.config.model.model_dump(exclude_none=True)
    of_network = {key: value for key, value in given.items() if key not in ("sampling_bias", "drop_path")}
    flags = " ".join(f"--model.{key.replace('_', '-')} {_word(value)}" for key, value in of_network.items())
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
    model, _, _ = registry.model_in(folder, flag="--init")
    return TrainedWeights(
        name,
        *_read_file(name, file),
        remedy=f"Train the network of these weights: --model {name}.",
        model=model,
        normalisation=_normalisation(model),
    )


def _of_timm(name: str) -> TrainedWeights:
    unreachable = _why_unreachable()
    try:
        with _offline(unreachable is not None):  # weights that were downloaded before are found offline
            model = timm.create_model(name, pretrained=True)
    except OSError as error:
        why = unreachable or first_line(error)
        raise UserError(
            f"--init {name}: its weights cannot be downloaded ({why}). Without internet access give {OFFLINE_KINDS}."
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
        normalisation=_normalisation(model),
    )


def _why_unreachable() -> str | None:
    """Why the server of weights does not answer; asked once, since its client would try again and again."""
    try:
        with urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=PATIENCE_SECONDS):
            return None
    except HTTPError:
        return None
    except OSError as error:
        return f"{constants.ENDPOINT} does not answer: {getattr(error, 'reason', error)}"


@contextmanager
def _offline(wanted: bool) -> Iterator[None]:
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _normalisation(model: nn.Module) -> Normalisation:
    settings: Any = model.pretrained_cfg
    return tuple(settings["mean"]), tuple(settings["std"])


def _read_file(name: str, file: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Weights in a file, and the names of those that lie outside of the network."""
    if file.suffix not in ENDINGS:
        raise UserError(f"--init {name}: weights are read from files that end in {', '.join(ENDINGS)}.")
    try:
        content = load_state_dict(str(file))
    except (AttributeError, EOFError, KeyError, OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise UserError(
            f"--init {name}: {file} cannot be read as a file of weights "
            f"({first_line(error)}). Give a state dict, saved by safetensors or by "
            "torch.save(model.state_dict(), FILE); whole pickled models are refused, since loading them can run code."
        ) from None
    weights, aside = _unwrapped(content)
    if not weights:
        raise UserError(f"--init {name}: {file} contains no named tensors. Give a state dict.")
    return weights, aside


def _unwrapped(content: Mapping[str, Any]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Take the network's tensors out of containers, and their common prefix off their names."""
    while inner := next((content[key] for key in CONTAINERS if isinstance(content.get(key), Mapping)), None):
        content = inner
    weights = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    aside: list[str] = []
    while prefix := next((each for each in PREFIXES if any(name.startswith(each) for name in weights)), None):
        # a mask token lies beside the model in a run's backbone
        inside = {name: value for name, value in weights.items() if name.startswith(prefix) or name == "mask_token"}
        aside += [name for name in weights if name not in inside]
        weights = {name.removeprefix(prefix): value for name, value in inside.items()}
    return weights, tuple(aside)


def _word(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
