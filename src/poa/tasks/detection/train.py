"""Training of one detector on images with objects, and its test."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple

import torch
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from poa.config.detection import Detection
from poa.data.sampler import keyed_random, steps_per_epoch
from poa.tasks.detection.coco import Entry, box_entries, mask_entries
from poa.tasks.detection.data import InstanceBatch, InstanceImages, images_in_order, instance_batches
from poa.tasks.detection.model import DetectorPlan
from poa.tasks.training import Advance, Diverged, EpochSummary, Hooks, Save, Training, adamw, train_epochs

_STEP = 5
"""What random numbers are for: sizes of images, boxes drawn, drop path of a step."""
EXAMPLES = 4
"""How many test images are kept to be looked at."""
LIKELY = 0.5
"""Score from which on detections in them are shown."""
_FALL = 0.1
"""Factor of the learning rate at a milestone."""


def detector_plan(
    settings: Detection, *, num_classes: int, mean: Sequence[float], std: Sequence[float]
) -> DetectorPlan:
    """What detector to build for so many classes, without the background, on images of that mean and deviation."""
    shared = settings.model_dump(include={field.name for field in fields(DetectorPlan)})
    return DetectorPlan(
        num_classes=num_classes, mean=mean, std=std, side=settings.test_side, train_sides=settings.sides, **shared
    )


class DetectorTraining(Training[InstanceBatch]):
    """A detector that is being trained, and all that a step changes.

    Args:
        network: As ``build_detector`` makes it; taken over.
        settings: How to train it.
        num_steps: Of the whole training.
        steps: Of an epoch.
        device: Where to compute.
        narrower: Further detectors with the same parameters or parts of them. Each is trained on every batch before the
            network is; their gradients are added, and there is one step for all.
    """

    def __init__(
        self,
        network: Any,
        settings: Detection,
        *,
        num_steps: int,
        steps: int,
        device: torch.device,
        narrower: Sequence[Any] = (),
    ) -> None:
        self._settings, self._device = settings, device
        self.network = network.to(device)
        self._all = (*narrower, self.network)
        self._held = _held(network.backbone.maps, settings)
        levels = network.backbone
        self._optimizer = adamw(
            levels.maps.model, (levels.pyramid, levels.fpn, network.rpn, network.roi_heads), settings
        )
        warmup = min(round(settings.warmup_share * num_steps), num_steps - 1)
        rising = {"warmup_t": warmup, "warmup_lr_init": min(settings.warmup_lr, settings.lr), "t_in_epochs": False}
        self._scheduler = (
            # timm's falls one step early
            MultiStepLRScheduler(
                self._optimizer,
                [each * steps + 1 for each in settings.milestones],
                _FALL,
                warmup_prefix=False,
                **rising,
            )
            if settings.milestones
            else CosineLRScheduler(
                self._optimizer, num_steps - warmup, lr_min=settings.min_lr, warmup_prefix=True, **rising
            )
        )

    def step(self, step: int, batch: InstanceBatch) -> float:
        """Train on one batch.

        Args:
            step: Number of the step, from 0.
            batch: Its images and objects.

        Returns:
            The loss, all terms together; of several detectors their mean.

        Raises:
            Diverged: The loss is not finite.
        """
        for each in self._all:
            each.train()
        for each in self._held:
            each.eval()
        self._scheduler.step_update(step)
        images = [each.to(self._device) for each in batch.images]
        targets = [{name: value.to(self._device) for name, value in each.items()} for each in batch.targets]
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for number, network in enumerate(self._all):
            with keyed_random(self._settings.seed, _STEP, step, number, device=self._device):
                losses = network(images, targets)
                loss = torch.stack(list(losses.values())).sum()
                value = float(loss.detach())
                if not loss.isfinite():
                    terms = ", ".join(name for name, term in losses.items() if not term.isfinite())
                    raise Diverged(
                        f"The training loss is {value} at step {step} ({terms}), so that the network is lost. "
                        "Lower --lr, or --clip the gradients."
                    )
                torch.autograd.backward(loss)
            total += value / len(self._all)
        if self._settings.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self._settings.clip)
        self._optimizer.step()
        return total

    def state(self) -> dict[str, Any]:
        """All that must be saved to go on."""
        return {"network": self.network.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` gave.

        Args:
            state: Of a training with the same settings.
        """
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])


def _held(maps: nn.Module, settings: Detection) -> list[nn.Module]:
    """Parts of the backbone that stay as they are; their parameters get no gradient."""
    if settings.frozen:
        held = [maps]
    else:
        held = [] if settings.batch_norm else [each for each in maps.modules() if isinstance(each, _BatchNorm)]
    for each in held:
        each.requires_grad_(False)
    return held


def train(
    network: Any,
    images: InstanceImages,
    *,
    settings: Detection,
    device: torch.device,
    narrower: Sequence[Any] = (),
    workers: int = 0,
    start: Mapping[str, Any] | None = None,
    save: Save | None = None,
    advance: Advance | None = None,
) -> EpochSummary:
    """Train a detector in place; one that was stopped and goes on from a saved state ends with the same bits on a CPU.

    Args:
        network: As ``build_detector`` makes it.
        images: To train on.
        settings: How to train.
        device: Where to compute.
        narrower: Further detectors with the same parameters, see ``DetectorTraining``.
        workers: Processes that prepare images.
        start: A state to go on from.
        save: Called after each epoch with the number of epochs done and a state to go on from.
        advance: Told of images that were trained on.

    Raises:
        Diverged: The loss is not finite.
        UserError: There are fewer images than a batch needs.
    """
    steps = steps_per_epoch(len(images), settings.batch_size)
    training = DetectorTraining(
        network, settings, num_steps=settings.epochs * steps, steps=steps, device=device, narrower=narrower
    )
    batches = partial(
        instance_batches,
        images,
        flip=settings.flip,
        batch_size=settings.batch_size,
        seed=settings.seed,
        workers=workers,
    )
    return train_epochs(training, batches, epochs=settings.epochs, steps=steps, hooks=Hooks(start, save, advance))


class Example(NamedTuple):
    """A test image to be looked at.

    Attributes:
        i: Number of the image.
        found: What was detected with a score of at least ``LIKELY``, as torchvision gives it, on the CPU.
    """

    i: int
    found: Mapping[str, Tensor]


class Found(NamedTuple):
    """What was detected in test images.

    Attributes:
        boxes: In COCO's format for results.
        masks: The same detections with masks; none of a detector without.
        images: Ids of the images that could be read.
        examples: Some of those with objects, evenly spread.
    """

    boxes: list[Entry]
    masks: list[Entry]
    images: tuple[int, ...]
    examples: tuple[Example, ...]


@torch.inference_mode()
def detect(
    network: Any,
    images: InstanceImages,
    *,
    categories: Sequence[int],
    device: torch.device,
    workers: int = 0,
    advance: Callable[[int], None] | None = None,
) -> Found:
    """Detect objects in all test images, one image at a time.

    Args:
        network: Put into evaluation mode.
        images: To test on.
        categories: Ids in the order of the labels.
        device: Where to compute.
        workers: Processes that read images.
        advance: Told of images that were tested.
    """
    network.eval().to(device)
    boxes, masks, read, examples = list[Entry](), list[Entry](), list[int](), list[Example]()
    filled = [i for i in range(len(images)) if images.annotation(i).objects]
    shown = {filled[number * len(filled) // EXAMPLES] for number in range(EXAMPLES) if filled}
    for i, (about, pixels) in enumerate(images_in_order(images, workers=workers)):
        if pixels is not None:
            detected = {name: value.cpu() for name, value in network([pixels.to(device).float() / 255])[0].items()}
            found = _entries(detected, about.id, categories)
            boxes += found[0]
            masks += found[1]
            read.append(about.id)
            if i in shown:
                likely = detected["scores"] >= LIKELY
                examples.append(Example(i, {name: value[likely] for name, value in detected.items()}))
        if advance is not None:
            advance(1)
    return Found(boxes, masks, tuple(read), tuple(examples))


def _entries(detected: Mapping[str, Tensor], image: int, categories: Sequence[int]) -> tuple[list[Entry], list[Entry]]:
    boxes, labels, scores = (detected[name] for name in ("boxes", "labels", "scores"))
    entries = box_entries(image, boxes, labels, scores, categories=categories)
    return entries, mask_entries(entries, detected["masks"]) if "masks" in detected else []
