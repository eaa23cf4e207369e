"""Detection by the networks of a source, one after the other: results, models, going on after a stop."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from poa.config.detection import Detection
from poa.data.sampler import steps_per_epoch
from poa.errors import UserError
from poa.evaluation.results import ResultFiles, Scores
from poa.models.source import ModelSource
from poa.tasks.detection.coco import Annotations, check_categories, check_masks, coco_tools, read_annotations
from poa.tasks.detection.data import InstanceImages, find_images, readable_images
from poa.tasks.detection.together import WORK, assess_width, check_slimmable, train_together
from poa.tasks.detection.train_one import Task, detect_one
from poa.tasks.training import Diverged, train_share
from poa.training.progress import bar

PROTOCOL = "detection"
"""Name of the files of results."""


@dataclass(frozen=True, slots=True)
class InCoco:
    """Images with objects, as the user names them.

    Attributes:
        images: A folder, an archive or a folder in one, a list.
        annotations: File in COCO's format.
    """

    images: str
    annotations: Path


def detect_by_networks(
    source: ModelSource,
    settings: Detection,
    *,
    train: InCoco,
    test: InCoco,
    sizes: str | Sequence[str] = "all",
    name: str | None = None,
    limit: int | None = None,
    together: bool = False,
    workers: int = 0,
    save_every: int = 1,
    overwrite: bool = False,
    console: Console | None = None,
) -> Scores:
    """Train a detector on each network, or one on all widths of a slimmable one, and test it after the last epoch.

    Scores are written to ``NAME/detection.json`` and ``.csv`` in the source's ``out``, what was found to
    ``NAME/detections`` and models to ``NAME/models``. A network that is there is not trained again, and one that was
    stopped goes on from its last checkpoint, with the same result. Under several processes each trains its share.

    Args:
        source: Whose networks.
        settings: How to train and to test.
        train: Images to train on.
        test: Images to test on; those that were trained on tell how well they were learnt by heart, which is said.
        sizes: ``all``, or names of sizes.
        name: Folder of the results; ``detection``, with the branch unless it is ``teacher``.
        limit: Train on so many images, evenly spread over the file.
        together: Train one detector for all sizes, as SlimCLR does; of slimmable networks alone.
        workers: Processes that prepare images.
        save_every: Epochs from one checkpoint to the next.
        overwrite: Forget results of that name.
        console: Where to show progress.

    Returns:
        The scores of the networks asked for.

    Raises:
        NotScored: The training of some networks diverged; the scores of the others are written.
        UserError: Sizes, images, annotations or settings are not as they must be, or the name holds results of others.
    """
    coco_tools()
    if save_every < 1:
        raise UserError(f"--save-every must be at least 1, got {save_every}.")
    chosen, folder = source.choose(sizes), source.results(PROTOCOL, name)
    if together:
        check_slimmable(source, chosen)
    console = console or Console(stderr=True)
    seen, num_bad = _prepared(train, test, settings, limit=limit, workers=workers, console=console)
    task = Task(source, settings, seen["train"], seen["test"], num_bad, workers, save_every, folder, console)
    return (_sweep_together if together else _sweep)(task, chosen, overwrite=overwrite)


def _prepared(
    train: InCoco, test: InCoco, settings: Detection, *, limit: int | None, workers: int, console: Console
) -> tuple[dict[str, InstanceImages], dict[str, int]]:
    """Training and test images that can be read, and how many cannot, after all checks."""
    found = {"train": _limited(read_annotations(train.annotations), limit), "test": read_annotations(test.annotations)}
    check_categories(found["train"], found["test"])
    seen, num_bad = dict[str, InstanceImages](), dict[str, int]()
    for part, given in (("train", train), ("test", test)):
        seen[part], num_bad[part] = _looked_through(found[part], given, part, settings, workers, console)
    if seen["train"].fingerprint == seen["test"].fingerprint:
        console.print("The test images are the training images: scores tell how well these were learnt by heart.")
    if not seen["train"].annotations.num_objects:
        raise UserError(f"{train.annotations} has no object to learn from. Give images with objects.")
    steps_per_epoch(len(seen["train"]), settings.batch_size)
    return seen, num_bad


def _limited(annotations: Annotations, limit: int | None) -> Annotations:
    num_images = len(annotations.images)
    if limit is None:
        return annotations
    if not 0 < limit <= num_images:
        raise UserError(f"--limit is between 1 and the {num_images} images in {annotations.file}, got {limit}.")
    return annotations.take([number * num_images // limit for number in range(limit)])


def _looked_through(
    annotations: Annotations, given: InCoco, part: str, settings: Detection, workers: int, console: Console
) -> tuple[InstanceImages, int]:
    has_masks = settings.has_masks
    if has_masks:
        check_masks(annotations)
    images = find_images(annotations, given.images, has_masks=has_masks)
    with bar(f"looking at {part} images", total=len(images), console=console) as advance:
        images, num_bad = readable_images(images, workers=workers, advance=advance)
    bad = f", {num_bad:,} damaged images left out" if num_bad else ""
    console.print(f"{part}: {images.annotations.describe()}{bad}", highlight=False, soft_wrap=True)
    return images, num_bad


def _sweep(task: Task, chosen: Sequence[str], *, overwrite: bool) -> Scores:
    """Train this process's share of the networks, those that have scores left out."""
    files = ResultFiles(task.folder, PROTOCOL, task.known)
    files.start(overwrite=overwrite)
    train_share(files, chosen, lambda name, work: detect_one(task, name, work=work))
    return files.finished(chosen, what="trained")


def _sweep_together(task: Task, chosen: Sequence[str], *, overwrite: bool) -> Scores:
    """Train one detector for all, and test those that have no scores."""
    files = ResultFiles(task.folder, PROTOCOL, {**task.known, "together": list(chosen)})
    files.start(overwrite=overwrite)
    left = [each for each in chosen if each not in files.known.scores]
    try:
        if left:
            detectors, reached = train_together(task, chosen, work=files.work / WORK)
            for each in left:
                outcome, num_bad = assess_width(task, each, detectors, reached)
                files.add(each, outcome, bad_images=num_bad)
    except Diverged as error:
        for each in left:
            files.fail(each, str(error))
    else:
        shutil.rmtree(files.work, ignore_errors=True)
    return files.finished(chosen, what="trained")
