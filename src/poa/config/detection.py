"""How a detector is trained and tested: settings for small data, and the published ones by name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field

from poa.config.values import (
    NO_FLAG,
    Count,
    NotNegative,
    Positive,
    Seed,
    Settings,
    Share,
    ShareAboveZero,
    ShareBelowOne,
)
from poa.errors import UserError


class Detection(Settings):
    """How a detector is trained and tested; the defaults suit some hundred images and one CPU."""

    head: Literal["mask-rcnn", "cascade-mask-rcnn", "faster-rcnn", "cascade-rcnn"] = "mask-rcnn"
    """Kind of detector: Mask R-CNN, a cascade of three box heads, or the same without masks."""
    channels: Count = 128
    """Channels of the feature pyramid and of the mask head; 256 as published."""
    hidden: Count = 512
    """Width of the box heads; 1024 as published."""
    box_head: Literal["mlp", "convolutions"] = "mlp"
    """Layers of the box heads: two linear ones, or four convolutions with GroupNorm and a linear one."""
    box_loss: Literal["smooth-l1", "giou"] = "smooth-l1"
    """Loss of the boxes: smooth L1, or GIoU, which needs a cascade."""
    anchor_cells: Positive = 4.0
    """Side of the square anchors in strides of their level; 8 as published, less for small images."""
    regions: Count = 128
    """Boxes per image on which the heads are trained; 512 as published."""
    frozen: bool = False
    """Train only the new parts of the detector and leave the network unchanged."""
    batch_norm: bool = False
    """Train the BatchNorm layers of the network too, instead of keeping their statistics and weights."""
    epochs: Count = 50
    """Passes over the training images."""
    batch_size: Count = 4
    """Images per step; images left over at the end of an epoch are skipped."""
    lr: Positive = 3e-4
    """Learning rate of the new parts; layers of the network get lower ones with --layer-decay."""
    layer_decay: ShareAboveZero = 0.8
    """Factor on the learning rate from a layer to the one before it; usually 0.4 to 1."""
    warmup_share: ShareBelowOne = 0.05
    """Share of the training in which the learning rate rises."""
    warmup_lr: Annotated[NotNegative, NO_FLAG] = 1e-6
    """Learning rate at the start."""
    min_lr: NotNegative = 1e-6
    """Learning rate at the end of half a cosine; not used with --milestones."""
    milestones: tuple[Count, ...] = ()
    """Epochs after which the learning rate falls to a tenth, instead of by half a cosine."""
    weight_decay: NotNegative = 0.05
    """Weight decay of AdamW; none for biases, norms, tokens and positions."""
    drop_path: ShareBelowOne = 0.0
    """Rate of stochastic depth in the last block; needs --no-frozen."""
    clip: NotNegative = 1.0
    """Largest norm of all gradients together; 0 for no clipping."""
    sides: Annotated[tuple[Count, ...], Field(min_length=1)] = (224, 256, 288)
    """Shorter sides of training images in pixels, such as 480 640 800; one is drawn for each image."""
    test_side: Count = 256
    """Shorter side of test images in pixels."""
    longest: Count = 384
    """Upper limit of the longer side of an image, in pixels; larger images are scaled down."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    min_score: ShareBelowOne = 0.05
    """Lowest score of a detection."""
    most: Count = 100
    """Largest number of detections in an image."""
    seed: Seed = 0
    """Seed of everything random."""

    @property
    def has_masks(self) -> bool:
        """Whether masks are predicted besides boxes."""
        return "mask" in self.head

    def check(self) -> None:
        """Values that exclude one another."""
        if self.frozen and self.drop_path:
            raise UserError(
                f"--drop-path {self.drop_path} has no effect on a frozen backbone. Add --no-frozen, or leave it out."
            )
        if self.frozen and self.batch_norm:
            raise UserError("--batch-norm has no effect on a frozen backbone. Add --no-frozen, or leave it out.")
        if self.box_loss == "giou" and not self.head.startswith("cascade"):
            raise UserError(f"--box-loss giou needs a cascade, got --head {self.head}. Choose cascade-{self.head}.")
        if list(self.milestones) != sorted(set(self.milestones)) or max(self.milestones, default=0) >= self.epochs:
            raise UserError(
                f"--milestones must be ascending epochs below --epochs {self.epochs}, got {self.milestones}. "
                "Leave them out for half a cosine."
            )
        if self.longest < max(*self.sides, self.test_side):
            raise UserError(
                f"--longest {self.longest} is less than the shorter side of images, "
                f"{max(*self.sides, self.test_side)}. Set it to at least that; usual is 5/3 of it."
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
        "coco-vit-s": _COCO.changed(lr=3e-4, layer_decay=0.7, drop_path=0.1),
        "coco-vit-b": _COCO.changed(lr=1e-4, layer_decay=0.65, drop_path=0.2),
    }
)
"""All settings by name. Batches are those of the eight GPUs of the published trainings together."""
