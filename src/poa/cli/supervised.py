"""The commands ``poa finetune``, ``segment``, ``detect`` and ``predict``: models of tasks, trained and used."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from poa.cli.evaluate import Model, Options, Sources, Switch, say, show_results
from poa.cli.inspect import say_bad
from poa.cli.tasks import OVER_PRESET, Epochs
from poa.config.detection import PRESETS as DETECTION
from poa.config.detection import Detection
from poa.config.finetune import PRESETS as FINETUNE
from poa.config.finetune import Finetune
from poa.config.segmentation import PRESETS as SEGMENTATION
from poa.config.segmentation import Segmentation
from poa.config.values import preset_of
from poa.errors import counted
from poa.text import plain_console, shell_word

if TYPE_CHECKING:
    from poa.evaluation.results import Results
    from poa.models.source import ModelSource

# torch is imported when a command runs: `poa --help` and a mistyped flag shall not wait for it.


@Parameter(name="*")
@dataclass(frozen=True)
class TrainingOptions(Options):
    """Options of all trainings.

    Attributes:
        sizes: Names such as 96x4; all by default.
        branch: The trained teacher; or, for comparison, untrained networks, or networks cut out of the weights that the
            run started from (--init).
        name: Folder of the models in --out; by default named after the task and the branch.
        image_size: Side of the images in pixels; by default the size that the network is made for.
        out: Folder of all trained models; by default RUN/trained, or trained/NAME for other networks.
        checkpoint: Step of the run's checkpoint to use, or `best`; the newest by default.
        limit: Use only so many training images, balanced over classes.
        workers: Processes that decode images.
        overwrite: Replace earlier models of that name.
        max_bad_share: Largest share of the training images that may be unreadable and left out.
    """

    def source(self, model: str) -> "ModelSource":
        """The networks that are meant."""
        from poa.models.source import model_source, trained_folder

        out = self.out or trained_folder(model)
        return model_source(model, branch=self.branch, image_size=self.image_size, out=out, checkpoint=self.checkpoint)


DEFAULTS = TrainingOptions()


def finetune(
    model: Model,
    /,
    *,
    train: Sources,
    preset: str = "small-data",
    save_every: Epochs = 1,
    flags: Annotated[Finetune, OVER_PRESET] = Finetune(),
    options: TrainingOptions = DEFAULTS,
) -> None:
    """Fine-tune networks on labelled images, with all weights and a classifier, and write the models.

    Example: poa finetune runs/mine --train LABELLED --sizes 96x4

    `poa predict` uses a model. `poa evaluate finetune` trains and tests.

    Args:
        train: Labelled images: a folder of class folders, a CSV list, an archive.
        preset: Settings to start from: small-data, or published ones such as imagenet-vit-s, semi-10 or cifar10-s.
    """
    from poa.tasks.evaluate import finetune_networks

    settings, source = flags.over(preset_of(FINETUNE, preset)), options.source(model)
    sweep = partial(finetune_networks, source, settings, train=train, limit=options.limit, save_every=save_every)
    _show(sweep, source, options, out="labels.csv")


def segment(
    model: Model,
    /,
    *,
    train: str,
    masks: str,
    classes: Path | None = None,
    ignore: int = 255,
    preset: str = "small-data",
    save_every: Epochs = 1,
    flags: Annotated[Segmentation, OVER_PRESET] = Segmentation(),
    options: TrainingOptions = DEFAULTS,
) -> None:
    """Train networks to segment images, with a head on each (or all of it, --no-frozen), and write the models.

    Example: poa segment runs/mine --train IMAGES --masks MASKS --sizes 96x4

    `poa predict` uses a model. `poa evaluate segmentation` trains and tests.

    Args:
        train: Images to train on: a folder, an archive or a folder in one (a.zip/train), a list.
        masks: Their masks, named like them: PNG files of class ids.
        classes: Text file with the names of the classes, one per line; ids by default.
        ignore: Id of pixels without a class.
        preset: Settings to start from: small-data, small-data-finetune, small-data-upernet, or published ones such as
            ade20k-linear-vit-s and ade20k-upernet-vit-b.
    """
    from poa.tasks.evaluate import segment_networks
    from poa.tasks.segmentation.masks import MaskedImages

    settings = flags.over(preset_of(SEGMENTATION, preset))
    source = options.at(settings.crop).source(model)
    sweep = partial(segment_networks, source, settings, train=MaskedImages(train, masks), classes=classes)
    sweep = partial(sweep, ignore=ignore, limit=options.limit, save_every=save_every)
    _show(sweep, source, options, out="masks")


def detect(
    model: Model,
    /,
    *,
    train: str,
    annotations: Path,
    preset: str = "small-data",
    together: Switch = False,
    save_every: Epochs = 1,
    flags: Annotated[Detection, OVER_PRESET] = Detection(),
    options: TrainingOptions = DEFAULTS,
) -> None:
    """Train a detector with boxes and masks on each network, and write the models.

    Example: poa detect runs/mine --train IMAGES --annotations instances.json --sizes 96x4

    `poa predict` uses a model. `poa evaluate detection` trains and tests. --image-size is the size for which the
    network is made; images are resized by --sides, --test-side and --longest. --limit takes images evenly spread over
    the file.

    Args:
        train: Images to train on: a folder, an archive or a folder in one (a.zip/train), a list.
        annotations: Their objects: a file in COCO's format (instances_train2017.json).
        preset: Settings to start from: small-data, or published ones: coco-vit-s, coco-vit-b.
        together: Train one detector for all widths of a slimmable network, as SlimCLR does.
    """
    from poa.tasks.detection.data import CocoImages
    from poa.tasks.evaluate import detect_networks

    settings, source = flags.over(preset_of(DETECTION, preset)), options.source(model)
    sweep = partial(detect_networks, source, settings, train=CocoImages(train, annotations), together=together)
    _show(partial(sweep, limit=options.limit, save_every=save_every), source, options, out="boxes.json")


def _show(sweep: Callable[..., "Results"], source: "ModelSource", options: TrainingOptions, *, out: str) -> None:
    """Train, and print the folder of each model and how to use it; ``out`` is what a prediction may be called."""

    def show(results: "Results", path: Path) -> None:
        trained = [name for name in source.choose(options.sizes) if name in results.scores]
        folders = {name: path.parent / "models" / name for name in trained}
        for name, folder in folders.items():
            details = results.details[name]
            images = counted(int(details["training_images"]), "training image")
            say(f"{folder}: {images}, training loss {details['training_loss']:.3f}")
        say(f"Use it: poa predict {shell_word(str(folders[trained[-1]]))} IMAGES --out {out}")

    show_results(sweep, show, source, options)


def predict(
    model: str,
    /,
    *images: str,
    out: Path,
    all_classes: Switch = False,
    min_score: float | None = None,
    limit: int | None = None,
    workers: int = 0,
    overwrite: Switch = False,
) -> None:
    """Write what a trained model says of images: labels with probabilities, masks, or boxes.

    Example: poa predict runs/mine/trained/finetune/models/96x4 IMAGES --out labels.csv

    A classifier gives a CSV file; a segmentation network a folder of PNG files of class ids, named like the images; a
    detector a JSON file in COCO's format, with masks where it has them. The same command resumes after a stop.

    Args:
        model: A folder that `poa finetune`, `poa segment` or `poa detect` wrote, or an exported file (.onnx, .pt2).
        images: A folder of images, an archive or a folder in one (a.zip/test), a list.
        out: File or folder to write.
        all_classes: Of a classifier, write the probability of each class, in columns of their names.
        min_score: Of a detector, leave out objects with a lower score, from 0 to 1.
        limit: Use only so many images, balanced over classes where there are some.
        workers: Processes that decode images.
        overwrite: Replace what is there.
    """
    from poa.tasks import predict as predicting

    written = predicting.predict(
        model,
        images,
        out=out,
        all_classes=all_classes,
        min_score=min_score,
        limit=limit,
        workers=workers,
        overwrite=overwrite,
        console=plain_console(stderr=True),
    )
    say(f"{written.path}: {counted(written.num_images, 'image')} by {written.kind}")
    say_bad(written.bad)
