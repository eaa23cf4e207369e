"""The command ``poa evaluate detection``: train a detector on images with boxes and masks, and give COCO's AP."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from poa.cli.evaluate import DEFAULTS, Options, Switch
from poa.cli.showing import show_scores, then

if TYPE_CHECKING:
    from poa.config.detection import Detection
    from poa.models.source import ModelSource

# torch is imported when the command runs: `poa --help` and a mistyped flag shall not wait for it.

Whole = Annotated[tuple[int, ...] | None, Parameter(consume_multiple=True, negative=())]


@Parameter(name="*")
@dataclass(frozen=True)
class Training:
    """Settings that win over those of the preset.

    Attributes:
        head: Mask R-CNN, a cascade of three, or the same without masks.
        channels: Of the feature pyramid and the mask head.
        hidden: Width of the box heads.
        box_head: Two linear layers, or four convolutions and one.
        box_loss: GIoU is for cascades alone.
        anchor_cells: Side of the square anchors in strides of their level; 8 as published.
        regions: Boxes of an image that the heads are trained on.
        frozen: Train all but the network.
        batch_norm: Train the BatchNorm layers of the network too.
        epochs: Passes over the training images.
        batch_size: Images a step.
        lr: Learning rate of what is new; layers of the network learn more slowly.
        layer_decay: Factor from the learning rate of a layer to that of the one before it.
        warmup_share: Share of the training over which the learning rate rises.
        min_lr: Learning rate at the end of half a cosine.
        milestones: Or epochs after which it falls to a tenth.
        weight_decay: Of AdamW.
        drop_path: Rate of the last block.
        clip: Largest norm of all gradients together; 0 for any.
        sides: Shorter sides of training images, one of which is drawn for each, in pixels.
        test_side: Shorter side of test images in pixels.
        longest: Longer side that no image exceeds, in pixels.
        flip: Probability of a mirror image.
        min_score: Detections below it are dropped.
        most: Detections of an image.
        seed: Of everything drawn.
    """

    head: Literal["mask-rcnn", "cascade-mask-rcnn", "faster-rcnn", "cascade-rcnn"] | None = None
    channels: int | None = None
    hidden: int | None = None
    box_head: Literal["mlp", "convolutions"] | None = None
    box_loss: Literal["smooth-l1", "giou"] | None = None
    anchor_cells: float | None = None
    regions: int | None = None
    frozen: bool | None = None
    batch_norm: bool | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    layer_decay: float | None = None
    warmup_share: float | None = None
    min_lr: float | None = None
    milestones: Whole = None
    weight_decay: float | None = None
    drop_path: float | None = None
    clip: float | None = None
    sides: Whole = None
    test_side: int | None = None
    longest: int | None = None
    flip: float | None = None
    min_score: float | None = None
    most: int | None = None
    seed: int | None = None

    def over(self, settings: "Detection") -> "Detection":
        """The settings with those that were given laid over them.

        Args:
            settings: Such as a preset.
        """
        return replace(settings, **{name: value for name, value in asdict(self).items() if value is not None})


UNCHANGED = Training()


def detection(
    model: str,
    /,
    *,
    train_images: str,
    train_annotations: Path,
    test_images: str,
    test_annotations: Path,
    preset: str = "small-data",
    together: Switch = False,
    save_every: int = 1,
    training: Training = UNCHANGED,
    options: Options = DEFAULTS,
) -> None:
    """Detect objects: train a detector with boxes and masks on each network, and give COCO's AP on test images.

    Args:
        model: Folder of a run; an extracted size or another folder that timm loads; or a timm name.
        train_images: Images to train on: a folder, an archive or a folder in one (a.zip/train), a list.
        train_annotations: What is in them: a file in COCO's format (instances_train2017.json).
        test_images: Images to test on.
        test_annotations: What is in them.
        preset: Settings to begin with: small-data, or published ones: coco-vit-s, coco-vit-b.
        together: Train one detector for all widths of a slimmable network, as SlimCLR does.
        save_every: Epochs from one checkpoint to the next; a stopped training goes on from there.
        training: Settings that win over those of the preset.
        options: As for all. --image-size is that which the network is made for; those of the images are --sides,
            --test-side and --longest. --limit takes images evenly from the file.
    """
    from poa.config.detection import PRESETS
    from poa.config.values import preset_of
    from poa.models.source import model_source
    from poa.tasks.detection.evaluate import InCoco, detect_by_networks

    settings = training.over(preset_of(PRESETS, preset))
    networks = model_source(model, branch=options.branch, image_size=options.image_size, out=options.out)
    with then(lambda: _show(networks, options)):
        detect_by_networks(
            networks,
            settings,
            train=InCoco(train_images, train_annotations),
            test=InCoco(test_images, test_annotations),
            sizes=options.sizes,
            name=options.name,
            limit=options.limit,
            together=together,
            workers=options.workers,
            save_every=save_every,
            overwrite=options.overwrite,
            console=Console(stderr=True),
        )


def _show(source: "ModelSource", options: Options) -> None:
    from poa.tasks.detection.evaluate import PROTOCOL
    from poa.tasks.detection.train_one import DETECTIONS, HEADLINE

    folder = source.results(PROTOCOL, options.name)
    further = [
        f"Detections: {folder / DETECTIONS}, which pycocotools reads",
        f"Models: {folder / 'models'}, one folder a network, whose README.md says how to load it",
        f"Pictures: {folder / 'pictures'}, test images with true and detected objects",
    ]
    show_scores(source, folder / f"{PROTOCOL}.json", headline=HEADLINE, sizes=options.sizes, further=further)
