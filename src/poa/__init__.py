"""Pre-train once on your own images, get every size of the model.

Example:
    ```python
    import poa

    run = poa.pretrain(data="images", out="runs/mine", recipe="vit-96", epochs=100)
    run = poa.load("runs/mine")
    run.sizes()
    run.extract("96x4", out="model")
    run.features("photo.jpg", size="96x4")
    poa.evaluate("runs/mine", "linear", train="labelled/train", test="labelled/test")
    folders = poa.finetune("runs/mine", train="labelled/train", sizes="96x4")
    poa.predict(folders["96x4"], "photos", out="labels.csv")
    poa.export_models("runs/mine", sizes="96x4", formats=["onnx"], precisions=["fp32", "int8"])
    ```
"""

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poa.choice.api import choose, measure
from poa.config.protocols import MAX_BAD_SHARE
from poa.config.values import Step
from poa.errors import UserError
from poa.examination.api import doctor
from poa.features.api import save_images
from poa.planning.api import plan
from poa.shipping.api import export_models

if TYPE_CHECKING:
    from poa.data.held import Named
    from poa.evaluation.results import Scores
    from poa.models.cut import CutWeights
    from poa.models.run import Run
    from poa.plots.tables import Value
    from poa.pretraining.observers import Callback

__version__ = "0.1.0"

__all__ = [
    "UserError",
    "choose",
    "cut",
    "detect",
    "doctor",
    "evaluate",
    "evaluate_knn",
    "export_models",
    "finetune",
    "load",
    "measure",
    "plan",
    "predict",
    "pretrain",
    "save_images",
    "segment",
    "sizes",
    "write_report",
]

# torch is imported by the functions that need it, so that the command line answers at once.


def pretrain(
    *,
    recipe: str | None = None,
    config: str | PathLike[str] | None = None,
    resume: bool = False,
    resume_if_begun: bool = False,
    on_step: "Callback | None" = None,
    on_score: "Callback | None" = None,
    **given: Any,
) -> "Run":
    """Pre-train an elastic network.

    Args:
        recipe: Start from a shipped recipe.
        config: Start from a YAML file of settings.
        resume: Resume the run in ``out``, with its settings unless a recipe or file is named.
        resume_if_begun: Do so if it has begun, else start it.
        on_step: Called after every step with its number, counted from 1, and its line of ``metrics.jsonl`` as a dict.
            An error in it ends the run, which is saved at this step and can be resumed.
        on_score: The same after every check, with its scores.
        **given: Settings by name, sections as dicts: ``data=..., out=..., epochs=10, model={"width_max": 512}``.
            ``data`` (and that of ``monitor``) may also be a list of paths, perhaps in pairs with labels, or a map-style
            data set of images, which is stored in the cache; see ``save_images``.

    Returns:
        The run.

    Raises:
        UserError: An argument is not valid.
    """
    from poa.config.resolve import resolve
    from poa.features.images import with_named
    from poa.machine.launchers import is_restarted
    from poa.models.weights import with_network
    from poa.pretraining import launch
    from poa.pretraining.observers import Callbacks

    again = resume_if_begun or is_restarted()
    file = None if config is None else fspath(config)
    named = with_network(with_named(given), recipe=recipe, file=file, resume=resume or again)
    settings = resolve(named, recipe=recipe, file=file, resume=resume or again)
    resume = launch.goes_on(settings, resume=resume, again=again)
    return launch.train(settings, resume=resume, callbacks=Callbacks(on_step, on_score))


def load(folder: str | PathLike[str], *, checkpoint: Step | None = None) -> "Run":
    """Open a run, for its sizes, features and models.

    Args:
        folder: The ``out`` of a pre-training.
        checkpoint: The step of the checkpoint to use, or ``best`` for that with the best score while training; the
            newest by default.

    Raises:
        UserError: The folder is not a run, or has no such checkpoint.
    """
    from poa.models.run import load as load_run

    return load_run(fspath(folder), checkpoint=checkpoint)


def cut(weights: str | PathLike[str], *, image_size: int | None = None, **model: Any) -> "CutWeights":
    """Trained weights of others, out of which sizes are cut without any training: ``cut(...).extract("96x4")``.

    Such sizes have lost most of what the whole network knew; see ``poa extract --from``.

    Args:
        weights: A folder that timm loads, a timm name, or a file of weights.
        image_size: Side of the images, in pixels; that of the weights by default.
        **model: The network and its sizes, as ``model`` of ``pretrain``.

    Raises:
        UserError: The weights cannot be read, or their network cannot be cut.
    """
    from poa.models.cut import CutWeights

    return CutWeights(fspath(weights), model=model, image_size=image_size)


def sizes(*subjects: "Run | str | PathLike[str]") -> "list[dict[str, Value]]":
    """What is known of the networks of runs, folders and timm names, as ``poa sizes --out FILE.json`` writes it."""
    from poa.choice.subjects import overview
    from poa.plots.tables import records

    return records(overview(subjects).rows)


def evaluate(
    subject: "Run | str | PathLike[str]",
    protocol: str = "knn",
    *,
    test: "Named",
    train: "Named | None" = None,
    sizes: str | Sequence[str] = "all",
    branch: str = "teacher",
    name: str | None = None,
    image_size: int | None = None,
    out: str | PathLike[str] | None = None,
    checkpoint: Step | None = None,
    limit: int | None = None,
    workers: int = 0,
    overwrite: bool = False,
    max_bad_share: float = MAX_BAD_SHARE,
    **settings: Any,
) -> "Scores":
    """Evaluate networks on frozen features, as ``poa evaluate`` does.

    Args:
        subject: A run or its folder; a folder that timm loads; or a timm name.
        protocol: ``knn``, ``linear``, ``linear-switchable``, ``linear-slimmable``, ``probe``, ``few-shot``,
            ``cluster`` or ``retrieval``.
        test: Labelled images to test on.
        train: Labelled images to learn from; all but ``cluster`` need them.
        sizes: ``all``, or names of sizes.
        branch: ``teacher``; ``untrained``; or ``initial``, of a run that began with trained weights.
        name: Folder of the results in ``out``.
        image_size: Side of the images, in pixels.
        out: Folder of all results; ``eval`` in a run, else ``eval/NAME``.
        checkpoint: The step of the run's checkpoint to use, or ``best``; by default that of a run given as such, else
            the newest.
        limit: Take only a class-balanced part of the training images.
        workers: Processes that decode images.
        overwrite: Forget results of that name.
        max_bad_share: Share of the images that may be left out as they cannot be read; 0.01 by default.
        **settings: Of the protocol, such as ``ks`` or ``per_class``; fields of its class in ``poa.evaluation``.

    Returns:
        Scores in percent by network and name.

    Raises:
        UserError: An argument is not valid.
    """
    from poa.evaluation import evaluate as scoring
    from poa.evaluation.sweep import SweepOptions
    from poa.features.images import named
    from poa.models.source import model_source

    chosen = scoring.protocol_of(protocol, settings)
    name_of, given = _taken(subject, {"branch": branch} | ({} if checkpoint is None else {"checkpoint": checkpoint}))
    place = None if out is None else Path(out)
    source = model_source(name_of, image_size=image_size, out=place, **given)
    options = SweepOptions(sizes, name, workers, overwrite, max_bad_share=max_bad_share)
    results = scoring.evaluate(source, chosen, train=named(train), test=named(test), limit=limit, options=options)
    return results.of(source.choose(sizes))


def evaluate_knn(run: "Run | str | PathLike[str]", *, train: "Named", test: "Named", **options: Any) -> "Scores":
    """Evaluate sizes of a run by weighted k-NN: short for ``evaluate(run, "knn", ...)``.

    Args:
        run: Whose sizes, or its folder.
        train: Labelled images that vote.
        test: Labelled images that are classified.
        **options: Such as ``sizes``, ``branch``, ``ks``.
    """
    return evaluate(run, "knn", train=train, test=test, **options)


def write_report(*subjects: "Run | str | PathLike[str]", **options: Any) -> Path:
    """Write one offline HTML file to explore all sizes, as ``poa report`` does; see ``poa.report.write``."""
    from poa.report import write

    return write.write_report(subjects, **options)


def finetune(
    subject: "Run | str | PathLike[str]", *, train: "Named", preset: str = "small-data", **options: Any
) -> dict[str, Path]:
    """Fine-tune networks on labelled images, as ``poa finetune`` does.

    Args:
        subject: A run or its folder; a folder that timm loads; or a timm name.
        train: Labelled images.
        preset: Settings to start from.
        **options: Other values for them, by their names in ``poa.config.finetune.Finetune``, and ``sizes``, ``branch``,
            ``name``, ``image_size``, ``out``, ``limit``, ``workers``, ``overwrite``, ``max_bad_share`` and
            ``save_every`` as of the command.

    Returns:
        The folder of each model, by the name of its network.

    Raises:
        UserError: An argument is not valid, or a training diverged.
    """
    from poa.config.finetune import PRESETS
    from poa.config.values import preset_of
    from poa.features.images import named
    from poa.tasks.evaluate import finetune_networks
    from poa.tasks.train import train_models

    name, given = _taken(subject, options)
    return train_models(name, finetune_networks, preset_of(PRESETS, preset), given, train=named(train))


def segment(
    subject: "Run | str | PathLike[str]",
    *,
    train: str | PathLike[str],
    masks: str | PathLike[str],
    classes: str | PathLike[str] | None = None,
    ignore: int = 255,
    preset: str = "small-data",
    **options: Any,
) -> dict[str, Path]:
    """Train networks to segment images, as ``poa segment`` does.

    Args:
        subject: A run or its folder; a folder that timm loads; or a timm name.
        train: Images.
        masks: Their masks, named like them: PNG files of class ids.
        classes: Text file with the names of the classes.
        ignore: Id of pixels without a class.
        preset: Settings to start from.
        **options: Other values for them, by their names in ``poa.config.segmentation.Segmentation``, and those that
            ``finetune`` takes too.

    Returns:
        The folder of each model, by the name of its network.

    Raises:
        UserError: An argument is not valid, or a training diverged.
    """
    from poa.config.segmentation import PRESETS
    from poa.config.values import preset_of
    from poa.tasks.evaluate import segment_networks
    from poa.tasks.segmentation.masks import MaskedImages
    from poa.tasks.train import train_models

    parts = {
        "train": MaskedImages(fspath(train), fspath(masks)),
        "classes": None if classes is None else Path(classes),
        "ignore": ignore,
    }
    settings = preset_of(PRESETS, preset)
    name, given = _taken(subject, {"image_size": options.get("crop", settings.crop) or None, **options})
    return train_models(name, segment_networks, settings, given, **parts)


def detect(
    subject: "Run | str | PathLike[str]",
    *,
    train: str | PathLike[str],
    annotations: str | PathLike[str],
    together: bool = False,
    preset: str = "small-data",
    **options: Any,
) -> dict[str, Path]:
    """Train a detector on each network, as ``poa detect`` does.

    Args:
        subject: A run or its folder; a folder that timm loads; or a timm name.
        train: Images.
        annotations: Their objects: a file in COCO's format.
        together: Train one detector for all widths of a slimmable network.
        preset: Settings to start from.
        **options: Other values for them, by their names in ``poa.config.detection.Detection``, and those that
            ``finetune`` takes too.

    Returns:
        The folder of each model, by the name of its network.

    Raises:
        UserError: An argument is not valid, or a training diverged.
    """
    from poa.config.detection import PRESETS
    from poa.config.values import preset_of
    from poa.tasks.detection.data import CocoImages
    from poa.tasks.evaluate import detect_networks
    from poa.tasks.train import train_models

    parts = {"train": CocoImages(fspath(train), Path(annotations)), "together": together}
    name, given = _taken(subject, options)
    return train_models(name, detect_networks, preset_of(PRESETS, preset), given, **parts)


def predict(
    model: str | PathLike[str],
    images: "Named",
    *,
    out: str | PathLike[str],
    all_classes: bool = False,
    min_score: float | None = None,
    limit: int | None = None,
    workers: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write what a trained model says of images, as ``poa predict`` does.

    Args:
        model: A folder that ``finetune``, ``segment`` or ``detect`` wrote, or an exported file (.onnx, .pt2).
        images: The images; labels are not needed.
        out: A CSV file for labels, a folder for masks, a JSON file in COCO's format for boxes.
        all_classes: Of a classifier, write the probability of each class.
        min_score: Of a detector, leave out objects with a lower score.
        limit: Take only a class-balanced part of the images.
        workers: Processes that decode images.
        overwrite: Replace what is there.

    Returns:
        Where the predictions are.

    Raises:
        UserError: An argument is not valid, or no image can be read.
    """
    from poa.features.images import named
    from poa.tasks import predict as predicting

    written = predicting.predict(
        fspath(model),
        named(images),
        out=Path(out),
        all_classes=all_classes,
        min_score=min_score,
        limit=limit,
        workers=workers,
        overwrite=overwrite,
    )
    return written.path


def _taken(subject: "Run | str | PathLike[str]", options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of a network or the folder of a run, and options with the checkpoint that the run was opened at."""
    from poa.models.source import located

    name, step = located(subject)
    is_trained = step is not None and options.get("branch", "teacher") == "teacher"  # other branches have none
    return name, {**({"checkpoint": step} if is_trained else {}), **options}
