"""Start from trained weights: fit them to the intact network, and report what became of each tensor."""

import io
import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from timm.layers import DropPath
from timm.models import adapt_input_conv
from torch import Tensor, nn

from poa.config.channels import RGB
from poa.errors import UserError, counted
from poa.families.base import Backbone
from poa.files import whole_file
from poa.models.tensors import NAMED, check_types, idle, some
from poa.models.weights import Normalisation, TrainedWeights, read

LARGEST_PATCH = 64
"""Side of the largest patches that are resized, in pixels; the work grows with its fourth power."""


class Resized(NamedTuple):
    """A tensor whose shape was changed."""

    name: str
    old: tuple[int, ...]
    new: tuple[int, ...]


@dataclass(frozen=True)
class LoadReport:
    """What became of trained weights.

    Attributes:
        source: What they are.
        loaded: Names of the network's tensors that were loaded.
        resized: Those of them that timm resized.
        fresh: Names of the backbone's tensors that start freshly.
        unused: Names of tensors of the source that are not used.
        note: What the user should know besides.
    """

    source: str
    loaded: tuple[str, ...]
    resized: tuple[Resized, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    note: str | None = None

    def lines(self) -> list[str]:
        """The report in words."""
        changed = Counter((_pattern(each.name), each.old, each.new) for each in self.resized)
        said = [f"Weights of {self.source}: {counted(len(self.loaded), 'tensor')} loaded."]
        for (name, old, new), number in changed.items():
            said.append(f"  resized    {_times(name, number)}: {_shape(old)} -> {_shape(new)}")
        said.append(f"  fresh      {', '.join((*self.fresh, 'projection heads'))}")
        if self.unused:
            said.append(f"  not used   {', '.join(_patterns(self.unused))}")
        return [*said, f"  note       {self.note}"] if self.note else said


def start_from(name: str, *backbones: Backbone, normalisation: Normalisation | None = None) -> LoadReport:
    """Put trained weights into freshly built backbones of the intact size, whose images are normalised in that way."""
    source = read(name)
    weights, report = fit(source, backbones[0], normalisation=normalisation)
    for backbone in backbones:
        backbone.load_state_dict(weights)
    return report


def write(backbone: Mapping[str, Tensor], path: Path) -> None:
    """Write the state of the intact backbone, mask token included."""
    weights = {name: value.detach().cpu().contiguous() for name, value in backbone.items()}
    try:
        with whole_file(path) as temporary:
            temporary.write_bytes(save(weights, metadata={"format": "pt"}))
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}. Free some space, or allow writing there."
        ) from None


def fit(
    source: TrainedWeights, backbone: Backbone, *, normalisation: Normalisation | None = None
) -> tuple[dict[str, Tensor], LoadReport]:
    """Fit weights to the intact network as timm does, renaming tensors and resizing tables of positions and patches.

    Returns:
        The whole state of the backbone, and what became of the weights.

    Raises:
        UserError: The weights do not fit the network.
    """
    given, model = dict(source.weights), backbone.model
    token = given.pop("mask_token", None)
    wanted = model.state_dict()
    fitted = _of_channels(_filtered(given, token, model, source.model), model, wanted)
    kept = {value.data_ptr() for value in fitted.values()}  # renamed tensors are still the same ones
    dropped = [name for name, value in given.items() if name not in fitted and value.data_ptr() not in kept]
    surplus = {
        name: fitted.get(name, given.get(name)) for name in (*dropped, *(each for each in fitted if each not in wanted))
    }
    _check_fit(source, model, fitted, [name for name, value in surplus.items() if not idle(name, value)])
    check_types(source.name, fitted, wanted)
    _check_workings(source, model)
    unfit = token is None or token.numel() != backbone.mask_token.numel()
    report = LoadReport(
        source.name,
        loaded=tuple(wanted) + (() if unfit else ("mask_token",)),
        resized=tuple(
            Resized(name, tuple(given[name].shape), tuple(value.shape))
            for name, value in wanted.items()
            if name in given and given[name].numel() != value.numel()
        ),
        fresh=("mask_token",) if unfit else (),
        unused=(*surplus, *(("mask_token",) if unfit and token is not None else ()), *source.aside),
        note=_note(source, normalisation),
    )
    taken = {f"model.{name}": fitted[name] for name in wanted}
    if not unfit:
        assert token is not None
        taken["mask_token"] = token.reshape(-1)
    broken = [name for name, value in taken.items() if not value.to(torch.float32).isfinite().all()]
    if broken:
        raise UserError(f"--init {source.name}: {broken[0]} contains NaN or infinite values. Give other weights.")
    return backbone.state_dict() | taken, report


def _filtered(
    given: Mapping[str, Tensor], token: Tensor | None, model: Any, origin: Any | None = None
) -> dict[str, Tensor]:
    """By timm's names, resized by timm; as they are where timm cannot make anything of them."""
    convert = getattr(import_module(type(model).__module__), "checkpoint_filter_fn", None)
    if convert is None:
        return dict(given)
    if origin is not None and "pos_embed" in given:  # by which timm knows the rows and columns of the table
        model.pretrained_model_args = {"img_size": origin.patch_embed.img_size}
    if (
        "patch_embed.proj.weight" in given
        and max(given["patch_embed.proj.weight"].shape[2:], default=0) > LARGEST_PATCH
    ):
        return dict(given)
    state = dict(given)  # some conversions take tensors out
    if "register_tokens" in given or any(".mlp.w12." in name for name in given):
        state["mask_token"] = torch.zeros(0) if token is None else token  # by which timm knows DINOv2's names
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):  # about timm's use of torch
            converted: dict[str, Tensor] = convert(state, model)
    except Exception:
        if _misfits(given, model) == ([], []) and given.keys() <= model.state_dict().keys():
            raise
        return dict(given)  # whatever it stumbled over will be named
    return converted


def _of_channels(fitted: dict[str, Tensor], model: Any, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights for red, green and blue, for as many channels as the network sees, by timm's rule.

    For one channel they are added up, for others repeated and scaled so that the sum stays the same.
    """
    first = model.pretrained_cfg.get("first_conv") or ()
    names = [f"{each}.weight" for each in ([first] if isinstance(first, str) else first)]
    for name in names:
        old, new = fitted.get(name), wanted.get(name)
        if old is not None and new is not None and old.shape[1:2] == (RGB,) != new.shape[1:2]:
            fitted = {**fitted, name: adapt_input_conv(new.shape[1], old)}
    return fitted


def _misfits(fitted: Mapping[str, Tensor], model: nn.Module) -> tuple[list[str], list[str]]:
    """Names of tensors that are missing, and of those with other shapes."""
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in fitted]
    return missing, [name for name in wanted if name in fitted and fitted[name].shape != wanted[name].shape]


def _check_fit(source: TrainedWeights, model: nn.Module, fitted: Mapping[str, Tensor], surplus: Sequence[str]) -> None:
    missing, other = _misfits(fitted, model)
    if not (missing or other or surplus):
        return
    wanted = model.state_dict()
    shapes = [f"{name} ({_shape(fitted[name].shape)} instead of {_shape(wanted[name].shape)})" for name in other]
    what = (("they lack", missing), ("shapes differ of", shapes), ("this network has no", surplus))
    said = "; ".join(f"{start} {some(names)}" for start, names in what if names)
    remedy, kind = source.remedy, type(model).__name__
    if source.model is None and len(missing) == len(wanted):
        remedy = f"No tensor has a name that timm's {kind} knows: rename them. Or {remedy[0].lower()}{remedy[1:]}"
    elif source.model is None and not (missing or other):
        remedy = f"{remedy} Tensors that the features do not depend on can be left out of the file."
    raise UserError(f"The weights of --init {source.name} do not fit the {kind} of this run: {said}. {remedy}")


def _check_workings(source: TrainedWeights, model: nn.Module) -> None:
    """See that weights whose shapes fit mean the same here."""
    if source.model is None:
        return
    theirs, ours = _workings(source.model), _workings(model)
    for name, there in theirs.items():
        here = ours.get(name, there)
        if here != there:
            raise UserError(
                f"The weights of --init {source.name} have the right shapes, but {name} is {there} in their "
                f"network and {here} in this one. {source.remedy}"
            )


def _workings(model: nn.Module) -> dict[str, object]:
    """What weights rely on and their shapes do not show: heads, groups, the norms' epsilon, activations."""
    found: dict[str, object] = {}
    for name, module in model.named_modules():
        found |= {f"{name}.{what}": x for what in ("num_heads", "num_groups", "eps") if (x := vars(module).get(what))}
        bare = not any(True for _ in module.children()) and not any(True for _ in module.parameters())
        if bare and not isinstance(module, nn.Identity | nn.Dropout | DropPath):
            found[name] = type(module).__name__
    return found


def _note(source: TrainedWeights, ours: Normalisation | None) -> str | None:
    theirs = source.normalisation
    if theirs is None or ours is None or len(theirs[0]) != len(ours[0]):
        return None
    if all(torch.tensor(theirs).isclose(torch.tensor(ours), atol=1e-3).flatten()):
        return None
    mean, std = (" ".join(f"{value:.3g}" for value in values) for values in theirs)
    return f"the weights were trained with another normalisation; to use it: --views.mean {mean} --views.std {std}"


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "one number"


def _pattern(name: str) -> str:
    return re.sub(r"\.\d+(?=\.)", ".*", name)


def _times(name: str, number: int) -> str:
    return f"{name} ({number} tensors)" if number > 1 else name


def _patterns(names: Sequence[str]) -> list[str]:
    """Names that differ in numbers only are one; where there are many kinds, those of one part of a model."""
    found = Counter(map(_pattern, names))
    if len(found) > 2 * NAMED:
        found = Counter(name.partition(".")[0] + ".*" * ("." in name) for name in names)
    return [_times(name, number) for name, number in found.items()]
