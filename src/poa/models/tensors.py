"""Tensors in files of weights from others: read without running code, taken out of their wrappings, and checked."""

import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile, is_zipfile

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from poa.errors import UserError, first_line

ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".pth.tar")
"""Of files of weights."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Types of numbers that weights may have."""
_TABLES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
"""Types of tables that lie among the weights, such as positions in a window."""
_CONTAINERS = (
    *("state_dict_ema", "model_ema", "state_dict", "model", "method", "teacher", "student", "module"),
    *("target_encoder", "encoder"),
)
"""Under what names a file may hold the weights, the better ones first."""
_DEEPEST = 8
"""Containers in one another, at most."""
_PREFIXES = (
    *("module.", "teacher.", "student.", "teacher_backbone.", "student_backbone.", "base_encoder.", "encoder_q."),
    *("online_encoder.", "online_network.", "target_encoder.", "backbone.", "encoder.", "model.", "vit.", "net."),
    *("momentum_encoder.", "encoder_k.", "momentum_backbone.", "backbone_momentum."),
)
"""What names of tensors may begin with, the better ones first; what begins otherwise is then no part of the network."""
HEADS = (
    *("head.", "head_dist.", "fc.", "classifier.", "pre_logits.", "projectors.", "norms.", "local_cls_norm."),
    *("projector.", "predictor.", "projection_head.", "prediction_head.", "prototypes.", "dino_head.", "ibot_head."),
)
"""Beginnings of the names of tensors after the features: classifiers, and what only a pre-training needs."""
TABLES = ("relative_position_index", "attn_mask", ".periods", ".bias_mask")
"""Endings of the names of tables that a network computes by itself."""
NAMED = 3
"""Tensors named in an error."""
_ANCHOR = "patch_embed.proj.weight"
"""The name that shows where a vision transformer's names begin."""
_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What compiling, sharding and checkpointing put into names."""
_DECODER = re.compile(r"decoder[._]")
"""Begins the names of the part that rebuilds images in a masked autoencoder, whose mask token is the decoder's."""
_CHUNKED = re.compile(r"blocks\.\d+\.(\d+\..+)")
"""Name of a tensor whose block lies in a chunk, as DINOv2 trains large networks; blocks are numbered through."""


def read_file(file: Path, *, name: str, wanted: Collection[str] = ()) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Weights in a file that ``--init NAME`` stands for, and the names of tensors that lie outside of the network.

    Names stay as they are where all ``wanted`` ones are among them.

    Raises:
        UserError: It cannot be read, or holds no weights that can be used.
    """
    if not file.name.endswith(ENDINGS):
        raise UserError(f"--init {name}: weights are read from files that end in {', '.join(ENDINGS)}.")
    try:
        content = load_file(file) if file.suffix == ".safetensors" else _unpickled(file)
    except Exception as error:  # whatever a parser stumbles over in a damaged file
        raise UserError(
            f"--init {name}: {file} cannot be read as a file of weights ({first_line(error)}). {_GIVE}"
        ) from None
    if not isinstance(content, Mapping):
        raise UserError(
            f"--init {name}: {file} cannot be read as a file of weights (it holds {type(content).__name__}). {_GIVE}"
        )
    fits = bool(wanted) and content.keys() >= set(wanted)
    weights, aside = (_named_tensors(content), ()) if fits else unwrapped(content)
    if not weights:
        raise UserError(f"--init {name}: {file} contains no named tensors. Give a state dict.")
    for key, value in weights.items():
        if wrong := _unusable(value):
            raise UserError(f"--init {name}: {key} {wrong}. {_FLOATING}")
    return weights, aside


_GIVE = (
    "Give a state dict, saved by safetensors or by torch.save(model.state_dict(), FILE); whole pickled models are "
    "refused, since loading them can run code."
)


_FLOATING = f"Give dense weights of type {', '.join(str(each).removeprefix('torch.') for each in DTYPES)}."


class _Ignored:
    """Stands in for an object of a class that is not imported, such as the settings of another training."""

    def __new__(cls, *_: object) -> Any:
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None:
        pass


class _Dictionary:
    """Stands in for a dictionary of a class that is not imported."""

    def __new__(cls, *_: object) -> Any:
        return OrderedDict()


def _unpickled(file: Path) -> Any:
    """What a file of torch holds; nothing is imported and no code runs."""
    foreign: list[str] = []
    if is_zipfile(file):
        with ZipFile(file) as archive:
            entries = archive.infolist()
        if any(entry.compress_type != ZIP_STORED for entry in entries):
            raise ValueError("it is compressed, which torch.save does not do")
        if sum(entry.file_size for entry in entries) > file.stat().st_size:
            raise ValueError("its parts overlap")
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    else:  # an old format, in which classes are not listed
        foreign = ["argparse.Namespace"]
    stand_ins: list[Any] = [(_Dictionary if each.lower().endswith("dict") else _Ignored, each) for each in foreign]
    with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(stand_ins):
        return torch.load(file, map_location="cpu", weights_only=True)


def unwrapped(content: Mapping[Any, Any]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The network's tensors, without containers and what their names begin with, and the names of all others."""
    for _ in range(_DEEPEST):
        inner = _inner(content)
        if inner is None:
            break
        content = inner
    weights = {_WRAPPERS.sub("", name): value for name, value in _named_tensors(content).items()}
    aside: list[str] = []
    while prefix := _prefix(weights):
        # a mask token lies beside the model in a run's backbone
        inside = {name: value for name, value in weights.items() if name.startswith(prefix) or name == "mask_token"}
        aside += [name for name in weights if name not in inside]
        weights = {name.removeprefix(prefix): value for name, value in inside.items()}
    if decoder := [name for name in weights if _DECODER.match(name)]:
        aside += [name for name in (*decoder, "mask_token") if name in weights]
        weights = {name: value for name, value in weights.items() if name not in aside}
    if "mask_token" not in weights and "masked_embed" in weights:  # what iBOT calls it
        weights["mask_token"] = weights.pop("masked_embed")
    return _without_chunks(weights), tuple(aside)


def _named_tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _inner(content: Mapping[Any, Any]) -> Mapping[Any, Any] | None:
    """The container of the weights: one with a known name, or the only one with tensors where there are no others."""
    known = (content.get(key) for key in _CONTAINERS)
    found = next((each for each in known if isinstance(each, Mapping) and each), None)
    if found is not None or _named_tensors(content):
        return found
    others = [each for each in content.values() if isinstance(each, Mapping) and _named_tensors(each)]
    return others[0] if len(others) == 1 else None


def _prefix(weights: Mapping[str, Tensor]) -> str | None:
    """What names of the network's tensors begin with: something known, or what leads to its one patch embedding."""
    if _ANCHOR in weights:
        return None
    known = next((each for each in _PREFIXES if any(name.startswith(each) for name in weights)), None)
    if known is not None:
        return known
    starts = {name.removesuffix(_ANCHOR) for name in weights if name.endswith(f".{_ANCHOR}")}
    if len(starts) == 1:
        return starts.pop()
    first = {name.partition(".")[0] for name in weights}
    return f"{first.pop()}." if len(first) == 1 and len(weights) > 1 else None


def _without_chunks(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    names = [name for name in weights if name.startswith("blocks.")]
    flat = {name: f"blocks.{match[1]}" for name in names if (match := _CHUNKED.fullmatch(name))}
    if len(flat) < len(names) or len(set(flat.values())) < len(names):
        return weights
    return {flat.get(name, name): value for name, value in weights.items()}


def _unusable(value: Tensor) -> str | None:
    """Why a tensor cannot be part of a network, if so."""
    if type(value) not in (Tensor, nn.Parameter):
        return f"is a {type(value).__name__}"
    if value.is_quantized or value.dtype not in (*DTYPES, *_TABLES):
        return f"has numbers of type {_named(value.dtype)}"
    if value.layout != torch.strided or value.is_nested:
        return "is sparse" if not value.is_nested else "is nested"
    if value.is_meta:
        return "has a shape without data (meta device)"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"has the shape {'x'.join(map(str, value.shape))}, but fewer numbers than that"
    return None


def check_types(name: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse weights of ``--init NAME`` that would be made of numbers of another kind, such as integers."""
    for key, value in wanted.items():
        if key in given and value.is_floating_point() and given[key].dtype not in DTYPES:
            raise UserError(f"--init {name}: {key} has numbers of type {_named(given[key].dtype)}. {_FLOATING}")


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def idle(name: str, value: Tensor | None) -> bool:
    """Whether a tensor may be left out: it is no part of the features, is computed anyway, or adds nothing."""
    adds_nothing = name.endswith("bias") and value is not None and not bool(value.any())
    return name.startswith(HEADS) or name.endswith((*TABLES, "mask_token")) or adds_nothing


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest


def check_taken(name: str, model: Any, state: Mapping[str, Tensor], *, hollow: Callable[[], Any]) -> None:
    """See that all parameters are those given: timm leaves out what it does not find, and what the network has not.

    ``hollow`` builds the network from NaN under the same names, by which it shows what timm has found other names for.
    """
    lacking = [key for key, _ in model.named_parameters() if key not in state]
    surplus: list[str] = []
    if lacking:
        found = hollow().state_dict()
        lacking = [key for key in lacking if not found[key].isnan().all()]
    elif Path(name.removeprefix("local-dir:")).is_dir():
        wanted = model.state_dict()
        roots, classifiers = {key.partition(".")[0] for key in wanted}, model.pretrained_cfg["classifier"] or ()
        own = tuple(f"{each}." for each in ((classifiers,) if isinstance(classifiers, str) else classifiers))
        inside = [key for key in state if key.partition(".")[0] in roots and not key.startswith(own)]
        surplus = [key for key in inside if key not in wanted and not idle(key, state[key])]
    what = (("they lack", lacking), ("the network has no", surplus))
    if said := "; ".join(f"{start} {some(names)}" for start, names in what if names):
        raise UserError(f"The weights of {name} do not fit its network: {said}. Give a folder as timm writes it.")
    for key, value in model.named_parameters():
        if not value.isfinite().all():
            raise UserError(f"{name}: {key} holds NaN or infinite values. Give other weights.")
