"""How a model is fine-tuned: settings that suit small data, and the published ones by name."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch

from poa.config.values import check_counts, check_layer_decay, check_not_negative, check_positive, check_shares
from poa.errors import UserError

HEADS = ("linear", "mlp")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NO_AUGMENTATION = "none"


@dataclass(frozen=True)
class Finetune:
    """How a model is trained; the defaults suit some thousand images of 32 to 96 pixels.

    Images so small have nothing to spare: on the digits, crops of less than two thirds of an image, RandAugment and
    erasing each cost accuracy, whereas mixing images pays from some tens of epochs on.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images a step; those left over in an epoch sit out.
        lr: Learning rate of the classifier and what follows the last block.
        lr_reference: Batch size that ``lr`` is meant for, the rate used being proportional to the batch size; 0 to
            take ``lr`` as it is.
        layer_decay: Factor from the learning rate of a layer to that of the one before it.
        warmup_share: Share of the steps over which the learning rate rises.
        warmup_lr: Where it rises from.
        min_lr: Where half a cosine takes it to.
        weight_decay: Of AdamW; none of biases, norms, tokens and positions.
        mixup: Parameter of the beta distribution by which images are blended; 0 for no blending.
        cutmix: The same for boxes put from one image into another. With both, one or the other by turns of chance.
        smoothing: Share of a label that is spread over all classes.
        rand_augment: timm's configuration of RandAugment, such as ``rand-m9-mstd0.5-inc1``; ``none`` for none.
        erasing: Probability that a box of the image is replaced by noise.
        crop_scale: Share of the image that a crop covers, least and most.
        flip: Probability of a mirror image.
        drop_path: Rate of the last block; that of the model, which is built with it.
        ema: Share of the moving average of the weights that a step keeps; the average is what is scored. 0 scores the
            weights themselves.
        head: ``linear`` classifier, or ``mlp``: linear to 2048, GELU, linear.
        precision: Of the forward pass: ``fp32``, ``bf16`` or ``fp16``.
        share: Share of each class's training images that is used, such as 0.01; None for all.
        per_class: Or how many of each class.
        repeats: How often an image comes in a row, each time augmented anew (repeated augmentation).
        seed: Of everything drawn.
    """

    epochs: int = 50
    batch_size: int = 64
    lr: float = 2e-3
    lr_reference: int = 0
    layer_decay: float = 0.75
    warmup_share: float = 0.1
    warmup_lr: float = 1e-6
    min_lr: float = 1e-6
    weight_decay: float = 0.05
    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1
    rand_augment: str = NO_AUGMENTATION
    erasing: float = 0.0
    crop_scale: tuple[float, float] = (0.7, 1.0)
    flip: float = 0.5
    drop_path: float = 0.1
    ema: float = 0.99
    head: str = "linear"
    precision: str = "fp32"
    share: float | None = None
    per_class: int | None = None
    repeats: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_counts()
        self._check_shares()
        if self.head not in HEADS:
            raise UserError(f"--head is one of {', '.join(HEADS)}, got {self.head!r}.")
        if self.precision not in PRECISIONS:
            raise UserError(f"--precision is one of {', '.join(PRECISIONS)}, got {self.precision!r}.")
        if self.mixes and self.batch_size % 2:
            raise UserError(
                f"Images are mixed in pairs, so that --batch-size must be even, got {self.batch_size}. "
                f"Use {self.batch_size + 1}, or turn mixing off with --mixup 0 --cutmix 0."
            )

    def _check_counts(self) -> None:
        check_counts({"epochs": self.epochs, "batch-size": self.batch_size, "repeats": self.repeats})
        check_positive({"lr": self.lr})
        least = {
            "lr-reference": self.lr_reference,
            "warmup-lr": self.warmup_lr,
            "min-lr": self.min_lr,
            "weight-decay": self.weight_decay,
            "mixup": self.mixup,
            "cutmix": self.cutmix,
            "seed": self.seed,
        }
        check_not_negative(least)

    def _check_shares(self) -> None:
        shares = {
            "warmup-share": self.warmup_share,
            "smoothing": self.smoothing,
            "erasing": self.erasing,
            "flip": self.flip,
            "drop-path": self.drop_path,
            "ema": self.ema,
        }
        check_shares(shares, whole=("erasing", "flip"))
        check_layer_decay(self.layer_decay)
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise UserError(
                f"--crop-scale takes the least and the greatest share of an image, got {self.crop_scale}. "
                "Usual are 0.08 1 for large images and 0.7 1 for small ones."
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
_TRANSFER = replace(
    _IMAGENET,
    epochs=1000,
    batch_size=96 * 8,
    lr_reference=512,
    warmup_share=5 / 1000,
    min_lr=1e-5,
    erasing=0.1,
    repeats=3,
)
_SEMI = replace(
    _IMAGENET,
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
    return replace(
        _IMAGENET, epochs=epochs, lr=lr, layer_decay=layer_decay, batch_size=8 * batch_of_gpu, drop_path=drop_path
    )


def _transfer(
    name: str, rates: tuple[float, float], layer_decays: tuple[float, float], *, epochs: int = 1000
) -> dict[str, Finetune]:
    """Settings of one data set for ViT-S and ViT-B."""
    warmup = 5 / epochs
    return {
        f"{name}-{size}": replace(
            _TRANSFER, epochs=epochs, warmup_share=warmup, lr=lr, layer_decay=decay, drop_path=drop_path
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
        "semi-1": replace(_SEMI, share=0.01),
        "semi-10": replace(_SEMI, share=0.1),
        **TRANSFER,
    }
)
"""All settings by name. Batches are those of the eight GPUs of the published trainings together."""
