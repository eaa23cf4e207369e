"""Fine-tuning of the networks of a subject, one after the other: results, models, and going on after a stop."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from poa import build, distributed
from poa.config import Config
from poa.data.index import open_index
from poa.data.sampler import steps_per_epoch
from poa.errors import UserError
from poa.evaluation.finetune import Diverged, FinetuneResult, finetune
from poa.evaluation.finetune_settings import Finetune, Preparation
from poa.evaluation.protocols import Outcome, percent
from poa.evaluation.results import ResultFiles, Scores
from poa.evaluation.training_images import Labelled, draw_rows, labelled
from poa.finetuned import blueprint, write_model
from poa.subjects import Subject
from poa.training.checkpoint import save_checkpoint, unfinished
from poa.training.progress import bar

PROTOCOL = "finetune"
"""Name of the files of results."""
HEADLINE = "top1"


def finetune_networks(
    subject: Subject,
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

    Scores are written to ``NAME/finetune.json`` and ``.csv`` in the subject's ``out``, models to ``NAME/models``. A
    network that is there is not trained again, and one that was stopped goes on from its last checkpoint, with the same
    result. Under several processes each trains its share.

    Args:
        subject: Whose networks.
        settings: How to train.
        train: Labelled images to train on.
        test: Labelled images to test on.
        sizes: ``all``, or names of sizes.
        name: Folder of the results in the subject's ``out``; ``finetune``, with the branch unless it is ``teacher``.
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
    chosen = subject.choose(sizes)
    folder = subject.results(PROTOCOL, name)
    images = labelled(open_index(train, limit=limit), open_index(test))
    preparation = Preparation(subject.image_size, subject.resize, subject.mean, subject.std)
    images_of_epoch = _check(settings, images[0], preparation)
    known = _settings(subject, *images, preparation, settings)
    files = ResultFiles(folder, PROTOCOL, known)
    files.start(overwrite=overwrite)
    task = _Task(subject, settings, *images, preparation, known, files, workers, save_every, images_of_epoch)
    for each in chosen[distributed.rank() :: distributed.world_size()]:
        if each not in files.known.scores:
            _train_one(task, each, console or Console(stderr=True))
    return files.finished(chosen, what="fine-tuned")


def _check(settings: Finetune, train: Labelled, preparation: Preparation) -> int:
    """See, before anything is trained, that the settings suit the images; how many of them an epoch takes."""
    settings.transforms(preparation)
    rows = draw_rows(train.labels, share=settings.share, per_class=settings.per_class, seed=settings.seed)
    return steps_per_epoch(len(rows), settings.batch_size) * settings.batch_size


@dataclass(frozen=True, slots=True)
class _Task:
    """What the trainings of all networks share."""

    subject: Subject
    settings: Finetune
    train: Labelled
    test: Labelled
    preparation: Preparation
    known: Mapping[str, Any]
    files: ResultFiles
    workers: int
    save_every: int
    images_of_epoch: int

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.index.classes


def _settings(
    subject: Subject, train: Labelled, test: Labelled, preparation: Preparation, settings: Finetune
) -> dict[str, Any]:
    """All that the results depend on, as JSON gives it back."""
    parts = (("train", train.index), ("test", test.index))
    images = {name: f"{len(index)} images {index.fingerprint}" for name, index in parts}
    content = {"weights": subject.weights, **images, **asdict(preparation), **asdict(settings)}
    known: dict[str, Any] = json.loads(json.dumps(content))
    return known


def _train_one(task: _Task, name: str, console: Console) -> None:
    """Train a network, write it and its scores; or why there are none."""
    work = task.files.work / name
    try:
        result = _trained(task, name, work, console)
    except Diverged as error:  # else the checkpoint is worth keeping, and all trainings end
        task.files.fail(name, str(error))
        return
    values = {f"top{places}": percent(result.ranks < places) for places in (1, 5)}
    details = {"training_loss": result.loss, "training_images": float(result.num_images)}
    outcome = Outcome({"top1": result.top1, "top5": result.top5}, values, details)
    task.files.add(name, outcome, bad_images=result.bad_images)
    shutil.rmtree(work, ignore_errors=True)


def _trained(task: _Task, name: str, work: Path, console: Console) -> FinetuneResult:
    settings = task.settings
    start = unfinished(work, settings=task.known, what="fine-tuning")
    model = task.subject.model(name, num_classes=len(task.classes), drop_path=settings.drop_path)
    is_linear = settings.head == "linear"
    plan = blueprint(task.subject, name, model, classes=task.classes, is_linear=is_linear)

    def save(epoch: int, state: dict[str, Any]) -> None:
        if epoch % task.save_every == 0 or epoch == settings.epochs:
            save_checkpoint(work, epoch, {"settings": dict(task.known), **state}, keep_last=1)

    left = settings.epochs - (0 if start is None else start["epoch"])
    with bar(f"{name} images", total=left * task.images_of_epoch, console=console) as advance:
        trained, result = finetune(
            model,
            task.train,
            task.test,
            settings=settings,
            preparation=task.preparation,
            num_classes=len(task.classes),
            device=build.device_of(Config()),
            workers=task.workers,
            start=start,
            save=save,
            advance=advance,
        )
    folder = task.files.main.parent / "models" / name
    source = f"{task.subject.name}, {task.subject.weights}"
    write_model(trained, plan, name=name, folder=folder, preparation=task.preparation, source=source)
    return result
