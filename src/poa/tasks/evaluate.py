"""Networks of a source trained for a task and tested: the images are opened and checked, then one sweep does the rest.

Under the folder of the results, scores are in ``<task>.json`` and ``.csv`` and models in ``models``. Without test
images there are no scores. A network that is in the results is not trained again, and one that was stopped resumes from
its last checkpoint, with the same result. All raise ``NotScored`` if some trainings diverged, and other kinds of
``UserError`` if images and settings do not fit together.
"""

from pathlib import Path

from poa.config.detection import Detection
from poa.config.finetune import Finetune
from poa.config.segmentation import Segmentation
from poa.data.sampler import steps_per_epoch
from poa.data.sources import Data, check_out
from poa.errors import UserError, counted
from poa.evaluation.results import Results
from poa.evaluation.sweep import DEFAULTS, SweepOptions, overlap_of, sweep
from poa.features.images import note_darkness, open_images
from poa.files import for_models
from poa.models.source import ModelSource
from poa.tasks.classification.data import labelled, training_transform
from poa.tasks.classification.train import Classification
from poa.tasks.detection.coco import Annotations, check_categories, check_objects, coco_tools
from poa.tasks.detection.data import CocoImages, InstanceImages, find_images, readable_images
from poa.tasks.detection.slimmable import SlimmableDetectionTask, check_slimmable
from poa.tasks.detection.train import DetectionTask
from poa.tasks.segmentation.crops import scaled_sides
from poa.tasks.segmentation.masks import (
    IGNORED,
    MaskedImages,
    Pairs,
    PairStatistics,
    class_names,
    read_names,
    statistics,
)
from poa.tasks.segmentation.predict import usual_stride
from poa.tasks.segmentation.train import SegmentationTask
from poa.tasks.training import Task
from poa.text import plain_console, tell
from poa.training.progress import bar

_CALLED = {"train": "training", "test": "test"}
"""What images are called in sentences, by what they are for."""


def finetune_networks(
    source: ModelSource,
    config: Finetune,
    *,
    train: Data,
    test: Data | None = None,
    limit: int | None = None,
    save_every: int = 1,
    options: SweepOptions = DEFAULTS,
) -> Results:
    """Train networks on labelled images, or a class-balanced ``limit`` of them, all weights and a new classifier."""
    check_out(source.out, train, *([] if test is None else [test]))
    train_index = open_images(train, limit=limit, console=options.console)
    test_index = None if test is None else open_images(test, console=options.console)
    note_darkness(*filter(None, [train_index, test_index]), console=options.console)
    images = labelled(train_index, test_index)
    task = Classification(source, options, save_every, config, *images)
    training_transform(config, source.preprocessing)
    steps_per_epoch(len(task.images.labels), config.batch_size)
    return _run(task)


def segment_networks(
    source: ModelSource,
    config: Segmentation,
    *,
    train: MaskedImages,
    test: MaskedImages | None = None,
    classes: Path | None = None,
    ignore: int = IGNORED,
    limit: int | None = None,
    save_every: int = 1,
    options: SweepOptions = DEFAULTS,
) -> Results:
    """Train a head on each network, with or without the network itself, for images with masks.

    ``classes`` is a text file of their names, which are their ids by default; pixels of id ``ignore`` have none (-1 if
    all have one). IoU by class is written to ``classes.csv``, pictures to ``pictures``.
    """
    names = None if classes is None else read_names(classes)
    given = {"train": train} if test is None else {"train": train, "test": test}
    check_out(source.out, *(path for each in given.values() for path in (each.images, each.masks)))
    pairs = {
        part: each.open(limit=limit if part == "train" else None, ignore=ignore, console=options.console)
        for part, each in given.items()
    }
    note_darkness(*(each.images for each in pairs.values()), console=options.console)
    overlap_of({part: each.identity for part, each in pairs.items()})  # before all masks are read
    read = {part: _statistics(each, part, options) for part, each in pairs.items()}
    options.check_readable({part: each.left_out for part, each in read.items()})
    found = read["train"], read.get("test")
    known = class_names(*found, names=names)
    config = _resolved(config, source.preprocessing.image_size, *found)
    return _run(SegmentationTask(source, options, save_every, config, *found, known))


def detect_networks(
    source: ModelSource,
    config: Detection,
    *,
    train: CocoImages,
    test: CocoImages | None = None,
    limit: int | None = None,
    together: bool = False,
    save_every: int = 1,
    options: SweepOptions = DEFAULTS,
) -> Results:
    """Train a detector on each network, or one for all widths of a slimmable one (``together``), for boxes and masks.

    Training takes ``limit`` images, evenly spread over the file. Test images that are trained on tell how well they are
    memorised, which is shown. What is detected is written to ``detections``, pictures to ``pictures``.
    """
    coco_tools()
    given = {"train": train} if test is None else {"train": train, "test": test}
    check_out(source.out, *(each.images for each in given.values()))
    names = source.choose(options.sizes)
    if together:
        check_slimmable(source, names)
    read = {
        part: each.read(has_masks=config.has_masks, limit=limit if part == "train" else None)
        for part, each in given.items()
    }
    if "test" in read:
        check_categories(read["train"], read["test"])
    found = {part: _readable(read[part], each.images, part, options) for part, each in given.items()}
    note_darkness(*(each.index for each in found.values()), console=options.console)
    steps_per_epoch(len(found["train"]), config.batch_size)
    parts = (source, options, save_every, config, found["train"], found.get("test"))
    return _run(SlimmableDetectionTask(*parts, names) if together else DetectionTask(*parts))


def _readable(annotations: Annotations, images: str, part: str, options: SweepOptions) -> InstanceImages:
    """Images that can be read, after all checks."""
    console, called = options.console or plain_console(stderr=True), _CALLED[part]
    check_objects(annotations, part=called)
    found = find_images(annotations, images, console=console)
    with bar(f"reading {called} images", total=len(found), console=console) as advance:
        found = readable_images(found, workers=options.workers, advance=advance)
    options.check_readable({part: found.left_out(())})
    check_objects(found.annotations, part=called)
    absent = f", {counted(found.num_absent, 'image')} missing and left out" if found.num_absent else ""
    tell(console, f"{called}: {found.annotations.describe()}{absent}")
    return found


def _run(task: Task) -> Results:
    if task.save_every < 1:
        raise UserError(f"--save-every must be at least 1, got {task.save_every}.")
    for_models(task.folder)
    return sweep(task.source, task, task.source.choose(task.options.sizes), task.options)


def _statistics(pairs: Pairs, part: str, options: SweepOptions) -> PairStatistics:
    console = options.console or plain_console(stderr=True)
    with bar(f"reading {_CALLED[part]} masks", total=len(pairs), console=console) as advance:
        return statistics(pairs, workers=options.workers, advance=advance)


def _resolved(
    config: Segmentation, image_size: int, train: PairStatistics, test: PairStatistics | None
) -> Segmentation:
    """The settings with the window and its stride as they will be used, after checking them against the images."""
    crop = config.crop or image_size
    stride = config.stride or usual_stride(crop)
    if stride > crop:
        raise UserError(f"With --stride {stride}, windows of {crop} pixels leave gaps. Set --stride to at most {crop}.")
    steps_per_epoch(len(train.pairs), config.batch_size)
    if test is not None and not config.whole:
        name, side = test.smallest
        side = min(scaled_sides(side, side, shorter=config.resize))
        if side < crop:
            after = " after --resize" if config.resize else ""
            raise UserError(
                f"The shorter side of the test image {name!r} has {side} pixels{after}, less than the window of "
                f"{crop}. Set --crop to at most {side}, enlarge images with --resize {crop}, or test on whole images "
                "with --whole."
            )
    return config.changed(crop=crop, stride=0 if config.whole else stride)
