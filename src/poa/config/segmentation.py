"""How a segmentation network is trained and tested: settings for small data, and the published ones by name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field

from poa.config.values import (
    NO_FLAG,
    Ascending,
    Count,
    Natural,
    NotNegative,
    Positive,
    Seed,
    Settings,
    Share,
    ShareAboveZero,
    ShareBelowOne,
)
from poa.errors import UserError

Scale = Annotated[float, Field(gt=0.0, le=10.0)]


class Segmentation(Settings):
    """How a network is trained and tested; the defaults suit some hundred images and one CPU."""

    head: Literal["linear", "upernet"] = "linear"
    """One linear layer after BatchNorm, or UperNet's pyramid pooling and fusion of four levels."""
    taps: Literal["all", "last"] = "all"
    """Maps that a linear head sees: all, concatenated at the resolution of the finest, or only the last."""
    channels: Count = 128
    """Channels of an UperNet head."""
    auxiliary: NotNegative = 0.4
    """Weight of the loss of UperNet's second, small head on the third level; 0 for none."""
    frozen: bool = True
    """Train only the head."""
    epochs: Count = 30
    """Passes over the training images."""
    batch_size: Count = 8
    """Images per step; images left over at the end of an epoch are skipped."""
    lr: Positive = 2e-3
    """Learning rate of the head; layers of the network get lower ones with --layer-decay."""
    layer_decay: ShareAboveZero = 1.0
    """Factor on the learning rate from a layer to the one before it; usually 0.4 to 1."""
    warmup_share: ShareBelowOne = 0.05
    """Share of the training in which the learning rate rises."""
    warmup_lr: Annotated[NotNegative, NO_FLAG] = 1e-6
    """Learning rate at the start."""
    min_lr: NotNegative = 0.0
    """Learning rate at the end."""
    power: Positive = 1.0
    """Power of the polynomial by which the learning rate falls; 1 is a straight line."""
    weight_decay: NotNegative = 0.05
    """Weight decay of AdamW; none for biases, norms, tokens and positions."""
    drop_path: ShareBelowOne = 0.0
    """Rate of stochastic depth in the last block; needs --no-frozen."""
    resize: Natural = 0
    """Shorter side of images before scaling, and in the test, in pixels; 0 for no resizing."""
    scale: Annotated[tuple[Scale, Scale], Ascending] = (0.5, 2.0)
    """Range of the random factor by which training images are scaled."""
    crop: Natural = 0
    """Side of training crops and test windows, in pixels; 0 for --image-size."""
    most: Share = 0.75
    """Crops with a larger share of one class are drawn again, up to ten times; 1 for any crop."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    jitter: Share = 0.4
    """Strength of random changes of brightness, contrast and saturation; that of hue is a tenth of it. 0 for none."""
    stride: Natural = 0
    """Distance between test windows, in pixels; 0 for two thirds of a window."""
    whole: bool = False
    """Test on whole images instead of windows."""
    test_scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = (1.0,)
    """Average predictions over images scaled by these factors, such as 0.75 1 1.25."""
    test_flip: bool = False
    """Average predictions over flipped images too."""
    seed: Seed = 0
    """Seed of everything random."""

    def check(self) -> None:
        """Values that do not fit together."""
        if self.head == "upernet" and self.batch_size < 2:
            raise UserError("An UperNet head has BatchNorm on pooled maps: --batch-size must be at least 2, got 1.")
        if self.frozen and self.drop_path:
            raise UserError(
                f"--drop-path {self.drop_path} has no effect on a frozen backbone. Add --no-frozen, or leave it out."
            )
        if self.whole and self.stride:
            raise UserError(f"--stride {self.stride} has no effect with --whole. Leave out one of them.")


_ADE20K = Segmentation(
    epochs=127,  # 160,000 steps of 16 of the 20,210 training images
    batch_size=16,
    warmup_share=1500 / 160_000,
    resize=512,
    crop=512,
    jitter=0.5,
    stride=341,
)
_UPERNET = _ADE20K.changed(head="upernet", frozen=False)
PRESETS: Mapping[str, Segmentation] = MappingProxyType(
    {
        "small-data": Segmentation(),
        "small-data-finetune": Segmentation(frozen=False, lr=5e-4, layer_decay=0.75, drop_path=0.1),
        "small-data-upernet": Segmentation(head="upernet", frozen=False, lr=5e-4, layer_decay=0.75, drop_path=0.1),
        "ade20k-linear-vit-s": _ADE20K.changed(lr=3e-5),
        "ade20k-linear-vit-b": _ADE20K.changed(lr=7e-4),
        "ade20k-upernet-vit-s": _UPERNET.changed(channels=384, lr=6e-5, layer_decay=0.8, drop_path=0.1),
        "ade20k-upernet-vit-b": _UPERNET.changed(channels=768, lr=4e-5, layer_decay=0.9, drop_path=0.15, min_lr=1e-7),
    }
)
"""All settings by name. Batches are those of the eight GPUs of the published trainings together."""
