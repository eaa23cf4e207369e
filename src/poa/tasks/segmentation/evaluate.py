"""Segmentation by the networks of a source, one after the other: results, models, pictures, going on after a stop."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from poa import distributed
from poa.config.segmentation import Segmentation
from poa.data.index import open_index
from poa.data.sampler import steps_per_epoch
from poa.errors import UserError
from poa.evaluation.results import ResultFiles, Results, Scores
from poa.models.source import ModelSource
from poa.tasks.segmentation.crops import scaled_sides
from poa.tasks.segmentation.masks import IGNORED, Pairs, Survey, class_names, pair_up, read_names, survey
from poa.tasks.segmentation.train_one import Task, name_of_class_score, segment_one
from poa.tasks.training import train_share
from poa.training.progress import bar

PROTOCOL = "segmentation"
"""Name of the files of results."""


@dataclass(frozen=True, slots=True)
class Masked:
    """Images with masks, as the user names them.

    Attributes:
        images: A folder, an archive, a list.
        masks: The same, of masks named like the images.
    """

    images: str
    masks: str


def segment_networks(
    source: ModelSource,
    settings: Segmentation,
    *,
    train: Masked,
    test: Masked,
    classes: Path | None = None,
    ignore: int = IGNORED,
    sizes: str | Sequence[str] = "all",
    name: str | None = None,
    limit: int | None = None,
    workers: int = 0,
    save_every: int = 1,
    overwrite: bool = False,
    console: Console | None = None,
) -> Scores:
    """Train a head on each network, with or without the network itself, and test it after the last epoch.

    Scores are written to ``NAME/segmentation.json`` and ``.csv`` in the source's ``out``, those of single classes to
    ``NAME/classes.csv``, models to ``NAME/models`` and pictures to ``NAME/pictures``. A network that is there is not
    trained again, and one that was stopped goes on from its last checkpoint, with the same result. Under several
    processes each trains its share.

    Args:
        source: Whose networks.
        settings: How to train and to test.
        train: Images to train on.
        test: Images to test on.
        classes: Text file with the names of the classes; they are called by their ids by default.
        ignore: Id of pixels that have no class; -1 if all have one.
        sizes: ``all``, or names of sizes.
        name: Folder of the results; ``segmentation``, with the branch unless it is ``teacher``.
        limit: Train on a part of this many images.
        workers: Processes that prepare images.
        save_every: Epochs from one checkpoint to the next.
        overwrite: Forget results of that name.
        console: Where to show progress.

    Returns:
        The scores of the networks asked for.

    Raises:
        NotScored: The training of some networks diverged; the scores of the others are written.
        UserError: Sizes, images, masks or settings are not as they must be, or the name holds results of others.
    """
    if save_every < 1:
        raise UserError(f"--save-every must be at least 1, got {save_every}.")
    chosen, folder = source.choose(sizes), source.results(PROTOCOL, name)
    console = console or Console(stderr=True)
    names = None if classes is None else read_names(classes)
    seen = [
        _surveyed(pairs, part, workers, console)
        for pairs, part in zip(_paired(train, test, limit=limit), ("training", "test"), strict=True)
    ]
    known_classes = class_names(seen[0], seen[1], names=names, ignore=ignore)
    settings = _settled(settings, source, seen[0], seen[1])
    task = Task(source, settings, seen[0], seen[1], known_classes, ignore, workers, save_every, folder, console)
    return _sweep(task, chosen, overwrite=overwrite)


def _sweep(task: Task, chosen: Sequence[str], *, overwrite: bool) -> Scores:
    """Train this process's share of the networks, those that have scores left out."""
    files = ResultFiles(task.folder, PROTOCOL, task.known)
    files.start(overwrite=overwrite)
    bad_images = {"train": task.train.num_bad, "test": task.test.num_bad}
    train_share(files, chosen, lambda name, work: (segment_one(task, name, work=work), bad_images))
    results = files.finish()
    if distributed.is_main():
        _write_classes(results, task.classes, task.folder / "classes.csv")
    return files.finished(chosen, what="trained")


def _paired(train: Masked, test: Masked, *, limit: int | None) -> tuple[Pairs, Pairs]:
    found = (
        pair_up(open_index(train.images, limit=limit), open_index(train.masks)),
        pair_up(open_index(test.images), open_index(test.masks)),
    )
    if found[0].images.fingerprint == found[1].images.fingerprint:
        raise UserError(
            f"The training and the test images are the same ({train.images}), so that the test would say nothing. "
            "Give other images to test on."
        )
    return found


def _surveyed(pairs: Pairs, part: str, workers: int, console: Console) -> Survey:
    with bar(f"looking at {part} masks", total=len(pairs), console=console) as advance:
        return survey(pairs, workers=workers, advance=advance)


def _settled(settings: Segmentation, source: ModelSource, train: Survey, test: Survey) -> Segmentation:
    """The settings with the window and its stride as they will be used, after checking them against the images.

    Raises:
        UserError: The window does not fit into the images, or there are too few of them.
    """
    crop = settings.crop or source.preprocessing.image_size
    stride = settings.stride or max(1, round(crop * 2 / 3))
    if stride > crop:
        raise UserError(
            f"Windows of {crop} pixels that begin {stride} pixels apart leave gaps. Set --stride to at most {crop}."
        )
    steps_per_epoch(len(train.pairs), settings.batch_size)
    name, side = test.smallest
    side = min(scaled_sides(side, side, shorter=settings.resize))
    if not settings.whole and side < crop:
        after = " after --resize" if settings.resize else ""
        raise UserError(
            f"The test image {name!r} is {side} pixels on its shorter side{after}, smaller than the window of {crop}. "
            f"Set --crop to at most {side}, enlarge images with --resize {crop}, or test on whole images with --whole."
        )
    return settings.changed(crop=crop, stride=0 if settings.whole else stride)


def _write_classes(results: Results, classes: Sequence[str], path: Path) -> None:
    """A line a class, a column a network."""
    networks = list(results.in_order().scores)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class", *networks])
        for name in classes:
            score = name_of_class_score(name)
            writer.writerow([name, *(results.details[network].get(score, "") for network in networks)])
