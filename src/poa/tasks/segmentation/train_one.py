"""Segmentation by one network of a source: built, trained from its last checkpoint on, tested, drawn and written."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from poa import distributed
from poa.config.segmentation import Segmentation
from poa.data.images import Preprocessing
from poa.data.sampler import steps_per_epoch
from poa.evaluation.protocol import Outcome
from poa.export.timm import Blueprint
from poa.models.source import ModelSource, backbone_of
from poa.plots.masks import Row, mask_sheet
from poa.tasks.maps import Maps
from poa.tasks.segmentation import predict
from poa.tasks.segmentation.crops import Cropping
from poa.tasks.segmentation.folder import write_segmenter
from poa.tasks.segmentation.masks import Survey
from poa.tasks.segmentation.model import Segmenter
from poa.tasks.segmentation.predict import Sliding
from poa.tasks.segmentation.train import Assessed, assess, train
from poa.training.checkpoint import saver, unfinished
from poa.training.progress import bar

HEADLINE = "miou"


@dataclass(frozen=True, slots=True)
class Task:
    """What the trainings of all networks share.

    Attributes:
        source: Whose networks.
        settings: How to train and to test, with the crop that is used.
        train: Images to train on.
        test: Images to test on.
        classes: Names by id.
        ignore: Id of pixels without a class.
        workers: Processes that prepare images.
        save_every: Epochs from one checkpoint to the next.
        folder: Of all results.
        console: Where to show progress.
    """

    source: ModelSource
    settings: Segmentation
    train: Survey
    test: Survey
    classes: tuple[str, ...]
    ignore: int
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
            "classes": list(self.classes),
            "ignore": self.ignore,
            "mean": self.source.preprocessing.mean,
            "std": self.source.preprocessing.std,
            **dict(self.settings),
        }
        known: dict[str, Any] = json.loads(json.dumps(content))
        return known

    @property
    def cropping(self) -> Cropping:
        """How training crops are made."""
        settings = self.settings
        return Cropping(
            settings.crop,
            self.source.preprocessing.mean,
            self.source.preprocessing.std,
            self.ignore,
            settings.resize,
            settings.scale,
            settings.most,
            settings.flip,
            settings.jitter,
        )

    @property
    def sliding(self) -> Sliding:
        """How images are tested."""
        settings, own = self.settings, self.source.preprocessing
        window = 0 if settings.whole else settings.crop
        return Sliding(own.mean, own.std, window, settings.stride, settings.test_scales, settings.test_flip)


@dataclass(frozen=True)
class SegmentationOutcome(Outcome):
    """Scores of all test images together, which are no means over images.

    Attributes:
        ends: Of the intervals of scores.
    """

    ends: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Bootstrap intervals over test images."""
        return dict(self.ends)


def segment_one(task: Task, name: str, *, work: Path) -> SegmentationOutcome:
    """Train and test a network, write it and its pictures.

    Args:
        task: What all networks share.
        name: Of the network.
        work: Folder of its checkpoints.

    Raises:
        Diverged: The training loss is not finite.
        UserError: The network gives no maps, or was begun with other settings.
    """
    network, plan, loss = _trained(task, name, work)
    with bar(f"{name} test images", total=len(task.test.pairs), console=task.console) as advance:
        found = assess(
            network,
            task.test.pairs,
            task.sliding,
            num_classes=len(task.classes),
            ignore=task.ignore,
            resize=task.settings.resize,
            device=distributed.this_device(),
            workers=task.workers,
            advance=advance,
        )
    _draw(task, name, found)
    source, crop = task.source, task.settings.crop
    preprocessing = Preprocessing(crop, crop, source.preprocessing.mean, source.preprocessing.std)
    write_segmenter(
        network,
        plan,
        task.folder / "models" / name,
        name=name,
        source=f"{source.name}, {source.weights}",
        classes=task.classes,
        ignore=task.ignore,
        preprocessing=preprocessing,
    )
    return _outcome(found.counts, task, network, loss)


def name_of_class_score(name: str) -> str:
    """How the IoU of a class is called among the details of results.

    Args:
        name: Of the class.
    """
    return f"iou {name}"


def _outcome(counts: Tensor, task: Task, network: Segmenter, loss: float) -> SegmentationOutcome:
    measured = predict.agreement(counts)
    of_class = zip(task.classes, measured.iou.tolist(), measured.iou.isfinite().tolist(), strict=True)
    details = {
        "training_loss": loss,
        "training_images": float(len(task.train.pairs)),
        "test_images": float(len(task.test.pairs)),
        "head_parameters": float(sum(each.numel() for each in network.head.parameters())),
        **{name_of_class_score(name): value for name, value, occurs in of_class if occurs},
    }
    scores = {HEADLINE: measured.miou, "pixel_accuracy": measured.pixel_accuracy}
    return SegmentationOutcome(scores, details=details, ends=predict.intervals(counts))


def _trained(task: Task, name: str, work: Path) -> tuple[Segmenter, Blueprint, float]:
    settings, known = task.settings, task.known
    start = unfinished(work, settings=known, what="training")
    network, plan = _network(task, name)
    left = settings.epochs - (0 if start is None else start["epoch"])
    of_epoch = steps_per_epoch(len(task.train.pairs), settings.batch_size) * settings.batch_size
    with bar(f"{name} images", total=left * of_epoch, console=task.console) as advance:
        reached = train(
            network,
            task.train.pairs,
            settings=settings,
            cropping=task.cropping,
            device=distributed.this_device(),
            workers=task.workers,
            start=start,
            save=saver(work, settings=known, every=task.save_every, last=settings.epochs),
            advance=advance,
        )
    return network, plan, reached.loss


def _network(task: Task, name: str) -> tuple[Segmenter, Blueprint]:
    """A network with a fresh head, and how timm builds its backbone, for images of any size where it can."""
    settings = task.settings
    backbone, plan = backbone_of(task.source, name, drop_path=settings.drop_path)
    is_square = not settings.whole and min(settings.test_scales) >= 1
    maps = Maps(backbone.eval(), image_size=(settings.crop, settings.crop + (0 if is_square else 1)))
    return Segmenter(maps, settings, num_classes=len(task.classes)), plan


def _draw(task: Task, name: str, found: Assessed) -> None:
    """A sheet of some test images with their masks."""
    rows = []
    for each in found.examples:
        image = torch.nn.functional.interpolate(each.pair.image, tuple(each.pair.mask.shape), mode="nearest")
        truth = each.pair.mask.masked_fill(each.pair.mask == task.ignore, -1)
        rows.append(Row(each.name, image[0].permute(1, 2, 0).numpy(), truth.numpy(), each.predicted.numpy()))
    pictures = task.folder / "pictures"
    pictures.mkdir(exist_ok=True)
    whose = dict.fromkeys((Path(task.source.name).name, name))
    title = f"{' '.join(whose)}: mIoU {predict.agreement(found.counts).miou:.1f} %"
    mask_sheet(rows, classes=task.classes, title=title, out=pictures / f"{name}.png")
