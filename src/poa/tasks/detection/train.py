"""Training of a detector on images with objects, and its test."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from poa import distributed
from poa.config.detection import Detection
from poa.data.content import Identity
from poa.data.sampler import keyed_random, steps_per_epoch
from poa.evaluation.protocol import Outcome
from poa.export.timm import Blueprint, num_parameters
from poa.files import whole_file
from poa.models.source import backbone_of
from poa.plots.overlays import ImageWithObjects, Objects, object_sheet
from poa.tasks.detection.average_precision import BOXES, MASKS, average_precision, box_entries, mask_entries
from poa.tasks.detection.coco import Entry, truth_of
from poa.tasks.detection.data import InstanceBatch, InstanceImages, images_in_order, instance_batches
from poa.tasks.detection.folder import write_detector
from poa.tasks.detection.model import DetectorPlan, build_detector
from poa.tasks.training import NO_HOOKS, Diverged, EpochSummary, Hooks, Task, Training, adamw, train_epochs
from poa.training.progress import bar

_STEP = 5
"""What random numbers are for: sizes of images, boxes drawn, drop path of a step."""
EXAMPLES = 4
"""How many test images are drawn with their objects."""
LIKELY = 0.5
"""Least score of the detections that are drawn."""
_FALL = 0.1
"""Factor of the learning rate at a milestone."""


class DetectorTraining(Training[InstanceBatch]):
    """A detector that is being trained for ``num_steps``, with ``steps`` an epoch, and all that a step changes.

    ``narrower`` are further detectors with parts of its parameters. Each is trained on every batch before the network
    is; their gradients are added, and there is one step for all.
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
        self._constant = _constant_parts(network.backbone.maps, settings)
        levels = network.backbone
        new = (levels.pyramid, levels.fpn, network.rpn, network.roi_heads)
        self._optimizer = optimizer = adamw(levels.maps.model, new, settings)
        warmup = min(round(settings.warmup_share * num_steps), num_steps - 1)
        rising = {"warmup_t": warmup, "warmup_lr_init": min(settings.warmup_lr, settings.lr), "t_in_epochs": False}
        if settings.milestones:
            milestones = [each * steps + 1 for each in settings.milestones]  # timm's falls one step early
            self._scheduler = MultiStepLRScheduler(optimizer, milestones, _FALL, warmup_prefix=False, **rising)
        else:
            falling = {"t_initial": num_steps - warmup, "lr_min": settings.min_lr}
            self._scheduler = CosineLRScheduler(optimizer, warmup_prefix=True, **falling, **rising)

    def step(self, step: int, batch: InstanceBatch) -> float:
        """Train on one batch; the loss, all terms together, and of several detectors their mean."""
        for each in self._all:
            each.train()
        for each in self._constant:
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
                        f"Training diverged: the loss is {value} at step {step} ({terms}). Try a lower --lr, or "
                        "clip gradients with --clip."
                    )
                torch.autograd.backward(loss)
            total += value / len(self._all)
        if self._settings.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self._settings.clip)
        self._optimizer.step()
        return total

    def state(self) -> dict[str, Any]:
        """All that must be saved to resume."""
        return {"network": self.network.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Resume from what ``state`` gave."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])


def _constant_parts(maps: nn.Module, settings: Detection) -> list[nn.Module]:
    """Parts of the backbone that stay as they are; their parameters get no gradient."""
    if settings.frozen:
        parts = [maps]
    else:
        parts = [] if settings.batch_norm else [each for each in maps.modules() if isinstance(each, _BatchNorm)]
    for each in parts:
        each.requires_grad_(False)
    return parts


def train(
    network: Any,
    images: InstanceImages,
    settings: Detection,
    *,
    device: torch.device,
    narrower: Sequence[Any] = (),
    workers: int = 0,
    hooks: Hooks = NO_HOOKS,
) -> EpochSummary:
    """Train a detector in place; one that was stopped and resumes ends with the same bits on a CPU."""
    steps = steps_per_epoch(len(images), settings.batch_size)
    num_steps = settings.epochs * steps
    training = DetectorTraining(network, settings, num_steps=num_steps, steps=steps, device=device, narrower=narrower)
    batches = partial(instance_batches, images, settings, workers=workers)
    return train_epochs(training, batches, epochs=settings.epochs, steps=steps, hooks=hooks)


class Example(NamedTuple):
    """Number of a test image to be drawn, and its likely detections as torchvision gives them, on the CPU."""

    i: int
    detected: Mapping[str, Tensor]


class Detections(NamedTuple):
    """What was detected in test images.

    Attributes:
        boxes: In COCO's format for results.
        masks: The same detections with masks; none of a detector without.
        images: Ids of the images that could be read.
        examples: Some of those with objects, evenly spread.
    """

    boxes: list[Entry]
    masks: list[Entry]
    images: list[int]
    examples: list[Example]


@torch.inference_mode()
def detect(
    network: Any,
    images: InstanceImages,
    *,
    device: torch.device,
    workers: int = 0,
    advance: Callable[[int], None] | None = None,
) -> Detections:
    """Detect objects in all test images, one image at a time."""
    network.eval().to(device)
    found = Detections([], [], [], [])
    filled = [i for i in range(len(images)) if images.annotation(i).objects]
    drawn = {filled[number * len(filled) // EXAMPLES] for number in range(EXAMPLES) if filled}
    for i, (about, pixels) in enumerate(images_in_order(images, workers=workers)):
        if pixels is not None:
            detected = {name: value.cpu() for name, value in network([pixels.to(device).float() / 255])[0].items()}
            boxes, labels, scores = (detected[name] for name in ("boxes", "labels", "scores"))
            entries = box_entries(about.id, boxes, labels, scores, categories=list(images.annotations.categories))
            found.boxes.extend(entries)
            found.masks.extend(mask_entries(entries, detected["masks"]) if "masks" in detected else ())
            found.images.append(about.id)
            if i in drawn:
                found.examples.append(Example(i, {name: value[scores >= LIKELY] for name, value in detected.items()}))
        if advance is not None:
            advance(1)
    return found


def detector_plan(
    settings: Detection, *, num_classes: int, mean: Sequence[float], std: Sequence[float]
) -> DetectorPlan:
    """What detector to build for so many classes, without the background, on images of that mean and deviation."""
    shared = settings.model_dump(include={field.name for field in fields(DetectorPlan)})
    return DetectorPlan(
        num_classes=num_classes, mean=mean, std=std, side=settings.test_side, train_sides=settings.sides, **shared
    )


@dataclass(frozen=True)
class DetectionTask(Task):
    """Detection by a detector on each network, which is trained along or stays as it is.

    Attributes:
        config: How to train and to test.
        train: Images to train on.
        test: Images to test on, if any.
    """

    config: Detection
    train: InstanceImages
    test: InstanceImages | None
    name = "detection"
    may_memorise = True

    @property
    def identities(self) -> Mapping[str, Identity]:
        """Images with their annotations."""
        return {"train": self.train.identity, **({} if self.test is None else {"test": self.test.identity})}

    @property
    def choices(self) -> Mapping[str, Any]:
        """Preprocessing, and how to train and to test."""
        return {
            "image_size": self.source.preprocessing.image_size,
            "mean": self.source.preprocessing.mean,
            "std": self.source.preprocessing.std,
            **dict(self.config),
        }

    @cached_property
    def truth(self) -> Mapping[str, Any]:
        """What pycocotools compares detections with, read once for all networks."""
        assert self.test is not None
        return truth_of(self.test.annotations)

    @property
    def plan(self) -> DetectorPlan:
        """What detector to build."""
        own, categories = self.source.preprocessing, self.train.annotations.categories
        return detector_plan(self.config, num_classes=len(categories), mean=own.mean, std=own.std)

    def evaluate(self, name: str, work: Path) -> Outcome:
        """Train a detector on a network, test it if there are test images, and write it."""
        backbone, blueprint = backbone_of(self.source, name, drop_path=self.config.drop_path)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.config.seed)
            network = build_detector(backbone, self.plan)
        return self.assess(name, network, blueprint, self.fit(network, name, work))

    def fit(self, network: Any, name: str, work: Path, *, narrower: Sequence[Any] = ()) -> EpochSummary:
        """Train a detector in place, with checkpoints in ``work``."""
        config, device, workers = self.config, distributed.this_device(), self.options.workers
        an_epoch = steps_per_epoch(len(self.train), config.batch_size) * config.batch_size
        with self.hooks(name, work, epochs=config.epochs, images=an_epoch) as hooks:
            return train(network, self.train, config, device=device, narrower=narrower, workers=workers, hooks=hooks)

    def assess(self, name: str, network: Any, blueprint: Blueprint, summary: EpochSummary) -> Outcome:
        """Test a trained detector if there are test images, and write it."""
        outcome = self._trained(network, summary)
        if self.test is not None:
            outcome = self._tested(name, network, self.test, outcome)
        own = self.source.preprocessing
        write_detector(
            network,
            blueprint,
            self.folder / "models" / name,
            plan=self.plan,
            categories=self.train.annotations.categories,
            preprocessing=replace(own, resize=own.image_size),
            name=name,
            origin=self.origin,
        )
        return outcome

    def _trained(self, network: Any, summary: EpochSummary) -> Outcome:
        """What is known before a test."""
        details = {
            "training_loss": summary.loss,
            "training_images": float(len(self.train)),
            "training_objects": float(self.train.annotations.num_objects),
            "absent_training_images": float(self.train.num_absent),
            "detector_parameters": float(num_parameters(network)),
        }
        return Outcome({}, details=details, left_out={"train": self.train.left_out(summary.bad)})

    def _tested(self, name: str, network: Any, test: InstanceImages, trained: Outcome) -> Outcome:
        """Scores of a detector; writes what it found, and draws some test images."""
        device, workers = distributed.this_device(), self.options.workers
        with bar(f"{name} test images", total=len(test), console=self.console) as advance:
            found = detect(network, test, device=device, workers=workers, advance=advance)
        scores = self._scores(name, found)
        self._draw(name, test, found, scores)
        details = {
            "test_images": float(len(found.images)),
            "absent_test_images": float(test.num_absent),
            "detections": float(len(found.boxes)),
        }
        read = set(found.images)
        unread = [number for number, each in enumerate(test.annotations.images) if each.id not in read]
        left_out = {**trained.left_out, "test": test.left_out(unread)}
        return Outcome(scores, details={**trained.details, **details}, left_out=left_out)

    def _scores(self, name: str, found: Detections) -> Mapping[str, float]:
        """COCO's average precision of the files of detections, which are written first."""
        scores: dict[str, float] = {}
        kinds = {BOXES: ("boxes", found.boxes)} | ({MASKS: ("masks", found.masks)} if self.config.has_masks else {})
        for kind, (what, entries) in kinds.items():
            file = self.folder / "detections" / f"{name}-{what}.json"
            with whole_file(file) as path:
                path.write_text(json.dumps(entries), encoding="utf-8")
            scores |= average_precision(self.truth, file, kind=kind, images=found.images)
        return scores

    def _draw(self, name: str, test: InstanceImages, found: Detections, scores: Mapping[str, float]) -> None:
        """A sheet of some test images with true and detected objects."""
        if not found.examples:
            return
        called = list(self.train.annotations.categories.values())
        rows = []
        for each in found.examples:
            truth, detected = test.read(each.i), each.detected
            true_masks = None if truth.masks is None else truth.masks.bool().numpy()
            masks = detected["masks"][:, 0].gt(0.5).numpy() if "masks" in detected else None
            rows.append(
                ImageWithObjects(
                    test.annotation(each.i).file_name,
                    truth.image.mul(255).round().byte().permute(1, 2, 0).numpy(),
                    Objects(truth.boxes.numpy(), [called[label - 1] for label in truth.labels], true_masks),
                    Objects(detected["boxes"].numpy(), [called[label - 1] for label in detected["labels"]], masks),
                )
            )
        whose = dict.fromkeys((Path(self.source.name).name, name))
        object_sheet(
            rows,
            found=f"detected, scores from {LIKELY}",
            title=f"{' '.join(whose)}: AP {scores['box_ap']:.1f} %",
            out=self.folder / "pictures" / f"{name}.png",
        )
