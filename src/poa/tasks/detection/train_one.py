"""Detection by one network of a source: built, trained from its last checkpoint on, tested and written."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from poa import distributed
from poa.config.detection import Detection
from poa.data.images import Preprocessing
from poa.data.sampler import steps_per_epoch
from poa.evaluation.protocol import Outcome
from poa.export.timm import Blueprint
from poa.files import whole_file
from poa.models.source import ModelSource, backbone_of
from poa.plots.boxes import Objects, Row, detection_sheet
from poa.tasks.detection.coco import BOXES, MASKS, average_precision
from poa.tasks.detection.data import InstanceImages
from poa.tasks.detection.folder import write_detector
from poa.tasks.detection.model import DetectorPlan, build_detector
from poa.tasks.detection.train import LIKELY, Found, detect, detector_plan, train
from poa.tasks.training import EpochSummary
from poa.training.checkpoint import saver, unfinished
from poa.training.progress import bar

HEADLINE = "box_ap"
DETECTIONS = "detections"
"""Folder of files of what was found."""


@dataclass(frozen=True, slots=True)
class Task:
    """What the trainings of all networks share.

    Attributes:
        source: Whose networks.
        settings: How to train and to test.
        train: Images to train on.
        test: Images to test on.
        num_bad: How many images of each kind cannot be read.
        workers: Processes that prepare images.
        save_every: Epochs from one checkpoint to the next.
        folder: Of all results.
        console: Where to show progress.
    """

    source: ModelSource
    settings: Detection
    train: InstanceImages
    test: InstanceImages
    num_bad: Mapping[str, int]
    workers: int
    save_every: int
    folder: Path
    console: Console

    @property
    def known(self) -> dict[str, Any]:
        """All that the results depend on, as JSON gives it back."""
        content = {
            "weights": self.source.weights,
            "train": self.train.fingerprint,
            "test": self.test.fingerprint,
            "image_size": self.source.preprocessing.image_size,
            "mean": self.source.preprocessing.mean,
            "std": self.source.preprocessing.std,
            **dict(self.settings),
        }
        known: dict[str, Any] = json.loads(json.dumps(content))
        return known

    @property
    def categories(self) -> Mapping[int, str]:
        """Names by id, in the order of the labels."""
        return self.train.annotations.categories

    @property
    def plan(self) -> DetectorPlan:
        """What detector to build."""
        seen = self.source.preprocessing
        return detector_plan(self.settings, num_classes=len(self.categories), mean=seen.mean, std=seen.std)


def detect_one(task: Task, name: str, *, work: Path) -> tuple[Outcome, Mapping[str, int]]:
    """Train and test a network, write it and what it found.

    Args:
        task: What all networks share.
        name: Of the network.
        work: Folder of its checkpoints.

    Returns:
        Its scores, and how many images of each kind could not be read.

    Raises:
        Diverged: The training loss is not finite.
        UserError: The network gives no maps, or was begun with other settings.
    """
    network, plan = _network(task, name)
    reached = train_detector(task, network, name, work=work, known=task.known)
    return assess_one(task, name, network, plan, reached)


def assess_one(
    task: Task, name: str, network: Any, plan: Blueprint, reached: EpochSummary
) -> tuple[Outcome, Mapping[str, int]]:
    """Test a trained detector, write it and what it found.

    Args:
        task: What all networks share.
        name: Of the network.
        network: The detector.
        plan: How timm builds its backbone.
        reached: Of its training.

    Returns:
        Its scores, and how many images of each kind could not be read.
    """
    with bar(f"{name} test images", total=len(task.test), console=task.console) as advance:
        found = detect(
            network,
            task.test,
            categories=list(task.categories),
            device=distributed.this_device(),
            workers=task.workers,
            advance=advance,
        )
    scores = _scores(task, name, found)
    _draw(task, name, found, scores)
    source = task.source
    seen = source.preprocessing
    write_detector(
        network,
        plan,
        task.folder / "models" / name,
        plan=task.plan,
        categories=task.categories,
        preprocessing=Preprocessing(seen.image_size, seen.image_size, seen.mean, seen.std),
        name=name,
        source=f"{source.name}, {source.weights}",
    )
    details = {
        "training_loss": reached.loss,
        "training_images": float(len(task.train)),
        "training_objects": float(task.train.annotations.num_objects),
        "test_images": float(len(found.images)),
        "detections": float(len(found.boxes)),
        "detector_parameters": float(sum(each.numel() for each in network.parameters())),
    }
    num_bad = {
        "train": task.num_bad["train"] + len(reached.bad),
        "test": task.num_bad["test"] + len(task.test) - len(found.images),
    }
    return Outcome(scores, details=details), num_bad


def _draw(task: Task, name: str, found: Found, scores: Mapping[str, float]) -> None:
    """A sheet of some test images with true and detected objects."""
    called = list(task.categories.values())
    rows = []
    for each in found.examples:
        about, truth = task.test.annotation(each.i), task.test.read(each.i)
        names = [called[label - 1] for label in truth.labels.tolist()]
        detected = [called[label - 1] for label in each.found["labels"].tolist()]
        masks = None if truth.masks is None else truth.masks.bool().numpy()
        found_masks = each.found["masks"][:, 0].gt(0.5).numpy() if "masks" in each.found else None
        rows.append(
            Row(
                about.file_name,
                truth.image.mul(255).round().byte().permute(1, 2, 0).numpy(),
                Objects(truth.boxes.numpy(), names, masks),
                Objects(each.found["boxes"].numpy(), detected, found_masks),
            )
        )
    if not rows:
        return
    pictures = task.folder / "pictures"
    pictures.mkdir(exist_ok=True)
    whose = dict.fromkeys((Path(task.source.name).name, name))
    title = f"{' '.join(whose)}: AP {scores[HEADLINE]:.1f} %"
    detection_sheet(rows, found=f"detected, scores from {LIKELY}", title=title, out=pictures / f"{name}.png")


def _scores(task: Task, name: str, found: Found) -> Mapping[str, float]:
    """COCO's average precision of the files of detections, which are written first."""
    scores: dict[str, float] = {}
    kinds = {BOXES: ("boxes", found.boxes)} | ({MASKS: ("masks", found.masks)} if task.plan.has_masks else {})
    for kind, (what, entries) in kinds.items():
        file = task.folder / DETECTIONS / f"{name}-{what}.json"
        with whole_file(file) as unfinished:
            unfinished.write_text(json.dumps(entries))
        scores |= average_precision(task.test.annotations.file, file, kind=kind, images=found.images)
    return scores


def train_detector(
    task: Task, network: Any, name: str, *, work: Path, known: Mapping[str, Any], narrower: Sequence[Any] = ()
) -> EpochSummary:
    """Train a detector in place, from its last checkpoint on.

    Args:
        task: What all networks share.
        network: The detector.
        name: To show.
        work: Folder of its checkpoints.
        known: All that the training depends on.
        narrower: Further detectors with the same parameters.

    Raises:
        Diverged: The training loss is not finite.
        UserError: It was begun with other settings.
    """
    settings, start = task.settings, unfinished(work, settings=known, what="training")
    left = settings.epochs - (0 if start is None else start["epoch"])
    of_epoch = steps_per_epoch(len(task.train), settings.batch_size) * settings.batch_size
    with bar(f"{name} images", total=left * of_epoch, console=task.console) as advance:
        return train(
            network,
            task.train,
            settings=settings,
            device=distributed.this_device(),
            narrower=narrower,
            workers=task.workers,
            start=start,
            save=saver(work, settings=known, every=task.save_every, last=settings.epochs),
            advance=advance,
        )


def _network(task: Task, name: str) -> tuple[Any, Blueprint]:
    """A detector with fresh heads, and how timm builds its backbone, for images of any size where it can."""
    backbone, plan = backbone_of(task.source, name, drop_path=task.settings.drop_path)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(task.settings.seed)
        return build_detector(backbone, task.plan), plan
