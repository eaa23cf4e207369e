"""How a segmentation network is trained and tested: settings that suit small data, and the published ones by name."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from poa.config.values import check_counts, check_layer_decay, check_not_negative, check_positive, check_shares
from poa.errors import UserError

HEADS = ("linear", "upernet")
TAPS = ("all", "last")


@dataclass(frozen=True)
class Segmentation:
    """How a network is trained and tested; the defaults suit some hundred images and one CPU.

    Attributes:
        head: ``linear`` (BatchNorm and a 1x1 convolution), or ``upernet`` (pyramid pooling and fusion of four levels).
        taps: What a linear head sees: ``all`` maps side by side at the resolution of the finest, or the ``last`` one.
        channels: Of an UperNet head.
        auxiliary: Weight of the loss of a second, small head on the third level, for UperNet; 0 for none.
        frozen: Train the head alone, on the backbone as it is.
        epochs: Passes over the training images.
        batch_size: Images a step; those left over in an epoch sit out.
        lr: Learning rate of the head.
        layer_decay: Factor from the learning rate of a layer of the backbone to that of the one before it.
        warmup_share: Share of the steps over which the learning rate rises.
        warmup_lr: Where it rises from.
        min_lr: Where it falls to.
        power: Of the polynomial by which it falls; 1 is a straight line.
        weight_decay: Of AdamW; none of biases, norms, tokens and positions.
        drop_path: Rate of the backbone's last block; 0 where it is frozen.
        resize: Shorter side of an image in training, before it is scaled, and in testing, in pixels; 0 leaves it.
        scale: Range of the random factor by which a training image is scaled.
        crop: Side of the square training crops and test windows in pixels; 0 for that of the network.
        most: Crops with a larger share of one class are drawn again, up to ten times; 1 for any crop.
        flip: Probability of a mirror image.
        jitter: Largest relative change of brightness, contrast and saturation, and ten times that of the hue in turns.
        stride: From one test window to the next, in pixels; 0 for two thirds of the window.
        whole: Test on whole images in place of windows.
        test_scales: Test on images scaled by these factors, and average.
        test_flip: Average with the mirror image.
        seed: Of everything drawn.
    """

    head: str = "linear"
    taps: str = "all"
    channels: int = 128
    auxiliary: float = 0.4
    frozen: bool = True
    epochs: int = 30
    batch_size: int = 8
    lr: float = 2e-3
    layer_decay: float = 1.0
    warmup_share: float = 0.05
    warmup_lr: float = 1e-6
    min_lr: float = 0.0
    power: float = 1.0
    weight_decay: float = 0.05
    drop_path: float = 0.0
    resize: int = 0
    scale: tuple[float, float] = (0.5, 2.0)
    crop: int = 0
    most: float = 0.75
    flip: float = 0.5
    jitter: float = 0.4
    stride: int = 0
    whole: bool = False
    test_scales: tuple[float, ...] = (1.0,)
    test_flip: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise UserError(f"--head is one of {', '.join(HEADS)}, got {self.head!r}.")
        if self.taps not in TAPS:
            raise UserError(f"--taps is one of {', '.join(TAPS)}, got {self.taps!r}.")
        self._check_numbers()
        self._check_ranges()
        if self.head == "upernet" and self.batch_size < 2:
            raise UserError("An UperNet head has BatchNorm on pooled maps: --batch-size must be at least 2, got 1.")
        if self.frozen and self.drop_path:
            raise UserError(f"A frozen backbone drops no paths, got --drop-path {self.drop_path}. Add --no-frozen.")
        if self.whole and self.stride:
            raise UserError(f"Whole images have no windows, got --whole and --stride {self.stride}. Leave out one.")

    def _check_numbers(self) -> None:
        check_counts({"epochs": self.epochs, "batch-size": self.batch_size, "channels": self.channels})
        check_positive({"lr": self.lr, "power": self.power})
        least = {
            "auxiliary": self.auxiliary,
            "warmup-lr": self.warmup_lr,
            "min-lr": self.min_lr,
            "weight-decay": self.weight_decay,
            "resize": self.resize,
            "crop": self.crop,
            "stride": self.stride,
            "seed": self.seed,
        }
        check_not_negative(least)

    def _check_ranges(self) -> None:
        shares = {"warmup-share": self.warmup_share, "flip": self.flip, "drop-path": self.drop_path, "most": self.most}
        check_shares(shares, whole=("flip", "most"))
        if not 0 <= self.jitter <= 1:
            raise UserError(f"--jitter lies between 0 and 1, got {self.jitter}. Usual are 0 to 0.5.")
        check_layer_decay(self.layer_decay)
        if not 0 < self.scale[0] <= self.scale[1] <= 10:
            raise UserError(f"--scale takes the least and the greatest factor, got {self.scale}. Usual are 0.5 2.")
        if not self.test_scales or not all(0 < scale <= 10 for scale in self.test_scales):
            raise UserError(f"--test-scales takes factors such as 0.75 1 1.25, got {self.test_scales}.")


_ADE20K = Segmentation(
    epochs=127,  # 160,000 steps of 16 of the 20,210 training images
    batch_size=16,
    warmup_share=1500 / 160_000,
    resize=512,
    crop=512,
    jitter=0.5,
    stride=341,
)
_UPERNET = replace(_ADE20K, head="upernet", frozen=False)
PRESETS: Mapping[str, Segmentation] = MappingProxyType(
    {
        "small-data": Segmentation(),
        "small-data-finetune": Segmentation(frozen=False, lr=5e-4, layer_decay=0.75, drop_path=0.1),
        "small-data-upernet": Segmentation(head="upernet", frozen=False, lr=5e-4, layer_decay=0.75, drop_path=0.1),
        "ade20k-linear-vit-s": replace(_ADE20K, lr=3e-5),
        "ade20k-linear-vit-b": replace(_ADE20K, lr=7e-4),
        "ade20k-upernet-vit-s": replace(_UPERNET, channels=384, lr=6e-5, layer_decay=0.8, drop_path=0.1),
        "ade20k-upernet-vit-b": replace(_UPERNET, channels=768, lr=4e-5, layer_decay=0.9, drop_path=0.15, min_lr=1e-7),
    }
)
"""All settings by name. Batches are those of the eight GPUs of the published trainings together."""
