"""The folder of a run: where things are in it, and its networks of all sizes."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from poa.config import resolve
from poa.config.pretraining import Config
from poa.config.values import Step
from poa.data.augment import normalise
from poa.data.given import Images, given_images
from poa.data.images import Preprocessing
from poa.elastic.network import SubNetworks, state
from poa.elastic.skeleton import skeleton
from poa.elastic.space import SearchSpace, Size
from poa.elastic.switchable import SwitchableNetworks
from poa.errors import UserError, first_line
from poa.export.card import UNKNOWN, Origin
from poa.export.timm import write_size
from poa.families.base import Backbone, Family, Features
from poa.models.origin import evaluations_of, facts_of, inherited_by
from poa.models.registry import family_of
from poa.training.best import best_step, scores_of
from poa.training.checkpoint import (
    at_step,
    check_settings,
    checkpoints,
    digest_of,
    latest_checkpoint,
    load_checkpoint,
    saved_steps,
    step_of,
)
from poa.training.metrics import read_metrics

OF_NETWORK = ("method", "model.", "views.global_size", "views.mean", "views.std", "channels", "value_range")
"""Beginnings of the names of settings that say which network a checkpoint holds, and how it sees images."""


@dataclass(frozen=True)
class Paths:
    """Where things are in the folder of a run."""

    folder: Path

    @property
    def config(self) -> Path:
        """All settings, resolved."""
        return self.folder / "config.yaml"

    @property
    def initial(self) -> Path:
        """The intact backbone as the run began, if it began with trained weights."""
        return self.folder / "initial.safetensors"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object a step."""
        return self.folder / "metrics.jsonl"

    @property
    def bad_images(self) -> Path:
        """Names of images that could not be read."""
        return self.folder / "bad_images.txt"

    @property
    def models(self) -> Path:
        """Folder of extracted models."""
        return self.folder / "models"

    @property
    def scores(self) -> Path:
        """Folder of evaluation results."""
        return self.folder / "eval"


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run; one that timm loads as well is not."""
    return Paths(folder).config.exists() and not (folder / "config.json").exists()


@dataclass(frozen=True)
class Run:
    """A run that has saved at least one checkpoint, and its networks of all sizes.

    Attributes:
        folder: The folder of the run.
        config: Its settings.
        asked_step: The step of the checkpoint that is wanted; the newest if not given.
    """

    folder: Path
    config: Config
    asked_step: int | None = None

    @property
    def paths(self) -> Paths:
        """Where things are."""
        return Paths(self.folder)

    @cached_property
    def family(self) -> Family:
        """The family of backbones."""
        return family_of(self.config)

    @property
    def space(self) -> SearchSpace:
        """All sizes and how often each was drawn."""
        return self.family.space

    def sizes(self) -> tuple[str, ...]:
        """Names of all sizes, ascending; the last is the intact network."""
        return tuple(map(str, self.space.sizes))

    @cached_property
    def checkpoint(self) -> Path:
        """The checkpoint that is asked for, or the newest."""
        newest = latest_checkpoint(self.paths.checkpoints)
        if newest is None:
            raise UserError(f"{self.folder} has no checkpoint yet. Wait for the first, or resume with --resume.")
        return newest if self.asked_step is None else at_step(self.paths.checkpoints, self.asked_step)

    @property
    def step(self) -> int:
        """Steps done at the checkpoint."""
        return step_of(self.checkpoint)

    @property
    def weights(self) -> str:
        """What results know the parameters by that are scored."""
        return f"teacher at step {self.step}, sha256 {digest_of(self.checkpoint)}"

    @property
    def teacher(self) -> Backbone:
        """The intact backbone that is evaluated and extracted: the teacher's, or the student's after a distillation."""
        return self._saved[0]

    @property
    def facts(self) -> dict[str, str]:
        """What the weights were trained on, how and how long, for model cards."""
        return self._saved[1]

    @cached_property
    def _saved(self) -> tuple[Backbone, dict[str, str]]:
        whole = load_checkpoint(self.checkpoint)
        check_settings(whole, resolve.learned(self.config), self.checkpoint, of=OF_NETWORK)
        state = whole.get("method", {})
        prefix = f"{self.config.exported_branch}.backbone."
        weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        return self._intact(weights, file=self.checkpoint), facts_of(self.config, step=self.step, state=whole)

    def _intact(self, weights: dict[str, Tensor], *, file: Path) -> Backbone:
        backbone = skeleton(self._sub_networks.whole)
        try:
            backbone.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise UserError(
                f"{file} does not hold the network that {self.paths.config} describes ({first_line(error)}). Restore "
                "both as the run wrote them."
            ) from None
        assert isinstance(backbone, Backbone)
        return backbone.requires_grad_(False).eval()

    @cached_property
    def _start(self) -> Backbone:
        if self.config.init is None:
            raise UserError(
                f"{self.folder} did not start from trained weights (--init), so it has no initial sizes. Compare "
                "with branch `untrained`."
            )
        if not self.paths.initial.exists():
            raise UserError(f"{self.paths.initial} is missing. The run wrote it at its start; restore it.")
        try:
            weights = load_file(self.paths.initial)
        except Exception as error:  # whatever the parser stumbles over in a damaged file
            raise UserError(
                f"{self.paths.initial} is damaged ({first_line(error)}). Restore it, or leave out --branch initial."
            ) from None
        return self._intact(weights, file=self.paths.initial)

    @cached_property
    def _sub_networks(self) -> SubNetworks | SwitchableNetworks:
        return self.family.sub_networks()

    def network(self, size: str | Size) -> Backbone:
        """The backbone of a size such as ``384x12``, cut out of the teacher, as a module in evaluation mode."""
        return self._cut(size, self.teacher)

    def _cut(self, size: str | Size, intact: Backbone) -> Backbone:
        network = self._sub_networks.extract(self.space.find(str(size)), intact)
        assert isinstance(network, Backbone)
        return network

    def initial(self, size: str | Size) -> Backbone:
        """The backbone of a size, cut out of the weights that the run began with: what cutting alone gives."""
        return self._cut(size, self._start)

    def untrained(self, size: str | Size) -> Backbone:
        """A freshly initialised backbone of a size, the same at every call: the baseline of any training."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return self.family.build(self.space.find(str(size))).requires_grad_(False).eval()

    @torch.inference_mode()
    def features(self, images: Images, *, size: str | Size) -> Float[Tensor, "batch features"]:
        """One feature vector an image, from the network of a size.

        Args:
            images: One or a list of: PIL images or paths of files, which are resized and cropped as in evaluations;
                tensors (3 x height x width) or NumPy arrays (height x width x 3), which are taken as they are: RGB of
                0..255, sides that are multiples of the patch size. Or a batch as one tensor or array.
            size: Such as ``384x12``.

        Raises:
            UserError: There is no such size, or the images cannot be used.
        """
        network, own = self.network(size), self.preprocessing
        pixels = given_images(images, own)
        try:
            for side in dict.fromkeys(pixels.shape[2:]):
                self.family.check_image_size(side, setting="views.global-size")
        except UserError as error:
            what, _, _ = str(error).partition(". ")
            raise UserError(f"{what}. Resize the images, or give PIL images, which are resized.") from None
        features: Features = network(normalise(pixels, mean=own.mean, std=own.std))
        return features.cls

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared for the networks in evaluations."""
        views = self.config.views
        return Preprocessing(views.global_size, self.config.scoring_resize, views.mean, views.std, self.config.values)

    def extract(
        self, size: str | Size, *, out: str | Path | None = None, overwrite: bool = False, licence: str = UNKNOWN
    ) -> Path:
        """Write a size as a model that timm and transformers load, after checking it against the elastic sub-network.

        Args:
            size: Such as ``384x12``.
            out: Folder to write; ``models/<size>`` of the run by default. New, empty, or with this very size in it.
            overwrite: Also replace another model in that folder.
            licence: Of the weights, for the model card.

        Returns:
            The folder.

        Raises:
            UserError: The size does not exist, or the folder is in use or cannot be written.
        """
        wanted = self.space.find(str(size))
        scored = evaluations_of(self.paths.scores, str(wanted), weights=self.weights)
        summary = f"run {self.folder.resolve().name}, step {self.step}"
        return write_size(
            self.network(wanted),
            self._sub_networks.bind(wanted, state(self.teacher), training=False),
            family=self.family,
            size=wanted,
            folder=Path(out) if out is not None else self.paths.models / str(wanted),
            preprocessing=self.preprocessing,
            origin=Origin(summary, self.facts, inherited_by(self.config), tuple(scored), licence),
            overwrite=overwrite,
        )


def load(folder: str | Path, *, checkpoint: Step | None = None) -> Run:
    """Open a run.

    Args:
        folder: The ``--out`` of a pre-training.
        checkpoint: The step of the checkpoint to use, or ``best`` for that with the best score while training; the
            newest by default.

    Raises:
        UserError: The folder is not a run, or has no such checkpoint.
    """
    paths = Paths(Path(folder))
    if not paths.config.exists():
        raise UserError(
            f"{folder} is not the folder of a run: it has no config.yaml. Give the --out of a pre-training."
        )
    step = _best(paths) if checkpoint == "best" else checkpoint
    run = Run(paths.folder, resolve.of_run(paths.config), step)
    if checkpoint is not None:
        _ = run.checkpoint  # a wrong step is told before anything else happens
    return run


def _best(paths: Paths) -> int:
    """The step of the kept checkpoint with the best score."""
    steps = saved_steps(paths.checkpoints)
    best = best_step(scores_of(read_metrics(paths.metrics)), among=steps)
    if best is None:
        raise UserError(
            f"No checkpoint of {paths.folder} has k-NN scores (--monitor.data), so none is known to be the best. Give "
            f"--checkpoint one of {', '.join(map(str, steps)) or 'no step'}, or leave it out for the newest."
        )
    return best


class InRun(NamedTuple):
    """A checkpoint of a run."""

    folder: Path
    step: int


def in_run(file: Path) -> InRun | None:
    """Of which run a file is a checkpoint, if it is one."""
    folder = file.parent.parent
    is_one = file in checkpoints(Paths(folder).checkpoints) and is_run(folder)
    return InRun(folder, step_of(file)) if is_one else None
