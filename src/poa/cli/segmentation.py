"""The command ``poa evaluate segmentation``: train a head, or all of a network, on images with masks, and test it."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from poa.cli.evaluate import DEFAULTS, Options
from poa.cli.showing import show_scores, then

if TYPE_CHECKING:
    from poa.config.segmentation import Segmentation
    from poa.models.source import ModelSource

# torch is imported when the command runs: `poa --help` and a mistyped flag shall not wait for it.

Range = Annotated[tuple[float, float] | None, Parameter(consume_multiple=True, negative=())]
Factors = Annotated[tuple[float, ...] | None, Parameter(consume_multiple=True, negative=())]


@Parameter(name="*")
@dataclass(frozen=True)
class Training:
    """Settings that win over those of the preset.

    Attributes:
        head: One linear layer, or UperNet's pyramid pooling and fusion of four levels.
        taps: Whether a linear head sees all maps side by side, or the last one.
        channels: Of an UperNet head.
        auxiliary: Weight of the loss of UperNet's second head; 0 for none.
        frozen: Train the head alone.
        epochs: Passes over the training images.
        batch_size: Images a step.
        lr: Learning rate of the head; layers of the network before it learn more slowly.
        layer_decay: Factor from the learning rate of a layer to that of the one before it.
        warmup_share: Share of the training over which the learning rate rises.
        min_lr: Learning rate at the end.
        power: Of the polynomial by which the learning rate falls.
        weight_decay: Of AdamW.
        drop_path: Rate of the last block.
        resize: Shorter side of images before scaling, and in the test, in pixels; 0 leaves them.
        scale: Range of the random factor by which training images are scaled.
        crop: Side of training crops and test windows in pixels; --image-size by default.
        most: Crops with a larger share of one class are drawn again.
        flip: Probability of a mirror image.
        jitter: Strength of random changes of colours; 0 for none.
        stride: From one test window to the next in pixels; two thirds of a window by default.
        whole: Test on whole images in place of windows.
        test_scales: Average the test over images scaled by these factors, such as 0.75 1 1.25.
        test_flip: Average the test over mirror images.
        seed: Of everything drawn.
    """

    head: Literal["linear", "upernet"] | None = None
    taps: Literal["all", "last"] | None = None
    channels: int | None = None
    auxiliary: float | None = None
    frozen: bool | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    layer_decay: float | None = None
    warmup_share: float | None = None
    min_lr: float | None = None
    power: float | None = None
    weight_decay: float | None = None
    drop_path: float | None = None
    resize: int | None = None
    scale: Range = None
    crop: int | None = None
    most: float | None = None
    flip: float | None = None
    jitter: float | None = None
    stride: int | None = None
    whole: bool | None = None
    test_scales: Factors = None
    test_flip: bool | None = None
    seed: int | None = None

    def over(self, settings: "Segmentation") -> "Segmentation":
        """The settings with those that were given laid over them.

        Args:
            settings: Such as a preset.
        """
        return replace(settings, **{name: value for name, value in asdict(self).items() if value is not None})


UNCHANGED = Training()


def segmentation(
    model: str,
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
    training: Training = UNCHANGED,
    options: Options = DEFAULTS,
) -> None:
    """Segment images: train a head on each network (or all of it, --no-frozen), and give mIoU on test images.

    Args:
        model: Folder of a run; an extracted size or another folder that timm loads; or a timm name.
        train: Images to train on: a folder, an archive or a folder in one (a.zip/train), a list.
        train_masks: Their masks, named like them: PNG files of class ids.
        test: Images to test on.
        test_masks: Their masks.
        classes: Text file with the names of the classes, one a line; ids by default.
        ignore: Id of pixels without a class.
        preset: Settings to begin with: small-data, small-data-finetune, small-data-upernet, or published ones such as
            ade20k-linear-vit-s and ade20k-upernet-vit-b.
        save_every: Epochs from one checkpoint to the next; a stopped training goes on from there.
        training: Settings that win over those of the preset.
        options: As for all.
    """
    from poa.config.segmentation import PRESETS
    from poa.config.values import preset_of
    from poa.models.source import model_source
    from poa.tasks.segmentation.evaluate import Masked, segment_networks

    settings = training.over(preset_of(PRESETS, preset))
    image_size = options.image_size or settings.crop or None
    networks = model_source(model, branch=options.branch, image_size=image_size, out=options.out)
    with then(lambda: _show(networks, options)):
        segment_networks(
            networks,
            settings,
            train=Masked(train, train_masks),
            test=Masked(test, test_masks),
            classes=classes,
            ignore=ignore,
            sizes=options.sizes,
            name=options.name,
            limit=options.limit,
            workers=options.workers,
            save_every=save_every,
            overwrite=options.overwrite,
            console=Console(stderr=True),
        )


def _show(source: "ModelSource", options: Options) -> None:
    from poa.tasks.segmentation.evaluate import PROTOCOL
    from poa.tasks.segmentation.train_one import HEADLINE

    folder = source.results(PROTOCOL, options.name)
    further = [
        f"Classes: {folder / 'classes.csv'}, IoU of each",
        f"Models: {folder / 'models'}, one folder a network, whose README.md says how to load it",
        f"Pictures: {folder / 'pictures'}, test images with true and predicted masks",
    ]
    show_scores(source, folder / f"{PROTOCOL}.json", headline=HEADLINE, sizes=options.sizes, further=further)
