"""The commands ``poa evaluate finetune``, ``transfer``, ``segmentation`` and ``detection``: train networks further."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from poa.cli.evaluate import DEFAULTS, Images, Model, Options, Switch, show_results, show_scores
from poa.config.detection import PRESETS as DETECTION
from poa.config.detection import Detection
from poa.config.finetune import PRESETS as FINETUNE
from poa.config.finetune import TRANSFER, Finetune
from poa.config.segmentation import PRESETS as SEGMENTATION
from poa.config.segmentation import Segmentation
from poa.config.values import preset_of
from poa.machine.launchers import is_first
from poa.text import note, plain_console

if TYPE_CHECKING:
    from poa.evaluation.results import Results
    from poa.models.source import ModelSource

# torch is imported when a command runs: `poa --help` and a mistyped flag shall not wait for it.

OVER_PRESET = Parameter(name="*", show_default=False, consume_multiple=True, negative_iterable=())
"""For settings that are flags. Values not given are those of the preset, so that no default is shown."""
Epochs = Annotated[
    int, Parameter(help="Epochs from one checkpoint to the next; a stopped training resumes from the last one.")
]
_MODELS = ("Models", "models", "one folder for each network; its README.md says how to load it")


def finetune(
    model: Model,
    /,
    *,
    images: Images,
    preset: str = "small-data",
    save_every: Epochs = 1,
    flags: Annotated[Finetune, OVER_PRESET] = Finetune(),
    options: Options = DEFAULTS,
) -> None:
    """Fine-tune networks on labelled images, with all weights and a classifier, and test them after the last epoch.

    `poa finetune` trains the same models without test images.

    Args:
        preset: Settings to start from: small-data, or published ones such as imagenet-vit-s, semi-10 or cifar10-s.
    """
    _finetune(model, flags.over(preset_of(FINETUNE, preset)), images, save_every, options)


def transfer(
    model: Model,
    /,
    *,
    images: Images,
    preset: str,
    save_every: Epochs = 1,
    flags: Annotated[Finetune, OVER_PRESET] = Finetune(),
    options: Options = DEFAULTS,
) -> None:
    """Fine-tune networks on another data set, as published: `finetune` with the settings of that data set.

    `poa finetune` trains the same models without test images.

    Args:
        preset: Data set and size: cifar10, cifar100, inat18, inat19, flowers or cars, then -s or -b.
    """
    named = options if options.name is not None else replace(options, name="transfer")
    _finetune(model, flags.over(preset_of(TRANSFER, preset)), images, save_every, named)


def _finetune(model: str, settings: Finetune, images: Images, save_every: int, options: Options) -> None:
    from poa.tasks.evaluate import finetune_networks

    source = options.source(model)
    sweep = partial(finetune_networks, source, settings, train=images.train, test=images.test, limit=options.limit)
    files = [("Models", "models", "one folder for each network, in the format of timm")]
    sweep = partial(sweep, save_every=save_every)
    _show(sweep, source, options, verb="finetune", headline="top1", files=files)


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
    save_every: Epochs = 1,
    flags: Annotated[Segmentation, OVER_PRESET] = Segmentation(),
    options: Options = DEFAULTS,
) -> None:
    """Segment images: train a head on each network (or all of it, --no-frozen), and report mIoU on test images.

    `poa segment` trains the same models without test images.

    Args:
        train: Images to train on: a folder, an archive or a folder in one (a.zip/train), a list.
        train_masks: Their masks, named like them: PNG files of class ids.
        test: Images to test on.
        test_masks: Their masks.
        classes: Text file with the names of the classes, one per line; ids by default.
        ignore: Id of pixels without a class.
        preset: Settings to start from: small-data, small-data-finetune, small-data-upernet, or published ones such as
            ade20k-linear-vit-s and ade20k-upernet-vit-b.
    """
    from poa.tasks.evaluate import segment_networks
    from poa.tasks.segmentation.masks import MaskedImages

    settings = flags.over(preset_of(SEGMENTATION, preset))
    source = options.at(settings.crop).source(model)
    parts = MaskedImages(train, train_masks), MaskedImages(test, test_masks)
    sweep = partial(segment_networks, source, settings, train=parts[0], test=parts[1], classes=classes, ignore=ignore)
    pictures = ("Pictures", "pictures", "test images with true and predicted masks")
    files = [("Classes", "classes.csv", "IoU of each"), _MODELS, pictures]
    sweep = partial(sweep, limit=options.limit, save_every=save_every)
    _show(sweep, source, options, verb="segment", headline="miou", files=files)


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
    save_every: Epochs = 1,
    flags: Annotated[Detection, OVER_PRESET] = Detection(),
    options: Options = DEFAULTS,
) -> None:
    """Detect objects: train a detector with boxes and masks on each network, and report COCO's AP on test images.

    `poa detect` trains the same models without test images.
    --image-size is the size for which the network is made; images are resized by --sides, --test-side and --longest.
    --limit takes images evenly spread over the file.

    Args:
        train_images: Images to train on: a folder, an archive or a folder in one (a.zip/train), a list.
        train_annotations: Their objects: a file in COCO's format (instances_train2017.json).
        test_images: Images to test on.
        test_annotations: Their objects.
        preset: Settings to start from: small-data, or published ones: coco-vit-s, coco-vit-b.
        together: Train one detector for all widths of a slimmable network, as SlimCLR does.
    """
    from poa.tasks.detection.data import CocoImages
    from poa.tasks.evaluate import detect_networks

    settings, source = flags.over(preset_of(DETECTION, preset)), options.source(model)
    parts = CocoImages(train_images, train_annotations), CocoImages(test_images, test_annotations)
    sweep = partial(detect_networks, source, settings, train=parts[0], test=parts[1], together=together)
    pictures = ("Pictures", "pictures", "test images with true and detected objects")
    files = [("Detections", "detections", "in the format of pycocotools"), _MODELS, pictures]
    sweep = partial(sweep, limit=options.limit, save_every=save_every)
    _show(sweep, source, options, verb="detect", headline="box_ap", files=files)


def _show(
    sweep: Callable[..., "Results"],
    source: "ModelSource",
    options: Options,
    *,
    verb: str,
    headline: str,
    files: Sequence[tuple[str, str, str]],
) -> None:
    """Run a sweep and print its scores and files: what each is, its name beside the scores, and more about it.

    ``verb`` is the command that trains without a test.
    """
    sentence = f"This command trains and tests. To train the same models without test images, use `poa {verb}`."
    note(plain_console(stderr=True, quiet=not is_first()), sentence)

    def show(results: "Results", path: Path) -> None:
        further = [f"{what}: {path.parent / name}, {text}" for what, name, text in files]
        show_scores(source, results, path, headline=headline, sizes=options.sizes, further=further)

    show_results(sweep, show, source, options)
