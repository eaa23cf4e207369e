"""Training and testing of segmentation networks on images with masks, put together from timm's parts."""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.scheduler import PolyLRScheduler
from torch import Tensor

from poa import distributed
from poa.config.segmentation import Segmentation
from poa.data.content import Identity, LeftOut
from poa.data.images import Preprocessing
from poa.data.sampler import keyed_random, steps_per_epoch
from poa.evaluation.protocol import Outcome
from poa.evaluation.results import Results
from poa.export.timm import Blueprint
from poa.files import whole_file
from poa.models.source import backbone_of
from poa.plots.overlays import ImageWithMasks, mask_sheet
from poa.tasks.maps import Maps
from poa.tasks.segmentation.crops import CropBatch, training_crops, whole_pairs
from poa.tasks.segmentation.folder import write_segmenter
from poa.tasks.segmentation.masks import Pair, Pairs, PairStatistics
from poa.tasks.segmentation.model import Segmenter
from poa.tasks.segmentation.predict import agreement, count, intervals, predict
from poa.tasks.training import NO_HOOKS, Diverged, EpochSummary, Hooks, Task, Training, adamw, train_epochs
from poa.text import csv_cell
from poa.training.progress import bar

_STEP = 3
"""What random numbers are for: dropout and drop path of a step."""
EXAMPLES = 4
"""How many test images are drawn."""


class SegmenterTraining(Training[CropBatch]):
    """A network that is being trained for ``num_steps``, and all that a step changes."""

    def __init__(
        self, network: Segmenter, settings: Segmentation, *, num_steps: int, ignore: int, device: torch.device
    ) -> None:
        self._settings, self._ignore, self._device = settings, ignore, device
        self.network = network.to(device)
        heads = [part for name, part in network.trained.items() if name != "maps"]
        self._optimizer = adamw(network.maps.model, heads, settings)
        warmup = min(round(settings.warmup_share * num_steps), num_steps - 1)
        self._scheduler = PolyLRScheduler(
            self._optimizer,
            t_initial=num_steps - warmup,
            power=settings.power,
            lr_min=settings.min_lr,
            warmup_t=warmup,
            warmup_lr_init=min(settings.warmup_lr, settings.lr),
            warmup_prefix=True,
            t_in_epochs=False,
        )

    def step(self, step: int, batch: CropBatch) -> float:
        """Train on one batch; the loss."""
        self.network.train()
        self._scheduler.step_update(step)
        masks = batch.masks.to(self._device)
        with keyed_random(self._settings.seed, _STEP, step, device=self._device):
            main, auxiliary = self.network.scores(batch.images.to(self._device))
            loss = pixel_loss(main, masks, ignore=self._ignore)
            if auxiliary is not None:
                loss = loss + self._settings.auxiliary * pixel_loss(auxiliary, masks, ignore=self._ignore)
            value = float(loss.detach())
            if not loss.isfinite():
                raise Diverged(f"Training diverged: the loss is {value} at step {step}. Try a lower --lr.")
            self._optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
        self._optimizer.step()
        return value

    def state(self) -> dict[str, Any]:
        """All that must be saved to resume."""
        return {"network": self.network.trained.state_dict(), "optimizer": self._optimizer.state_dict()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Resume from what ``state`` gave."""
        self.network.trained.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])


def pixel_loss(
    scores: Float[Tensor, "batch classes height width"], masks: Int[Tensor, "batch height width"], *, ignore: int
) -> Float[Tensor, ""]:
    """Mean cross-entropy over the pixels that have a class; 0 where none has."""
    total = F.cross_entropy(scores.float(), masks, ignore_index=ignore, reduction="sum")
    return total / (masks != ignore).sum().clamp(min=1)


def train(
    network: Segmenter,
    pairs: Pairs,
    settings: Segmentation,
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    workers: int = 0,
    hooks: Hooks = NO_HOOKS,
) -> EpochSummary:
    """Train a network with a fresh head in place on pairs that can be read.

    A training that was stopped and resumes ends with the same bits as one that was not, on a CPU.
    """
    steps = steps_per_epoch(len(pairs), settings.batch_size)
    num_steps = settings.epochs * steps
    training = SegmenterTraining(network, settings, num_steps=num_steps, ignore=pairs.ignore, device=device)
    batches = partial(training_crops, pairs, settings, preprocessing, workers=workers)
    return train_epochs(training, batches, epochs=settings.epochs, steps=steps, hooks=hooks)


class Example(NamedTuple):
    """A test image to be shown: the name of its file, the image with its true mask, and the predicted one."""

    name: str
    pair: Pair
    predicted: Int[Tensor, "height width"]


class Evaluation(NamedTuple):
    """Pixels by class of each test image (``poa.tasks.segmentation.predict.count``); some images, evenly spread."""

    counts: Int[Tensor, "images 3 classes"]
    examples: tuple[Example, ...]


def evaluate(
    network: Segmenter,
    pairs: Pairs,
    settings: Segmentation,
    preprocessing: Preprocessing,
    *,
    num_classes: int,
    device: torch.device,
    workers: int = 0,
    advance: Callable[[int], None] | None = None,
) -> Evaluation:
    """Predict the masks of all test images, each at its own size, and compare."""
    network.eval().to(device)
    shown = {number * len(pairs) // EXAMPLES for number in range(EXAMPLES)}
    counts, examples = [], []
    for i, pair in enumerate(whole_pairs(pairs, resize=settings.resize, workers=workers)):
        height, width = pair.mask.shape
        predicted = predict(network, pair.image, settings, preprocessing, sides=(height, width), device=device)
        counts.append(count(pair.mask, predicted, num_classes=num_classes, ignore=pairs.ignore))
        if i in shown:
            examples.append(Example(pairs.name(i), pair, predicted))
        if advance is not None:
            advance(1)
    return Evaluation(torch.stack(counts), tuple(examples))


@dataclass(frozen=True)
class SegmentationTask(Task):
    """Segmentation by a head on each network, which is trained further or stays as it is.

    Attributes:
        config: With the crop and the stride that are used.
        train: Images to train on.
        test: Images to test on, if any.
        classes: Names by id.
    """

    config: Segmentation
    train: PairStatistics
    test: PairStatistics | None
    classes: tuple[str, ...]

    name = "segmentation"

    @property
    def identities(self) -> Mapping[str, Identity]:
        """Images with their masks."""
        return {"train": self.train.identity, **({} if self.test is None else {"test": self.test.identity})}

    @property
    def choices(self) -> Mapping[str, Any]:
        """Classes, normalisation, and how to train and to test."""
        return {
            "classes": self.classes,
            "ignore": self.train.pairs.ignore,
            "mean": self.source.preprocessing.mean,
            "std": self.source.preprocessing.std,
            **dict(self.config),
        }

    @property
    def preprocessing(self) -> Preprocessing:
        """That of the source, for crops."""
        return replace(self.source.preprocessing, image_size=self.config.crop, resize=self.config.crop)

    def evaluate(self, name: str, work: Path) -> Outcome:
        """Train a head on a network, test it if there are test images, and write it."""
        config, preprocessing, workers = self.config, self.preprocessing, self.options.workers
        pairs, device = self.train.pairs, distributed.this_device()
        network, blueprint = self._network(name)
        an_epoch = steps_per_epoch(len(pairs), config.batch_size) * config.batch_size
        with self.hooks(name, work, epochs=config.epochs, images=an_epoch) as hooks:
            summary = train(network, pairs, config, preprocessing, device=device, workers=workers, hooks=hooks)
        outcome = self._trained(network, summary)
        if self.test is not None:
            outcome = self._tested(name, network, self.test, outcome)
        write_segmenter(
            network,
            blueprint,
            self.folder / "models" / name,
            name=name,
            origin=self.origin,
            classes=self.classes,
            ignore=pairs.ignore,
            settings=config,
            preprocessing=preprocessing,
        )
        return outcome

    def finish(self, results: Results, folder: Path) -> None:
        """Write ``classes.csv``: the IoU of each class, a line a class, a column a network."""
        if self.test is None:
            return
        networks = list(results.in_order().scores)
        with whole_file(folder / "classes.csv") as path, path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["class", *map(csv_cell, networks)])
            for name in self.classes:
                of_class = (results.details[network].get(f"iou {name}", "") for network in networks)
                writer.writerow([csv_cell(name), *of_class])

    def _network(self, name: str) -> tuple[Segmenter, Blueprint]:
        """A network with a fresh head, for images of any size where it can, and how timm builds its backbone."""
        config = self.config
        backbone, blueprint = backbone_of(self.source, name, drop_path=config.drop_path)
        is_square = not config.whole and min(config.test_scales) >= 1
        maps = Maps(backbone.eval(), image_size=(config.crop, config.crop + (0 if is_square else 1)))
        return Segmenter(maps, config, num_classes=len(self.classes)), blueprint

    def _draw(self, name: str, found: Evaluation) -> None:
        """A sheet of some test images with true and predicted masks."""
        rows = []
        for each in found.examples:
            image = F.interpolate(each.pair.image, tuple(each.pair.mask.shape), mode="nearest")
            truth = each.pair.mask.masked_fill(each.pair.mask == self.train.pairs.ignore, -1)
            rows.append(
                ImageWithMasks(each.name, image[0].permute(1, 2, 0).numpy(), truth.numpy(), each.predicted.numpy())
            )
        pictures = self.folder / "pictures"
        pictures.mkdir(exist_ok=True)
        whose = dict.fromkeys((Path(self.source.name).name, name))
        title = f"{' '.join(whose)}: mIoU {agreement(found.counts).miou:.1f} %"
        mask_sheet(rows, classes=self.classes, title=title, out=pictures / f"{name}.png")

    def _left_out(self, part: PairStatistics) -> LeftOut:
        """With the names of the classes."""
        names = {str(number): name for number, name in enumerate(self.classes)}
        return replace(part.left_out, classes=tuple(names.get(each, each) for each in part.left_out.classes))

    def _trained(self, network: Segmenter, summary: EpochSummary) -> Outcome:
        """What is known before a test."""
        details = {
            "training_loss": summary.loss,
            "training_images": float(len(self.train.pairs)),
            "head_parameters": float(sum(each.numel() for each in network.head.parameters())),
        }
        return Outcome({}, details=details, left_out={"train": self._left_out(self.train)})

    def _tested(self, name: str, network: Segmenter, test: PairStatistics, trained: Outcome) -> Outcome:
        """Scores of all test images together, which are no means over images; some images are drawn."""
        with bar(f"{name} test images", total=len(test.pairs), console=self.console) as advance:
            found = evaluate(
                network,
                test.pairs,
                self.config,
                self.preprocessing,
                num_classes=len(self.classes),
                device=distributed.this_device(),
                workers=self.options.workers,
                advance=advance,
            )
        self._draw(name, found)
        measured = agreement(found.counts)
        of_class = zip(self.classes, measured.iou.tolist(), measured.iou.isfinite().tolist(), strict=True)
        iou = {f"iou {name}": value for name, value, occurs in of_class if occurs}
        return Outcome(
            {"miou": measured.miou, "pixel_accuracy": measured.pixel_accuracy},
            details={**trained.details, "test_images": float(len(test.pairs)), **iou},
            left_out={**trained.left_out, "test": self._left_out(test)},
            ends=intervals(found.counts),
        )
