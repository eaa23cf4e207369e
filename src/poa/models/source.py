"""What is scored: the sizes of a run, a folder that timm loads, or a network that timm knows by name."""

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from math import floor
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.data.constants import DEFAULT_CROP_PCT
from torch import Tensor, nn

from poa.data.images import Preprocessing
from poa.errors import UserError, nearest
from poa.export.timm import Blueprint
from poa.families.base import Family, Features
from poa.models import registry, weights
from poa.models.run import Paths, Run, load

BRANCHES = ("teacher", "initial", "untrained")
"""Which parameters: the trained ones, those that a run began with, or freshly drawn ones."""
KINDS = "the folder of a run, or a folder that timm loads (config.json and model.safetensors or pytorch_model.bin)"
"""What can be scored without a network connection, besides a timm name with branch ``untrained``."""
_REFUSALS = (AssertionError, AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""How timm's models say that they cannot do something."""
_ANY_SIZE = (("strict_img_size", False), ("dynamic_img_size", True))
"""Arguments by which timm's networks take images of other sizes; where a class knows both, they mean the same."""


@dataclass(frozen=True)
class ModelSource:
    """Networks to score, and how images are prepared for them.

    Attributes:
        name: As the user gave it.
        names: Its networks: sizes such as ``64x3``, ascending; one name for a plain timm model.
        network: The network of a name; gives ``Features``, in evaluation mode and without gradients.
        timm_model: ``timm_model(name, num_classes=10, drop_path=0.1)`` is the plain timm model with its weights,
            to be trained further, with a fresh classifier.
        weights: What the parameters are: other weights, other results.
        preprocessing: How images are prepared for all of them.
        out: Folder under which evaluations are written.
        branch: Which parameters.
        family: Of a run.
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

    def results(self, kind: str, name: str | None = None) -> Path:
        """Folder of results.

        Args:
            kind: What was found out, such as ``finetune``.
            name: Of the folder; the kind, with the branch unless it is ``teacher``, by default.

        Raises:
            UserError: The name has slashes.
        """
        folder = name or (kind if self.branch == "teacher" else f"{kind}-{self.branch}")
        if Path(folder).name != folder:
            raise UserError(f"--name is the name of a folder in {self.out}, without slashes, got {folder!r}.")
        return self.out / folder

    def choose(self, sizes: str | Sequence[str]) -> tuple[str, ...]:
        """Networks by name.

        Args:
            sizes: ``all``, or names, also as one text with commas.

        Raises:
            UserError: There is no network of a name.
        """
        chosen = [
            name.strip() for text in ([sizes] if isinstance(sizes, str) else sizes) for name in text.split(",") if name
        ]
        if chosen == ["all"]:
            return self.names
        if not chosen:
            raise UserError(f"Say which sizes to score: --sizes all, or names such as --sizes {self.names[0]}.")
        if self.family is not None:
            return tuple(str(self.family.space.find(name)) for name in chosen)
        unknown = [name for name in chosen if name not in self.names]
        if unknown:
            raise UserError(
                f"{self.name} is one network without a size {unknown[0]!r}. {nearest(unknown[0], self.names)} "
                "Or leave out --sizes."
            )
        return tuple(chosen)


def model_source(
    name: str, *, branch: str = "teacher", image_size: int | None = None, out: Path | None = None
) -> ModelSource:
    """The networks that are meant by a name.

    Args:
        name: Folder of a run; a folder that timm loads, such as an extracted size; or a timm name, such as
            ``vit_small_patch16_224.dino``, whose trained weights are fetched.
        branch: ``teacher``; ``untrained`` for freshly drawn parameters; or ``initial``, of a run that began with
            trained weights, for sizes cut out of these.
        image_size: Side of the images, in pixels; that which the network is made for by default.
        out: Folder under which evaluations are written; ``eval`` in a run, else ``eval/NAME``.

    Raises:
        UserError: There is nothing of that name, its weights cannot be had, or it cannot see images of that size.
    """
    if branch not in BRANCHES:
        raise UserError(f"There is no branch {branch!r} to score. Choose from {', '.join(BRANCHES)}.")
    folder = registry.folder_of(name)
    if is_run(folder):
        return run_source(load(folder), branch=branch, image_size=image_size, out=out)
    if branch == "initial":
        raise UserError(f"{name} is not the folder of a run, so it has no initial sizes. Leave out --branch initial.")
    if image_size is not None and image_size < 1:
        raise UserError(f"Images have at least one pixel, got an image size of {image_size}.")
    timm_name, state, of_what = _source(name, folder, is_trained=branch == "teacher")
    label = folder.resolve().name if folder.is_dir() else name.rpartition("/")[2]
    create = partial(_create, name, timm_name, image_size=image_size)
    model = create(state, num_classes=0).requires_grad_(False)
    settings: Any = model.pretrained_cfg
    made_for = int(settings["input_size"][-1])
    wanted = image_size or made_for
    network = _PlainNetwork(model).eval()
    _try(name, network, image_size=wanted, made_for=made_for)

    def trainable(_: str, *, num_classes: int, drop_path: float = 0.0) -> nn.Module:
        return _with_classifier(name, create(None, num_classes=num_classes, drop_path=drop_path), model.state_dict())

    return ModelSource(
        name=name,
        names=(label,),
        network=lambda _: network,
        timm_model=trainable,
        weights=of_what,
        preprocessing=Preprocessing(
            wanted,
            floor(wanted / (settings["crop_pct"] or DEFAULT_CROP_PCT) + 1e-6),
            mean=_of_channels(settings["mean"]),
            std=_of_channels(settings["std"]),
        ),
        out=out or Path("eval", label),
        branch=branch,
    )


def _of_branch(run: Run, branch: str) -> tuple[Callable[[str], nn.Module], str]:
    """Where the networks come from, and what their weights are."""
    if branch == "teacher":
        return run.network, f"teacher at step {run.step}"
    if branch == "initial":
        run.initial(run.space.sizes[0])  # if there is none, it is told before images are read
        return run.initial, f"initial, from {run.config.init}"
    return run.untrained, f"untrained, seed {run.config.seed}"


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run. One that timm loads as well is not.

    Args:
        folder: Which one; it need not exist.
    """
    return Paths(folder).config.exists() and not (folder / "config.json").exists()


def run_source(
    run: Run, *, branch: str = "teacher", image_size: int | None = None, out: Path | None = None
) -> ModelSource:
    """The sizes of a run.

    Args:
        run: Whose sizes.
        branch: As in ``model_source``.
        image_size: As in ``model_source``.
        out: As in ``model_source``.

    Raises:
        UserError: The run has no such branch, or its networks cannot see images of that size.
    """
    if branch not in BRANCHES:
        raise UserError(f"There is no branch {branch!r} to score. Choose from {', '.join(BRANCHES)}.")
    if image_size is not None:
        run.family.check_image_size(image_size, setting="image-size")
    source, of_what = _of_branch(run, branch)
    views, resize = run.config.views, run.config.scoring_resize
    wanted = image_size or views.global_size
    return ModelSource(
        name=str(run.folder),
        names=run.sizes(),
        network=source,
        timm_model=partial(_model_of_run, run, source),
        weights=of_what,
        preprocessing=Preprocessing(
            wanted,
            resize if image_size is None else round(wanted * resize / views.global_size),
            mean=views.mean,
            std=views.std,
        ),
        out=out or run.paths.scores,
        branch=branch,
        family=run.family,
    )


def blueprint(
    source: ModelSource, name: str, model: nn.Module, *, classes: Sequence[str] = (), is_linear: bool = True
) -> Blueprint:
    """How timm builds a network of a source, found out before it is trained.

    ``model`` is the network as a timm model with timm's own classifier, which training keeps if ``is_linear``.

    Raises:
        UserError: timm builds another model from what is known.
    """
    known: Any = model.pretrained_cfg
    config = registry.folder_of(source.name) / "config.json"
    architecture, arguments = str(known["architecture"]), dict[str, Any]()
    if source.family is not None:
        architecture, own = source.family.timm_config(source.family.space.find(name))
        arguments |= own
    elif config.is_file():
        arguments |= json.loads(config.read_text()).get("model_args", {})
    side = source.preprocessing.image_size
    if source.family is None and known.get("fixed_input_size") and known["input_size"][-1] != side:
        arguments["img_size"] = side
    arguments["num_classes"] = len(classes)
    with torch.device("meta"):
        built = timm.create_model(architecture, **arguments)
    if _shapes(built) != _shapes(model):
        raise UserError(
            f"{source.name} cannot be fine-tuned: timm does not build the same model from its name and settings, so "
            "the result could not be loaded. Save it as a folder with config.json (timm's save_for_hf), and give that."
        )
    return Blueprint(architecture, arguments, tuple(classes), None if is_linear else str(known["classifier"]))


def backbone_of(source: ModelSource, name: str, *, drop_path: float = 0.0) -> tuple[nn.Module, Blueprint]:
    """A network without a classifier, for images of any size where timm can, and how timm builds it."""
    model = source.timm_model(name, num_classes=0, drop_path=0.0)
    found = blueprint(source, name, model)
    found = replace(found, arguments={**found.arguments, **any_size(model)})
    further = {"drop_path_rate": drop_path} if drop_path else {}
    with torch.random.fork_rng(devices=[]):
        backbone: nn.Module = timm.create_model(found.architecture, **found.arguments, **further)
    backbone.load_state_dict(model.state_dict())
    return backbone, found


def any_size(model: nn.Module) -> dict[str, Any]:
    """Arguments with which timm builds the same network for images of any size; often none are needed.

    Position tables of ViTs are then interpolated, and attention masks of Swins made anew, for each size of images.
    """
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
        raise UserError(f"{name} is a file, and says not of which network. Give {KINDS}, or a timm name.")
    is_timm = not folder.is_dir() and (":" in name or timm.is_model(name.partition(".")[0]))
    if not is_trained and is_timm:
        return name, None, f"untrained {name}, seed 0"
    if not is_trained and (folder / "config.json").is_file():
        return f"local-dir:{folder}", None, f"untrained {folder.resolve().name}, seed 0"
    try:
        state = dict(weights.read(name).weights)
    except UserError as error:  # the same is told of --init
        raise UserError(str(error).replace("--init ", "").replace(weights.OFFLINE_KINDS, KINDS)) from None
    if is_timm:
        return name, state, f"timm {name}"
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
    arguments: dict[str, Any] = {"num_classes": num_classes}
    if drop_path > 0:
        arguments["drop_path_rate"] = drop_path
    if state is not None:
        arguments |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(state), "source": ""}}
    try:
        if image_size is not None and timm.create_model(timm_name).pretrained_cfg.get("fixed_input_size"):
            arguments["img_size"] = image_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return timm.create_model(timm_name, **arguments)
    except _REFUSALS as error:
        wanted = ", ".join(f"{key}={value}" for key, value in arguments.items() if not key.startswith("pretrained"))
        raise UserError(
            f"{name}: timm cannot build this network with {wanted} ({_first_line(error)}). "
            "Leave out what it does not know, or choose another network."
        ) from None


@torch.inference_mode()
def _try(name: str, network: _PlainNetwork, *, image_size: int, made_for: int) -> None:
    try:
        features = network(torch.zeros(1, 3, image_size, image_size))
        assert features.cls.ndim == 2
        assert features.patches.ndim == 3
    except _REFUSALS as error:
        advice = (
            "Choose another network."
            if image_size == made_for
            else f"It is made for {made_for} pixels: leave out --image-size."
        )
        raise UserError(
            f"{name} gives no features of images of {image_size} pixels ({_first_line(error)}). {advice}"
        ) from None


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


def _model_of_run(
    run: Run, source: Callable[[str], nn.Module], name: str, *, num_classes: int, drop_path: float = 0.0
) -> nn.Module:
    """The timm model of a size, its classifier always the same fresh one."""
    network: Any = source(name)
    architecture, arguments = run.family.timm_config(run.space.find(name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        further = {"num_classes": num_classes} | ({"drop_path_rate": drop_path} if drop_path > 0 else {})
        model = timm.create_model(architecture, **{**arguments, **further})
    return _with_classifier(name, model, network.model.state_dict())


def _of_channels(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".: ")
