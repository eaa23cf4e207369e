"""Networks by name: the sizes of a run, a folder that timm loads, or a timm model, with how images are prepared."""

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from poa.config.channels import RGB
from poa.config.values import Step
from poa.data.content import short_digest
from poa.data.images import Preprocessing
from poa.errors import UserError, first_line, nearest
from poa.export.card import Origin
from poa.export.timm import Blueprint
from poa.families.base import Family, Features
from poa.models import hub, registry, weights
from poa.models.folder import made_for, model_in, resized_for, values_of
from poa.models.origin import inherited_by, licence_of
from poa.models.run import Run, is_run, load
from poa.models.tensors import check_taken

BRANCHES = ("teacher", "initial", "untrained")
"""Which parameters: the trained ones, those that a run began with, or freshly drawn ones."""
KINDS = "the folder of a run, or a folder that timm loads (config.json and model.safetensors or pytorch_model.bin)"
"""What can be loaded without an internet connection, besides a timm name with branch ``untrained``."""
_ANY_SIZE = (("strict_img_size", False), ("dynamic_img_size", True))
"""Arguments by which timm's networks take images of other sizes; where a class knows both, they mean the same."""


@dataclass(frozen=True)
class ModelSource:
    """Networks to evaluate or to train further, and how images are prepared for them.

    Attributes:
        name: As the user gave it.
        names: Its networks: sizes such as ``64x3``, ascending; one name for a plain timm model.
        network: The network of a name; gives ``Features``, in evaluation mode and without gradients.
        timm_model: ``timm_model(name, num_classes=10, drop_path=0.1)`` is the plain timm model with its weights,
            to be trained further, with a fresh classifier.
        weights: What the parameters are, in words: results depend on it.
        preprocessing: How images are prepared for all of them.
        out: Folder under which evaluations are written.
        branch: One of ``BRANCHES``.
        family: That of a run; None for a plain timm model.
        origin: Where the weights come from, for model cards.
    """

    name: str
    names: tuple[str, ...]
    network: Callable[[str], nn.Module]
    timm_model: Callable[..., nn.Module]
    weights: str
    preprocessing: Preprocessing
    out: Path
    branch: str = "teacher"
    family: Family | None = None
    origin: Callable[[], Origin] = lambda: Origin("")

    def choose(self, sizes: str | Sequence[str]) -> tuple[str, ...]:
        """Names of networks out of ``all`` or a list of names, which may also be one text with commas."""
        texts = [sizes] if isinstance(sizes, str) else sizes
        chosen = [name.strip() for text in texts for name in text.split(",") if name]
        if chosen == ["all"]:
            return self.names
        if not chosen:
            raise UserError(f"Name the sizes to evaluate: --sizes all, or some, such as --sizes {self.names[0]}.")
        if self.family is not None:
            return tuple(str(self.family.space.find(name)) for name in chosen)
        unknown = [name for name in chosen if name not in self.names]
        if unknown:
            raise UserError(
                f"{self.name} is a single network and has no size {unknown[0]!r}. "
                f"{nearest(unknown[0], self.names)} Or leave sizes out."
            )
        return tuple(chosen)


def located(subject: Run | str | PathLike[str]) -> tuple[str, int | None]:
    """The name of a network or the folder of a run, and the step of the checkpoint that a run was opened at."""
    if isinstance(subject, str | PathLike):
        return fspath(subject), None
    return str(subject.folder), subject.asked_step


def model_source(
    name: str,
    *,
    branch: str = "teacher",
    image_size: int | None = None,
    out: Path | None = None,
    checkpoint: Step | None = None,
) -> ModelSource:
    """The networks that a name stands for.

    Args:
        name: Folder of a run; a folder that timm loads, such as an extracted size; or a timm name, such as
            ``vit_small_patch16_224.dino``, whose trained weights are downloaded.
        branch: ``teacher``; ``untrained`` for freshly drawn parameters; or ``initial``, of a run that began with
            trained weights, for sizes cut out of these.
        image_size: Side of the images, in pixels; by default the size that the network is made for.
        out: Folder under which evaluations are written; ``eval`` in a run, else ``eval/NAME``.
        checkpoint: The step of the run's checkpoint to use, or ``best``; the newest by default.

    Raises:
        UserError: There is no such network, its weights cannot be loaded, or it cannot process images of that size.
    """
    _check_branch(branch)
    check_side(image_size)
    folder = registry.folder_of(name)
    if checkpoint is not None:
        _check_has_steps(name, folder, branch)
    if is_run(folder):
        return run_source(load(folder, checkpoint=checkpoint), branch=branch, image_size=image_size, out=out)
    if branch == "initial":
        raise UserError(f"{name} is not the folder of a run, so it has no initial sizes. Leave out --branch initial.")
    timm_name, state, of_what = _source(name, folder, is_trained=branch == "teacher")
    label = _label(name)
    create = partial(_create, name, timm_name, image_size=image_size)
    model = create(state, num_classes=0).requires_grad_(False)
    made = made_for(model, name=name)
    side = image_size or made.side
    preprocessing = resized_for(side, made, values_of(folder, made))
    network = _PlainNetwork(model).eval()
    remedy = "Choose another network."
    if side != made.side:
        remedy = f"It is made for {made.side} pixels: leave out --image-size."
    number = preprocessing.values.number
    try_features(network, side, channels=number, refusal=f"{name} cannot process images of", remedy=remedy)

    def trainable(_: str, *, num_classes: int, drop_path: float = 0.0) -> nn.Module:
        return _with_classifier(name, create(None, num_classes=num_classes, drop_path=drop_path), model.state_dict())

    return ModelSource(
        name=name,
        names=(label,),
        network=lambda _: network,
        timm_model=trainable,
        weights=of_what if state else f"{of_what}, sha256 {_digest(model.state_dict())}",
        preprocessing=preprocessing,
        out=out or Path("eval", label),
        branch=branch,
        origin=lambda: Origin(f"{branch} weights of {label}", inherited={label: licence_of(name)} if state else {}),
    )


def _label(name: str) -> str:
    """What a folder or a timm network is called in results."""
    folder = registry.folder_of(name)
    return folder.resolve().name if folder.is_dir() else name.rpartition("/")[2]


def trained_folder(name: str) -> Path:
    """Where networks go that are trained further: ``trained`` in the folder of a run, else ``trained/NAME``."""
    folder = registry.folder_of(name)
    return folder / "trained" if is_run(folder) else Path("trained", _label(name))


def run_source(
    run: Run, *, branch: str = "teacher", image_size: int | None = None, out: Path | None = None
) -> ModelSource:
    """The sizes of a run; arguments as in ``model_source``."""
    _check_branch(branch)
    check_side(image_size)
    prepared = run.preprocessing
    if image_size is not None:
        run.family.check_image_size(image_size, setting="image-size")
        resize = round(image_size * prepared.resize / prepared.image_size)
        prepared = replace(prepared, image_size=image_size, resize=resize)
    networks, weights_are = _of_branch(run, branch)
    return ModelSource(
        name=str(run.folder),
        names=run.sizes(),
        network=networks,
        timm_model=partial(_timm_model_of_run, run, networks),
        weights=weights_are,
        preprocessing=prepared,
        out=out or run.paths.scores,
        branch=branch,
        family=run.family,
        origin=partial(_origin_of_run, run, branch),
    )


def _origin_of_run(run: Run, branch: str) -> Origin:
    summary, facts = f"{branch} of run {run.folder.resolve().name}", {}
    if branch == "teacher":
        summary, facts = f"{summary}, step {run.step}", run.facts
    return Origin(summary, facts, {} if branch == "untrained" else inherited_by(run.config))


def _of_branch(run: Run, branch: str) -> tuple[Callable[[str], nn.Module], str]:
    """Where the networks of a branch come from, and what their weights are."""
    if branch == "teacher":
        return run.network, run.weights
    if branch == "initial":
        cut = run.initial(run.space.intact)  # where there is none, that is said before images are read
        return run.initial, f"initial, from {run.config.init}, sha256 {_digest(cut.state_dict())}"
    model = repr(run.config.model.model_dump(exclude_defaults=True)).encode()
    return run.untrained, f"untrained, seed {run.config.seed}, model {short_digest(model)}"


def _check_has_steps(name: str, folder: Path, branch: str) -> None:
    if not is_run(folder) or branch != "teacher":
        whose = f"branch {branch} was not trained" if is_run(folder) else f"{name} is not the folder of a run"
        raise UserError(f"--checkpoint names a step of a run, but {whose}. Leave out --checkpoint.")


def _check_branch(branch: str) -> None:
    if branch not in BRANCHES:
        raise UserError(f"There is no branch {branch!r} to evaluate. Choose from {', '.join(BRANCHES)}.")


def check_side(image_size: int | None) -> None:
    """Refuse sides of images that are not sides; 0 shall not stand for the usual one."""
    if image_size is not None and image_size < 1:
        raise UserError(f"--image-size must be at least 1, got {image_size}.")


def blueprint(
    source: ModelSource, name: str, model: nn.Module, *, classes: Sequence[str] = (), is_linear: bool = True
) -> Blueprint:
    """How timm builds ``model``, a network of a source with its own classifier; that is kept if ``is_linear``."""
    known: Any = model.pretrained_cfg
    config = registry.folder_of(source.name) / "config.json"
    architecture, arguments = str(known["architecture"]), dict[str, Any]()
    if source.family is not None:
        architecture, own = source.family.timm_config(source.family.space.find(name))
        arguments |= own
    elif config.is_file():
        arguments |= json.loads(config.read_text(encoding="utf-8")).get("model_args") or {}
    side = source.preprocessing.image_size
    if source.family is None and known.get("fixed_input_size") and known["input_size"][-1] != side:
        arguments["img_size"] = side
    arguments["num_classes"] = len(classes)
    with torch.device("meta"):
        built = timm.create_model(architecture, **arguments)
    if _shapes(built) != _shapes(model):
        raise UserError(
            f"{source.name} cannot be fine-tuned: timm does not build the same model from its name and settings, "
            "so the result could not be loaded. Save it as a folder with config.json (timm's save_for_hf), and "
            "give that folder."
        )
    return Blueprint(architecture, arguments, tuple(classes), None if is_linear else str(known["classifier"]))


def backbone_of(source: ModelSource, name: str, *, drop_path: float = 0.0) -> tuple[nn.Module, Blueprint]:
    """A network without a classifier, for images of any size where timm can, and how timm builds it."""
    model = source.timm_model(name, num_classes=0, drop_path=0.0)
    found = blueprint(source, name, model)
    found = replace(found, arguments={**found.arguments, **any_size(model)})
    backbone: nn.Module = _fresh(found.architecture, drop_path, **found.arguments)
    backbone.load_state_dict(model.state_dict())
    return backbone, found


def any_size(model: nn.Module) -> dict[str, Any]:
    """Arguments with which timm's ViTs and Swins take images of any size; other networks need none."""
    known = inspect.signature(type(model)).parameters
    return next(({name: value} for name, value in _ANY_SIZE if name in known), {})


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


class _PlainNetwork(nn.Module):
    """Any timm model as ``Features``: the vector before its classifier, and tokens or cells before they are pooled."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Features:
        """Features of a batch of images."""
        found = self.model.forward_features(images)
        pooled = self.model.forward_head(found, pre_logits=True).flatten(1)
        if found.ndim == 3:
            return Features(pooled, found[:, getattr(self.model, "num_prefix_tokens", 0) :])
        is_last = found.shape[1] != self.model.num_features  # channels: timm's transformers with maps put them there
        return Features(pooled, found.flatten(1, 2) if is_last else found.flatten(2).mT)


def _source(name: str, folder: Path, *, is_trained: bool) -> tuple[str, dict[str, Tensor] | None, str]:
    """How timm calls a network, its trained weights and what they are."""
    if folder.is_file():
        raise UserError(f"{name} is a file of weights, which does not name its network. Give {KINDS}, or a timm name.")
    is_timm = not folder.is_dir() and (":" in name or timm.is_model(name.partition(".")[0]))
    if not is_trained and is_timm:
        return name, None, f"untrained {name}, seed 0"
    if not is_trained and (folder / "config.json").is_file():
        model_in(folder, flag="The network of")
        return f"local-dir:{folder}", None, f"untrained {folder.resolve().name}, seed 0"
    try:
        state = dict(weights.read(name).weights)
    except UserError as error:  # the same is told of --init
        raise UserError(str(error).replace("--init ", "").replace(weights.OFFLINE_KINDS, KINDS)) from None
    if is_timm:
        return name, state, f"timm {name}, sha256 {_digest(state)}"
    return f"local-dir:{folder}", state, f"{folder.resolve().name}, sha256 {_digest(state)}"


def _digest(state: dict[str, Tensor]) -> str:
    digest = sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _create(
    name: str,
    timm_name: str,
    state: dict[str, Tensor] | None,
    *,
    image_size: int | None,
    num_classes: int,
    drop_path: float = 0.0,
) -> Any:
    """The timm model, with trained weights or always the same fresh ones."""
    given: dict[str, Any] = {"num_classes": num_classes}
    trained: dict[str, Any] = {}
    if state is not None:
        trained = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(state), "source": ""}}
    try:
        if image_size is not None and _built(timm_name).pretrained_cfg.get("fixed_input_size"):
            given["img_size"] = image_size
        model = _fresh(timm_name, drop_path, **given, **trained)
    except ConnectionError as error:
        raise UserError(
            f"{name}: its settings cannot be downloaded ({error}). Without internet access give {KINDS}."
        ) from None
    except Exception as error:  # of timm and of the client of the hub: the name and its settings are the user's
        asked = given | ({"drop_path_rate": drop_path} if drop_path else {})
        raise UserError(
            f"{name}: timm cannot build this network with {', '.join(f'{key}={asked[key]}' for key in asked)} "
            f"({first_line(error)}). Leave out what it does not support, or choose another network."
        ) from None
    if state is not None:
        hollow = {key: torch.full_like(x, torch.nan) if x.is_floating_point() else x for key, x in state.items()}
        trained["pretrained_cfg_overlay"] = {"state_dict": hollow, "source": ""}
        check_taken(name, model, state, hollow=lambda: _fresh(timm_name, 0.0, **given, **trained))
    return model


def _fresh(architecture: str, drop_path: float, **arguments: Any) -> Any:
    """A timm model whose fresh parameters are the same at every call."""
    rate = {"drop_path_rate": drop_path} if drop_path > 0 else {}  # not all models know it
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _built(architecture, **{**arguments, **rate})


def _built(name: str, **arguments: Any) -> Any:
    create = hub.create_model if name.startswith(hub.PREFIXES) else timm.create_model
    return create(name, **arguments)


@torch.inference_mode()
def try_features(network: nn.Module, side: int, *, channels: int = RGB, refusal: str, remedy: str) -> Features:
    """Features of a black image, or a sentence that the network does not take images of that size."""
    try:
        features: Features = network(torch.zeros(1, channels, side, side))
        assert features.cls.ndim == 2
        assert features.patches.ndim == 3
    except Exception as error:  # of a network from others
        raise UserError(f"{refusal} {side} pixels ({first_line(error)}). {remedy}") from None
    return features


def _with_classifier(name: str, model: Any, state: dict[str, Tensor]) -> nn.Module:
    """Put trained weights into a model that has a classifier besides."""
    classifiers = model.pretrained_cfg["classifier"] or ()
    own = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    kept = {key: value for key, value in state.items() if not key.startswith(tuple(f"{each}." for each in own))}
    missing, unexpected = model.load_state_dict(kept, strict=False)
    strange = [key for key in (*missing, *unexpected) if not key.startswith(own)]
    if strange:
        raise UserError(f"{name} cannot be trained further: with a classifier it has other parameters ({strange[0]}).")
    trained: nn.Module = model.requires_grad_(True)
    return trained


def _timm_model_of_run(
    run: Run, networks: Callable[[str], nn.Module], name: str, *, num_classes: int, drop_path: float = 0.0
) -> nn.Module:
    """The timm model of a size, its classifier always the same fresh one."""
    network: Any = networks(name)
    architecture, arguments = run.family.timm_config(run.space.find(name))
    model = _fresh(architecture, drop_path, **{**arguments, "num_classes": num_classes})
    return _with_classifier(name, model, network.model.state_dict())
