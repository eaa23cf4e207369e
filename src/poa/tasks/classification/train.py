"""Supervised training of one timm model on labelled images, put together from timm's parts.

The recipe is the one of POA's evaluation (official code, itself that of DeiT and iBOT): AdamW with layer-wise learning
rates, mixup and cutmix, RandAugment, random erasing, drop path, and a moving average of the weights.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int
from timm.data import Mixup
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from poa.config.finetune import Finetune
from poa.data.augment import normalise
from poa.data.images import Preprocessing
from poa.data.loader import images_for_scoring
from poa.data.sampler import steps_per_epoch
from poa.errors import UserError
from poa.evaluation.protocol import class_ranks
from poa.tasks.classification.data import Labelled, TrainingBatch, draw_rows, step_random, training_batches
from poa.tasks.training import Advance, Diverged, Save, Training, train_epochs

TESTED_AT_ONCE = 256
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HIDDEN = 2048
"""Width between the two layers of an ``mlp`` head."""


@dataclass(frozen=True, slots=True)
class FinetuneResult:
    """Accuracy in percent after the last epoch; no epoch is picked by the test images.

    Attributes:
        top1: Share of test images whose class comes first.
        top5: Share of test images whose class is among the first five.
        ranks: Place of the class of each test image that could be read from 0, on the CPU.
        loss: Mean training loss of the last epoch.
        num_images: How many images were trained on.
        bad_images: How many images of each kind could not be read.
    """

    top1: float
    top5: float
    ranks: Int[Tensor, " test"]
    loss: float
    num_images: int
    bad_images: Mapping[str, int]

    @property
    def correct(self) -> Bool[Tensor, " test"]:
        """Whether each test image's class comes first."""
        return self.ranks < 1


class CorrectedEma(ModelEmaV3):  # type: ignore[misc]  # timm is untyped
    """A moving average that forgets where it began: step t counts ``decay ** (now - t)``, shares add up to 1."""

    def get_decay(self, step: int | None = None) -> float:
        """Share of the old average that a step keeps.

        Args:
            step: Number of steps done, this one included.
        """
        assert step is not None
        return float(1 - (1 - self.decay) / (1 - self.decay**step))


def with_head(model: nn.Module, head: str, *, num_classes: int, seed: int) -> nn.Module:
    """The model with the classifier wanted, in place.

    Args:
        model: A timm model with a linear classifier.
        head: ``linear`` or ``mlp``.
        num_classes: Number of classes.
        seed: Of the new layers.

    Raises:
        UserError: The model's classifier is not one linear layer.
    """
    if head == "linear":
        return model
    settings: Any = model.pretrained_cfg
    name = settings["classifier"]
    old = model.get_submodule(name) if isinstance(name, str) else None
    if not isinstance(old, nn.Linear):
        raise UserError(f"A {type(model).__name__} has no linear classifier to replace. Leave out --head mlp.")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        new = nn.Sequential(nn.Linear(old.in_features, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, num_classes))
    model.set_submodule(name, new)
    return model


class ModelTraining(Training[TrainingBatch]):
    """A model that is being trained, and all that a step changes.

    Args:
        model: A timm model with its classifier; taken over.
        settings: How to train it.
        num_classes: Number of classes.
        num_steps: Of the whole training.
        device: Where to compute.
    """

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
        """Train on one batch.

        Args:
            step: Number of the step, from 0.
            batch: Its images.

        Returns:
            The loss.

        Raises:
            Diverged: The loss is not finite.
        """
        self.model.train()
        self._scheduler.step_update(step)
        images, targets = batch.images.to(self._device), batch.labels.to(self._device)
        with step_random(self._settings.seed, step, device=self._device):
            if self._mix is not None:
                images, targets = self._mix(images, targets)
            with self._autocast():
                logits = self.model(images)
            loss: Tensor = self._loss(logits.float(), targets)
            value = loss.item()
            if not loss.isfinite():
                raise Diverged(
                    f"The training loss is {value} at step {step}, so that the model is lost. "
                    "Try a lower --lr, or --precision fp32."
                )
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(self._scaler.scale(loss))
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._ema is not None:
            self._ema.update(self.model, step=step + 1)
        return value

    def state(self) -> dict[str, Any]:
        """All that must be saved to go on."""
        return {
            "model": self.model.state_dict(),
            "ema": {} if self._ema is None else self._ema.module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` gave.

        Args:
            state: Of a training with the same settings.
        """
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
    train: Labelled,
    test: Labelled,
    *,
    settings: Finetune,
    preprocessing: Preprocessing,
    num_classes: int,
    device: torch.device,
    workers: int = 0,
    start: Mapping[str, Any] | None = None,
    save: Save | None = None,
    advance: Advance | None = None,
) -> tuple[nn.Module, FinetuneResult]:
    """Train a model on labelled images, and test it after the last epoch.

    A training that was stopped and goes on from a saved state ends with the same bits as one that was not.

    Args:
        model: A timm model with a classifier of ``num_classes``, and with the drop path of the settings; taken over.
        train: Images to train on; the settings may ask for a part of them.
        test: Images to test on.
        settings: How to train.
        preprocessing: How images are prepared.
        num_classes: Number of classes.
        device: Where to compute.
        workers: Processes that prepare images.
        start: A state to go on from.
        save: Called after each epoch with the number of epochs done and a state to go on from.
        advance: Told of images that were trained on.

    Returns:
        The model that was tested, and how it fared.

    Raises:
        Diverged: The loss is not finite.
        UserError: The settings do not suit the images.
    """
    chosen = train.take(draw_rows(train.labels, settings))
    steps = steps_per_epoch(len(chosen.labels), settings.batch_size)
    training = ModelTraining(model, settings, num_classes=num_classes, num_steps=settings.epochs * steps, device=device)
    batches = partial(training_batches, chosen, settings, preprocessing, workers=workers)
    reached = train_epochs(
        training, batches, epochs=settings.epochs, steps=steps, start=start, save=save, advance=advance
    )
    ranks = ranks_of(training.scored, test, preprocessing=preprocessing, device=device, workers=workers)
    top1, top5 = (100.0 * float((ranks < places).double().mean()) for places in (1, 5))
    bad_images = {"train": len(reached.bad), "test": len(test.labels) - len(ranks)}
    return training.scored, FinetuneResult(top1, top5, ranks, reached.loss, len(chosen.labels), bad_images)


@torch.inference_mode()
def ranks_of(
    model: nn.Module, test: Labelled, *, preprocessing: Preprocessing, device: torch.device, workers: int = 0
) -> Int[Tensor, " read"]:
    """Place of the class of each test image that can be read from 0, equal logits decided by class number.

    Args:
        model: A classifier; put into evaluation mode.
        test: The images.
        preprocessing: How they are prepared.
        device: Where to compute.
        workers: Processes that prepare images.

    Raises:
        UserError: No image can be read.
    """
    model.eval()
    labels = torch.from_numpy(test.labels)
    found = [torch.empty(0, dtype=torch.int64)]
    for batch in images_for_scoring(
        test.index,
        size=preprocessing.image_size,
        resize=preprocessing.resize,
        batch_size=TESTED_AT_ONCE,
        workers=workers,
    ):
        if batch.indices:
            images = normalise(batch.images.to(device), mean=preprocessing.mean, std=preprocessing.std)
            found.append(class_ranks(model(images).float().cpu(), labels[list(batch.indices)]))
    ranks = torch.cat(found)
    if not len(ranks):
        raise UserError(f"None of the {len(labels)} test images in {test.index.source} could be read. Check the data.")
    return ranks
