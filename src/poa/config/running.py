"""Settings of how a pre-training is optimised, saved and watched. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field

from poa.config.values import Count, NotNegative, Positive, Settings, Share, ShareAboveZero, Sources


class OptimizerSettings(Settings):
    """The optimiser, its schedules, and the teacher's momentum."""

    kind: Literal["adamw", "sgd", "lars"] = "adamw"
    """AdamW, SGD with momentum 0.9, or LARS with momentum 0.9."""
    decay_all: bool = False
    """Weight decay also for biases and norms (LARS never does)."""
    restart_lr: Positive | None = None
    """Replaces base_lr after the slow start of slimclr-...; the batch size and --lr scale it as they scale base_lr."""
    base_lr: Positive = 0.004
    """Peak learning rate at batch size 1024; scaled by the square root of the batch size."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up: cosine, a fall to the end; or constant, then a cool-down in the last cooldown_epochs.
    A constant run can be made longer: --resume --epochs MORE."""
    final_lr: NotNegative = 2e-5
    """Learning rate at the end of the cosine or of the cool-down."""
    warmup_epochs: NotNegative = 10.0
    """Linear warm-up of the learning rate."""
    backbone_warmup_epochs: NotNegative = 0.0
    """Epochs in which the backbone's learning rate rises from 0 to that of the heads, besides the warm-up of both: for
    trained weights, which fresh heads harm at first."""
    cooldown_epochs: NotNegative | None = None
    """Length of the cool-down at the end; by default a fifth of the epochs (schedule constant)."""
    weight_decay: tuple[NotNegative, NotNegative] = (0.04, 0.4)
    """Weight decay at the start and at the end; with schedule constant it changes in the cool-down only."""
    teacher_momentum: tuple[Share, Share] = (0.992, 0.9999)
    """Momentum of the teacher at the start and at the end; with schedule constant it changes in the cool-down only."""
    layer_decay: Positive = 0.9
    """Factor on the learning rate from one block to the one before it."""
    patch_embed_multiplier: Positive = 0.2
    """Further factor on the learning rate of the patch embedding."""
    freeze_last_layer_epochs: NotNegative = 1.0
    """Epochs in which the prototypes are frozen."""
    clip: Annotated[float, Field(gt=0.0)] = 1.5
    """Largest gradient norm, for backbone and heads each; inf for no clipping."""
    cosine_stretch: ShareAboveZero = 1.0
    """Below 1 the run ends before the cosine does (0.78 in the published ViT run)."""


class SavingSettings(Settings):
    """Checkpoints."""

    every_epochs: Positive = 1.0
    """How often to save."""
    keep_last: Count = 2
    """How many of the newest checkpoints to keep, besides the best and the last one before a cool-down."""
    keep_every_epochs: Positive | None = None
    """Also keep one checkpoint every so many epochs."""


class MonitorSettings(Settings):
    """Checks while training."""

    every_epochs: Positive = 1.0
    """How often the teacher's features are checked for collapse and sizes are scored."""
    data: Sources | None = None
    """Labelled images for k-NN scores of the smallest, middle and largest size; not needed for training."""
    num_images: Annotated[int, Field(ge=2)] = 2048
    """Largest number of images used for these scores."""
    patience: Count | None = None
    """Stop when the mean of the k-NN scores (--monitor.data) has not risen in so many checks in a row."""
    gradients_every: Count | None = None
    """Log gradient norms over the weights that each width uses every so many steps; `poa gradients` plots them."""
    tensorboard: bool = False
    """The same as --log tensorboard."""
