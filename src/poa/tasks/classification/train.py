"""Supervised training of one timm model on labelled images, put together from timm's parts.

The recipe is the one of POA's evaluation (official code, itself that of DeiT and iBOT): AdamW with layer-wise learning
rates, mixup and cutmix, RandAugment, random erasing, drop path, and a moving average of the weights.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from poa import distributed
from poa.config.finetune import Finetune
from poa.data.augment import normalise
from poa.data.content import Identity
from poa.data.images import Preprocessing
from poa.data.loader import images_for_scoring
from poa.data.sampler import keyed_random, steps_per_epoch
from poa.errors import UserError, counted
from poa.evaluation.protocol import Outcome, class_ranks
from poa.export.timm import write_finetuned
from poa.models.source import blueprint
from poa.tasks.classification.data import Labelled, TrainingBatch, draw_rows, training_batches
from poa.tasks.training import NO_HOOKS, Diverged, EpochSummary, Hooks, Task, Training, train_epochs

_STEP = 1
"""What random numbers are for: mixing of images and drop path of a step."""
TESTED_AT_ONCE = 256
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HIDDEN = 2048
"""Width between the two layers of an ``mlp`` head."""


class CorrectedEma(ModelEmaV3):  # type: ignore[misc]  # timm is untyped
    """A moving average that forgets where it began: step t counts ``decay ** (now - t)``, shares add up to 1."""

    def get_decay(self, step: int | None = None) -> float:
        """Share of the old average that a step keeps, of which ``step`` are done with this one."""
        assert step is not None
        return float(1 - (1 - self.decay) / (1 - self.decay**step))


def with_head(model: nn.Module, head: str, *, num_classes: int, seed: int) -> nn.Module:
    """The timm model with the wanted classifier in place of its linear one, drawn by the seed."""
    if head == "linear":
        return model
    settings: Any = model.pretrained_cfg
    name = settings["classifier"]
    old = model.get_submodule(name) if isinstance(name, str) else None
    if not isinstance(old, nn.Linear):
        raise UserError(f"{type(model).__name__} has no linear classifier to replace. Leave out --head mlp.")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        new = nn.Sequential(nn.Linear(old.in_features, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, num_classes))
    model.set_submodule(name, new)
    return model


class ModelTraining(Training[TrainingBatch]):
    """A timm model with its classifier that is being trained for ``num_steps``, and all that a step changes."""

    def __init__(
        self, model: nn.Module, settings: Finetune, *, num_classes: int, num_steps: int, device: torch.device
    ) -> None:
        self._settings, self._device = settings, device
        self.model = with_head(model, settings.head, num_classes=num_classes, seed=settings.seed).to(device)
        self._ema = CorrectedEma(self.model, decay=settings.ema) if settings.ema else None
        self._optimizer = create_optimizer_v2(
            self.model,
            opt="adamw",
            lr=settings.peak_lr,
            weight_decay=settings.weight_decay,
            layer_decay=settings.layer_decay,
        )
        warmup = round(settings.warmup_share * num_steps)
        self._scheduler = CosineLRScheduler(
            self._optimizer,
            t_initial=num_steps - warmup,
            lr_min=settings.min_lr,
            warmup_t=warmup,
            warmup_lr_init=min(settings.warmup_lr, settings.peak_lr),
            warmup_prefix=True,
            t_in_epochs=False,
        )
        self._scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self._mix = (
            Mixup(settings.mixup, settings.cutmix, label_smoothing=settings.smoothing, num_classes=num_classes)
            if settings.mixes
            else None
        )
        self._loss = SoftTargetCrossEntropy() if settings.mixes else LabelSmoothingCrossEntropy(settings.smoothing)

    @property
    def scored(self) -> nn.Module:
        """The model that is scored and kept: the average of the weights if there is one."""
        if self._ema is None:
            return self.model
        averaged: nn.Module = self._ema.module
        return averaged

    def step(self, step: int, batch: TrainingBatch) -> float:
        """Train on one batch; the loss."""
        self.model.train()
        self._scheduler.step_update(step)
        images, targets = batch.images.to(self._device), batch.labels.to(self._device)
        with keyed_random(self._settings.seed, _STEP, step, device=self._device):
            if self._mix is not None:
                images, targets = self._mix(images, targets)
            with self._autocast():
                logits = self.model(images)
            loss: Tensor = self._loss(logits.float(), targets)
            value = loss.item()
            if not loss.isfinite():
                raise Diverged(
                    f"Training diverged: the loss is {value} at step {step}. Try a lower --lr, or --precision fp32."
                )
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(self._scaler.scale(loss))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._ema is not None:
            self._ema.update(self.model, step=step + 1)
        return value

    def state(self) -> dict[str, Any]:
        """All that must be saved to resume."""
        return {
            "model": self.model.state_dict(),
            "ema": {} if self._ema is None else self._ema.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Resume from what ``state`` gave."""
        self.model.load_state_dict(state["model"])
        if self._ema is not None:
            self._ema.module.load_state_dict(state["ema"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])

    def _autocast(self) -> Any:
        dtype = PRECISIONS[self._settings.precision]
        return nullcontext() if dtype == torch.float32 else torch.autocast(self._device.type, dtype=dtype)


def finetune(
    model: nn.Module,
    images: Labelled,
    settings: Finetune,
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    workers: int = 0,
    hooks: Hooks = NO_HOOKS,
) -> tuple[nn.Module, EpochSummary]:
    """Train a model on labelled images; the weights that are to be tested, and what the last epoch was like.

    The model is a timm model with a classifier and with the drop path of the settings; it is changed. A training that
    was stopped and resumes ends with the same bits as one that was not.
    """
    steps = steps_per_epoch(len(images.labels), settings.batch_size)
    num_classes, num_steps = len(images.index.classes), settings.epochs * steps
    training = ModelTraining(model, settings, num_classes=num_classes, num_steps=num_steps, device=device)
    batches = partial(training_batches, images, settings, preprocessing, workers=workers)
    summary = train_epochs(training, batches, epochs=settings.epochs, steps=steps, hooks=hooks)
    return training.scored, summary


@torch.inference_mode()
def ranks_of(
    model: nn.Module, test: Labelled, *, preprocessing: Preprocessing, device: torch.device, workers: int = 0
) -> tuple[list[int], Int[Tensor, " read"]]:
    """Which test images can be read, and the place of the class of each from 0, on the CPU; ties by class number."""
    model.eval()
    labels = torch.from_numpy(test.labels)
    read, found = list[int](), [torch.empty(0, dtype=torch.int64)]
    for batch in images_for_scoring(
        test.index,
        size=preprocessing.image_size,
        resize=preprocessing.resize,
        batch_size=TESTED_AT_ONCE,
        workers=workers,
    ):
        if batch.indices:
            images = normalise(batch.images.to(device), mean=preprocessing.mean, std=preprocessing.std)
            read += batch.indices
            found.append(class_ranks(model(images).float().cpu(), labels[list(batch.indices)]))
    ranks = torch.cat(found)
    if not len(ranks):
        raise UserError(
            f"Of {counted(len(labels), 'test image')} in {test.index.source}, none could be read. Check the data."
        )
    return read, ranks


@dataclass(frozen=True)
class Classification(Task):
    """Fine-tuning on labelled images, all weights and a new classifier."""

    config: Finetune
    train: Labelled
    test: Labelled | None

    name = "finetune"
    done = "fine-tuned"

    @property
    def identities(self) -> Mapping[str, Identity]:
        """The images that are trained on, and those to test on."""
        test = {} if self.test is None else {"test": self.test.index.identity}
        return {"train": self.images.index.identity, **test}

    @property
    def choices(self) -> Mapping[str, Any]:
        """Preprocessing, and how to train."""
        return {**self.source.preprocessing.stated(), **dict(self.config)}

    @property
    def images(self) -> Labelled:
        """Those that are trained on."""
        return self.train.take(draw_rows(self.train.labels, self.config))

    def evaluate(self, name: str, work: Path) -> Outcome:
        """Fine-tune a network, test it if there are test images, and write it."""
        config, preprocessing, images = self.config, self.source.preprocessing, self.images
        classes, device, workers = images.index.classes, distributed.this_device(), self.options.workers
        model = self.source.timm_model(name, num_classes=len(classes), drop_path=config.drop_path)
        plan = blueprint(self.source, name, model, classes=classes, is_linear=config.head == "linear")
        an_epoch = steps_per_epoch(len(images.labels), config.batch_size) * config.batch_size
        with self.hooks(name, work, epochs=config.epochs, images=an_epoch) as hooks:
            model, summary = finetune(model, images, config, preprocessing, device=device, workers=workers, hooks=hooks)
            outcome = self._outcome(model, images, summary)
        folder = self.folder / "models" / name
        write_finetuned(model, plan, name=name, folder=folder, preprocessing=preprocessing, origin=self.origin)
        return outcome

    def _outcome(self, model: nn.Module, images: Labelled, summary: EpochSummary) -> Outcome:
        """Scores of a fine-tuned model, if there are test images."""
        details = {"training_loss": summary.loss, "training_images": float(len(images.labels))}
        left_out = {"train": images.index.left_out(np.setdiff1d(np.arange(len(images.labels)), summary.bad))}
        if self.test is None:
            return Outcome({}, details=details, left_out=left_out)
        device, preprocessing, workers = distributed.this_device(), self.source.preprocessing, self.options.workers
        tested, ranks = ranks_of(model, self.test, preprocessing=preprocessing, device=device, workers=workers)
        left_out["test"] = self.test.index.left_out(tested)
        return replace(Outcome.of_ranks(ranks, details), left_out=left_out)
