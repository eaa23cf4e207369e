"""How a network is fine-tuned: settings that suit small data, and the published ones by name. Imports no torch."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from poa.config.values import (
    NO_FLAG,
    AreaRange,
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

NO_AUGMENTATION = "none"


class Finetune(Settings):
    """How a network is fine-tuned; the defaults suit some thousand images of 32 to 96 pixels.

    Images so small have nothing to spare: on the digits, crops of less than two thirds of an image, RandAugment and
    erasing each cost accuracy, whereas mixing images pays from some tens of epochs on.
    """

    epochs: Count = 50
    """Passes over the training images."""
    batch_size: Count = 64
    """Images per step; images left over at the end of an epoch are skipped."""
    lr: Positive = 2e-3
    """Learning rate of the classifier; earlier layers get lower ones."""
    lr_reference: Natural = 0
    """Batch size that --lr is meant for; the rate used is proportional to the batch size. 0 to use --lr unchanged."""
    layer_decay: ShareAboveZero = 0.75
    """Factor on the learning rate from a layer to the one before it; usually 0.4 to 1."""
    warmup_share: ShareBelowOne = 0.1
    """Share of the training in which the learning rate rises."""
    warmup_lr: Annotated[NotNegative, NO_FLAG] = 1e-6
    """Learning rate at the start."""
    min_lr: NotNegative = 1e-6
    """Learning rate at the end of half a cosine."""
    weight_decay: NotNegative = 0.05
    """Weight decay of AdamW; none for biases, norms, tokens and positions."""
    mixup: NotNegative = 0.8
    """Strength of mixup, which blends two images (parameter of the beta distribution); 0 for none."""
    cutmix: NotNegative = 1.0
    """Strength of cutmix, which pastes a box of one image into another; 0 for none. With both, each batch gets one of
    them."""
    smoothing: ShareBelowOne = 0.1
    """Label smoothing: share of a label that is spread over all classes."""
    rand_augment: str = NO_AUGMENTATION
    """timm's configuration of RandAugment, such as rand-m9-mstd0.5-inc1, or none."""
    erasing: Share = 0.0
    """Probability of random erasing, which replaces a box of an image by noise."""
    crop_scale: AreaRange = (0.7, 1.0)
    """Smallest and largest share of an image that a crop covers; usually 0.08 1 for large images, 0.7 1 for small
    ones."""
    flip: Share = 0.5
    """Probability of a horizontal flip; 0 for digits and letters."""
    drop_path: ShareBelowOne = 0.1
    """Rate of stochastic depth in the last block."""
    ema: ShareBelowOne = 0.99
    """Decay of the moving average of the weights, which is tested; 0 to test the last weights."""
    head: Literal["linear", "mlp"] = "linear"
    """The classifier: one linear layer, or two with GELU between them."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the forward pass."""
    share: ShareAboveZero | None = None
    """Train on this share of the images of each class, such as 0.1."""
    per_class: Count | None = None
    """Train on this many images of each class."""
    repeats: Count = 1
    """Times that each image occurs in a row, augmented differently each time (repeated augmentation)."""
    seed: Seed = 0
    """Seed of everything random."""

    def check(self) -> None:
        """Values that do not fit together."""
        if self.share is not None and self.per_class is not None:
            raise UserError(f"Give either --share or --per-class, got both: {self.share} and {self.per_class}.")
        if self.mixes and self.batch_size % 2:
            raise UserError(
                f"Images are mixed in pairs, so --batch-size must be even, got {self.batch_size}. Use "
                f"{self.batch_size + 1}, or turn mixing off with --mixup 0 --cutmix 0."
            )

    @property
    def mixes(self) -> bool:
        """Whether images are mixed with one another."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def peak_lr(self) -> float:
        """The learning rate after the warm-up."""
        return self.lr * self.batch_size / self.lr_reference if self.lr_reference else self.lr


_IMAGENET = Finetune(
    rand_augment="rand-m9-mstd0.5-inc1",
    erasing=0.25,
    crop_scale=(0.08, 1.0),
    ema=0.7,
    precision="fp16",
)
_TRANSFER = _IMAGENET.changed(
    epochs=1000,
    batch_size=96 * 8,
    lr_reference=512,
    warmup_share=5 / 1000,
    min_lr=1e-5,
    erasing=0.1,
    repeats=3,
)
_SEMI = _IMAGENET.changed(
    epochs=1000,
    batch_size=128 * 8,
    lr=5e-6,
    lr_reference=512,
    layer_decay=1.0,
    warmup_share=5 / 1000,
    min_lr=1e-5,
    ema=0.0,
    head="mlp",
)


def _imagenet(epochs: int, lr: float, layer_decay: float, batch_of_gpu: int, drop_path: float) -> Finetune:
    return _IMAGENET.changed(
        epochs=epochs, lr=lr, layer_decay=layer_decay, batch_size=8 * batch_of_gpu, drop_path=drop_path
    )


def _transfer(
    name: str, rates: tuple[float, float], layer_decays: tuple[float, float], *, epochs: int = 1000
) -> dict[str, Finetune]:
    """Settings of one data set for ViT-S and ViT-B."""
    warmup = 5 / epochs
    return {
        f"{name}-{size}": _TRANSFER.changed(
            epochs=epochs, warmup_share=warmup, lr=lr, layer_decay=decay, drop_path=drop_path
        )
        for size, lr, decay, drop_path in zip("sb", rates, layer_decays, (0.1, 0.2), strict=True)
    }


TRANSFER: Mapping[str, Finetune] = MappingProxyType(
    {
        **_transfer("cifar10", (8e-6, 7.5e-6), (0.9, 0.9)),
        **_transfer("cifar100", (9e-6, 7.5e-6), (0.85, 0.8)),
        **_transfer("inat18", (4e-4, 2e-4), (0.8, 0.75), epochs=360),
        **_transfer("inat19", (7e-5, 4e-5), (0.85, 0.75), epochs=360),
        **_transfer("flowers", (6e-4, 5e-4), (0.6, 0.7)),
        **_transfer("cars", (4e-4, 3e-4), (0.8, 0.7)),
    }
)
"""Published settings for other data sets, for ViT-S and ViT-B."""
PRESETS: Mapping[str, Finetune] = MappingProxyType(
    {
        "small-data": Finetune(),
        "imagenet-vit-s": _imagenet(200, 2e-3, 0.55, 256, 0.1),
        "imagenet-vit-b": _imagenet(100, 7e-4, 0.4, 256, 0.2),
        "imagenet-vit-l": _imagenet(50, 1.8e-3, 0.6, 256, 0.2),
        "imagenet-swin-t": _imagenet(200, 1.4e-3, 0.6, 128, 0.1),
        "imagenet-swin-s": _imagenet(100, 1e-3, 0.4, 128, 0.1),
        "imagenet-swin-b": _imagenet(50, 7e-4, 0.55, 64, 0.2),
        "imagenet-resnet-50": _imagenet(100, 1.4e-3, 0.6, 128, 0.0),
        "imagenet-resnet-101": _imagenet(100, 1e-3, 0.4, 128, 0.0),
        "imagenet-resnet-152": _imagenet(100, 7e-4, 0.45, 64, 0.0),
        "semi-1": _SEMI.changed(share=0.01),
        "semi-10": _SEMI.changed(share=0.1),
        **TRANSFER,
    }
)
"""All settings by name. Batches are those of the eight GPUs of the published trainings together."""
