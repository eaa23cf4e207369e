"""Fine-tuning of the networks of a source, one after the other: results, models, and going on after a stop."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from poa import distributed
from poa.config.finetune import Finetune
from poa.data.images import Preprocessing
from poa.data.index import open_index
from poa.data.sampler import steps_per_epoch
from poa.errors import UserError
from poa.evaluation.protocol import Outcome, percent
from poa.evaluation.results import ResultFiles, Scores
from poa.export.timm import write_finetuned
from poa.models.source import ModelSource, blueprint
from poa.tasks.classification.data import Labelled, draw_rows, labelled, training_transform
from poa.tasks.classification.train import FinetuneResult, finetune
from poa.tasks.training import train_share
from poa.training.checkpoint import saver, unfinished
from poa.training.progress import bar

PROTOCOL = "finetune"
"""Name of the files of results."""
HEADLINE = "top1"


def finetune_networks(
    source: ModelSource,
    settings: Finetune,
    *,
    train: str,
    test: str,
    sizes: str | Sequence[str] = "all",
    name: str | None = None,
    limit: int | None = None,
    workers: int = 0,
    save_every: int = 1,
    overwrite: bool = False,
    console: Console | None = None,
) -> Scores:
    """Train networks on labelled images, all weights and a new classifier, and test them after the last epoch.

    Scores are written to ``NAME/finetune.json`` and ``.csv`` in the source's ``out``, models to ``NAME/models``. A
    network that is there is not trained again, and one that was stopped goes on from its last checkpoint, with the same
    result. Under several processes each trains its share.

    Args:
        source: Whose networks.
        settings: How to train.
        train: Labelled images to train on.
        test: Labelled images to test on.
        sizes: ``all``, or names of sizes.
        name: Folder of the results in the source's ``out``; ``finetune``, with the branch unless it is ``teacher``.
        limit: Train on a class-balanced part of this many images.
        workers: Processes that prepare images.
        save_every: Epochs from one checkpoint to the next.
        overwrite: Forget results of that name.
        console: Where to show progress.

    Returns:
        The scores of the networks asked for.

    Raises:
        NotScored: The training of some networks diverged; the scores of the others are written.
        UserError: Sizes, images, labels or settings are not as they must be, or the name holds results of others.
    """
    if save_every < 1:
        raise UserError(f"--save-every must be at least 1, got {save_every}.")
    chosen, folder = source.choose(sizes), source.results(PROTOCOL, name)
    images = labelled(open_index(train, limit=limit), open_index(test))
    task = _Task(source, settings, *images, workers, save_every, folder, console or Console(stderr=True))
    task.check()
    files = ResultFiles(folder, PROTOCOL, task.known)
    files.start(overwrite=overwrite)
    train_share(files, chosen, partial(_train_one, task))
    return files.finished(chosen, what="fine-tuned")


@dataclass(frozen=True, slots=True)
class _Task:
    """What the trainings of all networks share."""

    source: ModelSource
    settings: Finetune
    train: Labelled
    test: Labelled
    workers: int
    save_every: int
    folder: Path
    console: Console

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared."""
        return self.source.preprocessing

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.index.classes

    def images_of_epoch(self) -> int:
        """How many an epoch takes.

        Raises:
            UserError: There are too few images for the settings.
        """
        settings, labels = self.settings, self.train.labels
        rows = draw_rows(labels, settings)
        return steps_per_epoch(len(rows), settings.batch_size) * settings.batch_size

    @property
    def known(self) -> dict[str, Any]:
        """All that the results depend on, as JSON gives it back."""
        parts = (("train", self.train.index), ("test", self.test.index))
        images = {name: f"{len(index)} images {index.fingerprint}" for name, index in parts}
        content = {"weights": self.source.weights, **images, **asdict(self.preprocessing), **dict(self.settings)}
        known: dict[str, Any] = json.loads(json.dumps(content))
        return known

    def check(self) -> None:
        """See, before anything is trained, that the settings suit the images.

        Raises:
            UserError: They do not.
        """
        training_transform(self.settings, self.preprocessing)
        self.images_of_epoch()


def _train_one(task: _Task, name: str, work: Path) -> tuple[Outcome, Mapping[str, int]]:
    """Train a network and write it; its scores, and how many images could not be read."""
    result = _trained(task, name, work)
    values = {f"top{places}": percent(result.ranks < places) for places in (1, 5)}
    details = {"training_loss": result.loss, "training_images": float(result.num_images)}
    return Outcome({"top1": result.top1, "top5": result.top5}, values, details), result.bad_images


def _trained(task: _Task, name: str, work: Path) -> FinetuneResult:
    settings = task.settings
    start = unfinished(work, settings=task.known, what="fine-tuning")
    model = task.source.timm_model(name, num_classes=len(task.classes), drop_path=settings.drop_path)
    is_linear = settings.head == "linear"
    plan = blueprint(task.source, name, model, classes=task.classes, is_linear=is_linear)

    left = settings.epochs - (0 if start is None else start["epoch"])
    with bar(f"{name} images", total=left * task.images_of_epoch(), console=task.console) as advance:
        trained, result = finetune(
            model,
            task.train,
            task.test,
            settings=settings,
            preprocessing=task.preprocessing,
            num_classes=len(task.classes),
            device=distributed.this_device(),
            workers=task.workers,
            start=start,
            save=saver(work, settings=task.known, every=task.save_every, last=settings.epochs),
            advance=advance,
        )
    folder = task.folder / "models" / name
    source = f"{task.source.name}, {task.source.weights}"
    write_finetuned(trained, plan, name=name, folder=folder, preprocessing=task.preprocessing, source=source)
    return result
