"""How a detector is trained and tested: settings that suit small data, and the published ones by name."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from poa.config.values import check_counts, check_layer_decay, check_not_negative, check_positive, check_shares
from poa.errors import UserError
from poa.tasks.detection.model import DetectorPlan

HEADS = ("mask-rcnn", "cascade-mask-rcnn", "faster-rcnn", "cascade-rcnn")
BOX_HEADS = ("mlp", "convolutions")
BOX_LOSSES = ("smooth-l1", "giou")


@dataclass(frozen=True)
class Detection:
    """How a detector is trained and tested; the defaults suit some hundred images and one CPU.

    Attributes:
        head: ``mask-rcnn``, ``cascade-mask-rcnn``, or without masks ``faster-rcnn``, ``cascade-rcnn``.
        channels: Of the feature pyramid and the mask head; 256 as published.
        hidden: Width of the box heads; 1024 as published.
        box_head: ``mlp`` (two linear layers), or ``convolutions`` (four and a linear layer, with GroupNorm).
        box_loss: ``smooth-l1``, or ``giou``, which only cascades know.
        anchor_cells: Side of the square anchors in strides of their level; 8 as published, less for small images.
        regions: Boxes of an image that the heads are trained on; 512 as published.
        frozen: Train all but the backbone.
        batch_norm: Train BatchNorm layers of the backbone too, in place of keeping their statistics and weights.
        epochs: Passes over the training images.
        batch_size: Images a step; those left over in an epoch sit out.
        lr: Learning rate of what is new.
        layer_decay: Factor from the learning rate of a layer of the backbone to that of the one before it.
        warmup_share: Share of the steps over which the learning rate rises.
        warmup_lr: Where it rises from.
        min_lr: Where half a cosine takes it to, without milestones.
        milestones: Or epochs after which it falls to a tenth.
        weight_decay: Of AdamW; none of biases, norms, tokens and positions.
        drop_path: Rate of the backbone's last block; 0 where it is frozen.
        clip: Largest norm of all gradients together; 0 for any.
        sides: Shorter sides of training images, one of which is drawn for each, in pixels.
        test_side: Shorter side of test images, in pixels.
        longest: Images are made smaller than that where their longer side were above it, in pixels.
        flip: Probability of a mirror image.
        min_score: Detections below it are dropped.
        most: Detections of an image.
        seed: Of everything drawn.
    """

    head: str = "mask-rcnn"
    channels: int = 128
    hidden: int = 512
    box_head: str = "mlp"
    box_loss: str = "smooth-l1"
    anchor_cells: float = 4.0
    regions: int = 128
    frozen: bool = False
    batch_norm: bool = False
    epochs: int = 50
    batch_size: int = 4
    lr: float = 3e-4
    layer_decay: float = 0.8
    warmup_share: float = 0.05
    warmup_lr: float = 1e-6
    min_lr: float = 1e-6
    milestones: tuple[int, ...] = ()
    weight_decay: float = 0.05
    drop_path: float = 0.0
    clip: float = 1.0
    sides: tuple[int, ...] = (224, 256, 288)
    test_side: int = 256
    longest: int = 384
    flip: float = 0.5
    min_score: float = 0.05
    most: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("head", self.head, HEADS),
            ("box-head", self.box_head, BOX_HEADS),
            ("box-loss", self.box_loss, BOX_LOSSES),
        ):
            if value not in known:
                raise UserError(f"--{name} is one of {', '.join(known)}, got {value!r}.")
        self._check_numbers()
        self._check_sides()
        if self.frozen and self.drop_path:
            raise UserError(f"A frozen backbone drops no paths, got --drop-path {self.drop_path}. Add --no-frozen.")
        if self.frozen and self.batch_norm:
            raise UserError("A frozen backbone trains no BatchNorm, got --batch-norm. Add --no-frozen.")
        if self.box_loss == "giou" and not self.head.startswith("cascade"):
            raise UserError(f"Only cascades know --box-loss giou, got --head {self.head}. Take cascade-{self.head}.")
        if list(self.milestones) != sorted(set(self.milestones)) or any(
            not 0 < each < self.epochs for each in self.milestones
        ):
            raise UserError(
                f"--milestones are ascending epochs between 0 and --epochs {self.epochs}, got {self.milestones}. "
                "Leave them out for half a cosine."
            )

    def _check_numbers(self) -> None:
        check_counts(
            {
                "epochs": self.epochs,
                "batch-size": self.batch_size,
                "channels": self.channels,
                "hidden": self.hidden,
                "regions": self.regions,
                "most": self.most,
            }
        )
        check_positive({"lr": self.lr, "anchor-cells": self.anchor_cells})
        least = {
            "warmup-lr": self.warmup_lr,
            "min-lr": self.min_lr,
            "weight-decay": self.weight_decay,
            "clip": self.clip,
            "seed": self.seed,
        }
        check_not_negative(least)
        shares = {
            "warmup-share": self.warmup_share,
            "flip": self.flip,
            "drop-path": self.drop_path,
            "min-score": self.min_score,
        }
        check_shares(shares, whole=("flip",))
        check_layer_decay(self.layer_decay)

    def _check_sides(self) -> None:
        if not self.sides or min(self.sides) < 1 or self.test_side < 1:
            raise UserError(
                f"--sides and --test-side take shorter sides in pixels such as 480 640 800, got {self.sides} and "
                f"{self.test_side}."
            )
        if self.longest < max(*self.sides, self.test_side):
            raise UserError(
                f"--longest {self.longest} is less than the shorter side {max(*self.sides, self.test_side)}, which no "
                "image could then have. Give at least that; usual is 5/3 of it."
            )

    def plan(
        self, *, num_classes: int, mean: tuple[float, float, float], std: tuple[float, float, float]
    ) -> DetectorPlan:
        """What detector to build.

        Args:
            num_classes: Number of classes, without the background.
            mean: Of the channels, of values in 0..1.
            std: Of the channels.
        """
        return DetectorPlan(
            head=self.head,
            num_classes=num_classes,
            mean=mean,
            std=std,
            side=self.test_side,
            longest=self.longest,
            train_sides=self.sides,
            channels=self.channels,
            box_head=self.box_head,
            box_loss=self.box_loss,
            hidden=self.hidden,
            anchor_cells=self.anchor_cells,
            regions=self.regions,
            min_score=self.min_score,
            most=self.most,
        )


_COCO = Detection(
    head="cascade-mask-rcnn",
    channels=256,
    hidden=1024,
    box_head="convolutions",
    box_loss="giou",
    anchor_cells=8.0,
    regions=512,
    epochs=36,
    batch_size=16,
    warmup_share=500 / 263_844,  # steps; 36 epochs of 117,266 images with objects
    milestones=(27, 33),
    clip=0.0,
    sides=tuple(range(480, 801, 32)),
    test_side=800,
    longest=1333,
)
PRESETS: Mapping[str, Detection] = MappingProxyType(
    {
        "small-data": Detection(),
        "coco-vit-s": replace(_COCO, lr=3e-4, layer_decay=0.7, drop_path=0.1),
        "coco-vit-b": replace(_COCO, lr=1e-4, layer_decay=0.65, drop_path=0.2),
    }
)
"""All settings by name. Batches are those of the eight GPUs of the published trainings together."""
