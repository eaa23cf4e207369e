"""The commands ``poa evaluate finetune`` and ``poa evaluate transfer``: train networks further on labelled images."""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from poa.cli.evaluate import DEFAULTS, Options
from poa.cli.showing import show_scores, then

if TYPE_CHECKING:
    from poa.config.finetune import Finetune
    from poa.models.source import ModelSource

# torch is imported when a command runs: `poa --help` and a mistyped flag shall not wait for it.

Range = Annotated[tuple[float, float] | None, Parameter(consume_multiple=True, negative=())]


@Parameter(name="*")
@dataclass(frozen=True)
class Training:
    """Settings that win over those of the preset.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images a step.
        lr: Learning rate of the classifier; layers before it learn more slowly.
        lr_reference: Batch size that --lr is meant for; 0 to take it as it is.
        layer_decay: Factor from the learning rate of a layer to that of the one before it.
        warmup_share: Share of the training over which the learning rate rises.
        min_lr: Learning rate at the end.
        weight_decay: Of AdamW.
        mixup: Strength of blending images; 0 for none.
        cutmix: Strength of putting boxes of one image into another; 0 for none.
        smoothing: Share of a label that is spread over all classes.
        rand_augment: timm's configuration, such as rand-m9-mstd0.5-inc1, or none.
        erasing: Probability that a box of an image is replaced by noise.
        crop_scale: Share of an image that a crop covers, least and most.
        flip: Probability of a mirror image; 0 for digits and letters.
        drop_path: Rate of the last block.
        ema: Share of the average of the weights that a step keeps, which is what is tested; 0 tests the last weights.
        head: The classifier: one linear layer, or two with GELU between them.
        precision: Of the forward pass.
        share: Train on this share of each class's images, such as 0.1.
        per_class: Or on so many of each class.
        repeats: How often an image comes in a row, each time changed anew.
        seed: Of everything drawn.
    """

    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    lr_reference: int | None = None
    layer_decay: float | None = None
    warmup_share: float | None = None
    min_lr: float | None = None
    weight_decay: float | None = None
    mixup: float | None = None
    cutmix: float | None = None
    smoothing: float | None = None
    rand_augment: str | None = None
    erasing: float | None = None
    crop_scale: Range = None
    flip: float | None = None
    drop_path: float | None = None
    ema: float | None = None
    head: Literal["linear", "mlp"] | None = None
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    share: float | None = None
    per_class: int | None = None
    repeats: int | None = None
    seed: int | None = None

    def over(self, settings: "Finetune") -> "Finetune":
        """The settings with those that were given laid over them.

        Args:
            settings: Such as a preset.
        """
        return replace(settings, **{name: value for name, value in asdict(self).items() if value is not None})


UNCHANGED = Training()


def finetune(
    model: str,
    /,
    *,
    train: str,
    test: str,
    preset: str = "small-data",
    save_every: int = 1,
    training: Training = UNCHANGED,
    options: Options = DEFAULTS,
) -> None:
    """Fine-tune networks on labelled images, all weights and a classifier, and test them after the last epoch.

    Args:
        model: Folder of a run; an extracted size or another folder that timm loads; or a timm name.
        train: Labelled images to train on: a folder of class folders, a CSV list, an archive.
        test: Labelled images to test on.
        preset: Settings to begin with: small-data, or published ones such as imagenet-vit-s, semi-10 or cifar10-s.
        save_every: Epochs from one checkpoint to the next; a stopped training goes on from there.
        training: Settings that win over those of the preset.
        options: As for all.
    """
    from poa.config.finetune import PRESETS
    from poa.config.values import preset_of

    _run(model, training.over(preset_of(PRESETS, preset)), train, test, save_every=save_every, options=options)


def transfer(
    model: str,
    /,
    *,
    train: str,
    test: str,
    preset: str,
    save_every: int = 1,
    training: Training = UNCHANGED,
    options: Options = DEFAULTS,
) -> None:
    """Fine-tune networks on another data set, as published: `finetune` with the settings of that data set.

    Args:
        model: Folder of a run; an extracted size or another folder that timm loads; or a timm name.
        train: Labelled images to train on: a folder of class folders, a CSV list, an archive.
        test: Labelled images to test on.
        preset: Data set and size: cifar10, cifar100, inat18, inat19, flowers or cars, then -s or -b.
        save_every: Epochs from one checkpoint to the next; a stopped training goes on from there.
        training: Settings that win over those of the preset.
        options: As for all.
    """
    from poa.config.finetune import TRANSFER
    from poa.config.values import preset_of

    named = options if options.name is not None else replace(options, name="transfer")
    _run(model, training.over(preset_of(TRANSFER, preset)), train, test, save_every=save_every, options=named)


def _run(name: str, settings: "Finetune", train: str, test: str, *, save_every: int, options: Options) -> None:
    """Train, show the table and say where the rest is; networks that could not be trained are told after that."""
    from poa.models.source import model_source
    from poa.tasks.classification.evaluate import finetune_networks

    source = model_source(name, branch=options.branch, image_size=options.image_size, out=options.out)
    with then(lambda: _show(source, options)):
        finetune_networks(
            source,
            settings,
            train=train,
            test=test,
            sizes=options.sizes,
            name=options.name,
            limit=options.limit,
            workers=options.workers,
            save_every=save_every,
            overwrite=options.overwrite,
            console=Console(stderr=True),
        )


def _show(source: "ModelSource", options: Options) -> None:
    from poa.tasks.classification.evaluate import HEADLINE, PROTOCOL

    folder = source.results(PROTOCOL, options.name)
    further = [f"Models: {folder / 'models'}, one folder a network, which timm loads"]
    show_scores(source, folder / f"{PROTOCOL}.json", headline=HEADLINE, sizes=options.sizes, further=further)
