"""The commands ``poa evaluate finetune``, ``transfer``, ``segmentation`` and ``detection``: train networks further."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from poa.cli.evaluate import DEFAULTS, Model, Options, Switch, show_results, show_scores
from poa.config import detection as detecting
from poa.config import finetune as finetuning
from poa.config import segmentation as segmenting
from poa.config.detection import Detection
from poa.config.finetune import Finetune
from poa.config.segmentation import Segmentation
from poa.config.values import preset_of

if TYPE_CHECKING:
    from poa.evaluation.results import Results
    from poa.models.source import ModelSource

# torch is imported when a command runs: `poa --help` and a mistyped flag shall not wait for it.

OVER_PRESET = Parameter(name="*", show_default=False, consume_multiple=True, negative_iterable=())
"""Of settings that are flags. Values not given are those of the preset, so that no default is shown."""


def finetune(
    model: Model,
    /,
    *,
    train: str,
    test: str,
    preset: str = "small-data",
    save_every: int = 1,
    flags: Annotated[Finetune, OVER_PRESET] = Finetune(),  # noqa: B008  # frozen
    options: Options = DEFAULTS,
) -> None:
    """Fine-tune networks on labelled images, all weights and a classifier, and test them after the last epoch.

    Args:
        train: Labelled images to train on: a folder of class folders, a CSV list, an archive.
        test: Labelled images to test on.
        preset: Settings to begin with: small-data, or published ones such as imagenet-vit-s, semi-10 or cifar10-s.
        save_every: Epochs from one checkpoint to the next; a stopped training resumes from the last one.
    """
    _finetune(model, flags.over(preset_of(finetuning.PRESETS, preset)), train, test, save_every, options)


def transfer(
    model: Model,
    /,
    *,
    train: str,
    test: str,
    preset: str,
    save_every: int = 1,
    flags: Annotated[Finetune, OVER_PRESET] = Finetune(),  # noqa: B008
    options: Options = DEFAULTS,
) -> None:
    """Fine-tune networks on another data set, as published: `finetune` with the settings of that data set.

    Args:
        train: Labelled images to train on: a folder of class folders, a CSV list, an archive.
        test: Labelled images to test on.
        preset: Data set and size: cifar10, cifar100, inat18, inat19, flowers or cars, then -s or -b.
        save_every: Epochs from one checkpoint to the next; a stopped training resumes from the last one.
    """
    named = options if options.name is not None else replace(options, name="transfer")
    _finetune(model, flags.over(preset_of(finetuning.TRANSFER, preset)), train, test, save_every, named)


def _finetune(model: str, settings: Finetune, train: str, test: str, save_every: int, options: Options) -> None:
    from poa.tasks.evaluate import finetune_networks

    source = options.source(model)
    sweep = partial(finetune_networks, source, settings, train=train, test=test)
    files = (("Models", "models", "one folder a network, which timm loads"),)
    _train(sweep, source, options, save_every=save_every, headline="top1", files=files)


def segmentation(
    model: Model,
    /,
    *,
    train: str,
    train_masks: str,
    test: str,
    test_masks: str,
    classes: Path | None = None,
    ignore: int = 255,
    preset: str = "small-data",
    save_every: int = 1,
    flags: Annotated[Segmentation, OVER_PRESET] = Segmentation(),  # noqa: B008
    options: Options = DEFAULTS,
) -> None:
    """Segment images: train a head on each network (or all of it, --no-frozen), and give mIoU on test images.

    Args:
        train: Images to train on: a folder, an archive or a folder in one (a.zip/train), a list.
        train_masks: Their masks, named like them: PNG files of class ids.
        test: Images to test on.
        test_masks: Their masks.
        classes: Text file with the names of the classes, one a line; ids by default.
        ignore: Id of pixels without a class.
        preset: Settings to begin with: small-data, small-data-finetune, small-data-upernet, or published ones such as
            ade20k-linear-vit-s and ade20k-upernet-vit-b.
        save_every: Epochs from one checkpoint to the next; a stopped training resumes from the last one.
    """
    from poa.tasks.evaluate import segment_networks
    from poa.tasks.segmentation.masks import MaskedImages

    settings = flags.over(preset_of(segmenting.PRESETS, preset))
    source = replace(options, image_size=options.image_size or settings.crop or None).source(model)
    known, asked = MaskedImages(train, train_masks), MaskedImages(test, test_masks)
    sweep = partial(segment_networks, source, settings, train=known, test=asked, classes=classes, ignore=ignore)
    files = (
        ("Classes", "classes.csv", "IoU of each"),
        ("Models", "models", "one folder a network, whose README.md says how to load it"),
        ("Pictures", "pictures", "test images with true and predicted masks"),
    )
    _train(sweep, source, options, save_every=save_every, headline="miou", files=files)


def detection(
    model: Model,
    /,
    *,
    train_images: str,
    train_annotations: Path,
    test_images: str,
    test_annotations: Path,
    preset: str = "small-data",
    together: Switch = False,
    save_every: int = 1,
    flags: Annotated[Detection, OVER_PRESET] = Detection(),  # noqa: B008
    options: Options = DEFAULTS,
) -> None:
    """Detect objects: train a detector with boxes and masks on each network, and give COCO's AP on test images.

    Args:
        train_images: Images to train on: a folder, an archive or a folder in one (a.zip/train), a list.
        train_annotations: Their objects: a file in COCO's format (instances_train2017.json).
        test_images: Images to test on.
        test_annotations: Their objects.
        preset: Settings to begin with: small-data, or published ones: coco-vit-s, coco-vit-b.
        together: Train one detector for all widths of a slimmable network, as SlimCLR does.
        save_every: Epochs from one checkpoint to the next; a stopped training resumes from the last one.
        options: As for all. --image-size is that which the network is made for; those of the images are --sides,
            --test-side and --longest. --limit takes images evenly from the file.
    """
    from poa.tasks.detection.data import CocoImages
    from poa.tasks.evaluate import detect_networks

    settings = flags.over(preset_of(detecting.PRESETS, preset))
    source = options.source(model)
    known, asked = CocoImages(train_images, train_annotations), CocoImages(test_images, test_annotations)
    sweep = partial(detect_networks, source, settings, train=known, test=asked, together=together)
    files = (
        ("Detections", "detections", "which pycocotools reads"),
        ("Models", "models", "one folder a network, whose README.md says how to load it"),
        ("Pictures", "pictures", "test images with true and detected objects"),
    )
    _train(sweep, source, options, save_every=save_every, headline="box_ap", files=files)


def _train(
    sweep: Callable[..., "Results"],
    source: "ModelSource",
    options: Options,
    *,
    save_every: int,
    headline: str,
    files: Sequence[tuple[str, str, str]],
) -> None:
    """Train, show the scores, and say what files hold: what it is, where beside the scores, and more about it."""

    def show(results: "Results", path: Path) -> None:
        further = [f"{what}: {path.parent / name}, {text}" for what, name, text in files]
        show_scores(source, results, path, headline=headline, sizes=options.sizes, further=further)

    show_results(partial(sweep, limit=options.limit, save_every=save_every), show, source, options)
