"""Settings of a pre-training. Imports no torch."""

from itertools import pairwise
from typing import Annotated, Literal

from cyclopts import Group, Parameter
from pydantic import AfterValidator, BeforeValidator, Field

from poa.config.channels import Values
from poa.config.network import HeadSettings, ModelSettings
from poa.config.running import MonitorSettings, OptimizerSettings, SavingSettings
from poa.config.values import (
    AreaRange,
    Ascending,
    Count,
    Finite,
    Natural,
    NotNegative,
    Pixels,
    Positive,
    Seed,
    Settings,
    Share,
    ShareBelowOne,
    Sources,
)
from poa.errors import UserError


def _odd(number: int) -> int:
    if number % 2 == 0:
        raise ValueError("it should be odd")
    return number


_one = BeforeValidator(lambda x: (x,) if isinstance(x, str) else x)
SLIMMABLE = ("slimclr-simclr", "slimclr-mocov2", "slimclr-mocov3")
"""Methods for networks with BatchNorm, which every size has for itself."""
SELF_DISTILLED = ("poa", "single")
"""Methods whose heads have prototypes and whose teacher follows the student and is exported."""
ELASTIC = ("poa", "distill", "own", *SLIMMABLE)
"""Methods that train all sizes of the search space; the others train its largest alone."""
INITIAL = "init"
"""The frozen teacher that is the network of the run with the weights it starts from."""
FURTHER = Parameter(group=Group("Machine and data", sort_key=1))
"""Panel of ``--help`` for settings that few runs need."""


def _section(name: str, *, place: int) -> Parameter:
    return Parameter(group=Group(name, sort_key=1 + place))


class ViewSettings(Settings):
    """Crops, colour augmentation and masks of a training image."""

    global_size: Pixels = 224
    """Side of a global crop, in pixels; also the image size of the networks."""
    global_scale: AreaRange = (0.32, 1.0)
    """Range of a global crop's share of the image area."""
    small_size: Pixels | None = None
    """Side of the global crops in the first small_epochs, in pixels: steps on smaller crops cost less. What a recipe
    has follows --views.global-size."""
    small_epochs: NotNegative = 0.0
    """Epochs at the start with global crops of small_size."""
    local_size: Pixels = 96
    """Side of a local crop, in pixels. What a recipe has follows --views.global-size, unless --model names another
    network."""
    local_scale: AreaRange = (0.05, 0.32)
    """Range of a local crop's share of the image area."""
    num_locals: Natural = 8
    """Local crops per image."""
    full_decode: bool = False
    """Decode large JPEG photographs whole, as earlier versions did. Otherwise those with far more pixels than crops
    need (12 million with the usual crops) are decoded at half their sides, or at a quarter."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    jitter: tuple[Share, Share, Share, Annotated[float, Field(ge=0.0, le=0.5)]] = (0.4, 0.4, 0.2, 0.1)
    """Strength of brightness, contrast, saturation and hue jitter."""
    jitter_probability: Share = 0.8
    """Probability of colour jitter."""
    grey_probability: Share = 0.2
    """Probability of conversion to grey."""
    blur_probabilities: tuple[Share, Share, Share] = (0.0, 0.9, 0.5)
    """Probability of blur for the first global, the second global and the local crops. The default is that of the
    official code, which inverts the nominal probabilities by a mistake inherited from DINOv2; the paper: 1.0, 0.1,
    0.5."""
    blur_kernel: Annotated[Count, AfterValidator(_odd)] = 9
    """Side of the blur kernel, in pixels; odd."""
    solarize_probability: Share = 0.2
    """Probability of solarisation of the second global crop."""
    mean: Annotated[tuple[Finite, ...], Field(min_length=1)] = (0.485, 0.456, 0.406)
    """Mean of the channels, of values in 0..1; measured on some of the images where --channels is not 3."""
    std: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.229, 0.224, 0.225)
    """Standard deviation of the channels."""
    mask_share: Share = 0.5
    """Share of the global crops that get a mask."""
    mask_ratio: tuple[Share, Share] = (0.1, 0.5)
    """Range of the share of patches hidden in a masked crop."""
    drop_patches: ShareBelowOne = 0.0
    """Share of the patches of each global crop that the students do not compute at all, chosen by chance, in the place
    of masks (ViT); needs --losses.ibot 0."""
    own: str = ""
    """A function of your own that changes crops, as MODULE:FUNCTION; CONTRIBUTING.md has an example."""

    @property
    def crop_sizes(self) -> tuple[int, ...]:
        """Side of each crop of an image: two global, then the local ones."""
        return (self.global_size,) * 2 + (self.local_size,) * self.num_locals

    @property
    def crop_scales(self) -> tuple[tuple[float, float], ...]:
        """Range of areas of each crop, in the same order."""
        return (self.global_scale,) * 2 + (self.local_scale,) * self.num_locals

    @property
    def first_size(self) -> int:
        """Side of the global crops with which training begins."""
        return (self.small_size if self.small_epochs else None) or self.global_size

    def check(self) -> None:
        """See that small crops have a size of their own, and that the blur's kernel fits into each crop."""
        if self.small_epochs and not 0 < (self.small_size or 0) < self.global_size:
            raise UserError(
                f"--views.small-epochs {self.small_epochs:g} needs a --views.small-size below --views.global-size "
                f"{self.global_size}, got {self.small_size}. Set it, or --views.small-epochs 0 for no small crops."
            )
        smallest = min(*self.crop_sizes, self.first_size)
        if self.blur_kernel > smallest:
            raise UserError(
                f"A blur kernel of {self.blur_kernel} pixels is larger than a crop of {smallest}. "
                "Lower --views.blur-kernel or raise the crop size."
            )


class LossSettings(Settings):
    """The terms of the loss and their weights."""

    kind: Literal["prototypes", "coding-rate", "own"] = "prototypes"
    """How outputs are compared: by distributions over prototypes, as published; by cosines, with the coding rate of a
    batch to keep images apart (SimDINO), without prototypes, temperatures or centring; or as --losses.own says."""
    own: str = ""
    """A loss of your own, as MODULE:CLASS (kind own); CONTRIBUTING.md has an example."""
    variant: Literal["code", "paper"] = "code"
    """Weights as in the official code or as printed in the paper; docs/faithfulness.md lists the differences."""
    intact_share: Share = 0.8
    """Weight lambda of the intact student against the elastic one."""
    ibot: NotNegative = 1.0
    """Weight of the masked-patch term."""
    ibot_start_epoch: NotNegative = 30.0
    """Epoch from which patches are masked."""
    koleo: NotNegative = 0.1
    """Weight of the KoLeo term, which spreads features out; without it small runs collapse."""
    koleo_over_ranks: bool = False
    """Search nearest neighbours for KoLeo among the images of all processes."""
    gram: NotNegative = 0.0
    """Weight of the Gram term: which patches of a crop are alike for a student shall be alike for the moving teacher,
    whatever their widths (DINOv3's Gram anchoring; poa and single)."""
    student_temperature: Positive = 0.1
    """Temperature of the students."""
    teacher_temperature: tuple[Positive, Positive] = (0.04, 0.07)
    """Temperature of the teacher at the start and after its ramp."""
    teacher_temperature_epochs: NotNegative = 30.0
    """Length of the ramp of the teacher's temperature."""
    centering: Literal["sinkhorn", "moving-average"] = "sinkhorn"
    """How outputs of the teacher become targets."""
    rate: NotNegative = 1.0
    """Weight of the coding rate (kind coding-rate)."""
    distortion: Positive = 0.05
    """Squared distance within which the coding rate counts outputs as the same (kind coding-rate)."""


class DistillSettings(Settings):
    """A frozen teacher: the only one (methods distill and seed), or one beside the moving one (poa and single)."""

    teacher: str = ""
    """The frozen teacher: the folder of a run (its intact network), one of its checkpoints (step-....pt), a folder that
    timm loads, or a timm name; or `init`, the network of --init as it was."""
    teacher_size: Pixels | None = None
    """Side of the crops that the teacher sees, in pixels; they are resized to it. By default it sees them as they
    are."""
    weight: tuple[NotNegative, NotNegative] = (1.0, 1.0)
    """Weight of a frozen teacher beside the moving one, at the start and at the end of the run (poa and single)."""
    patch_weight: NotNegative = 1.0
    """Weight of the teacher's patch features against its pooled ones (all but seed); 0 for none."""
    smooth_l1: Share = 0.1
    """Share of smooth L1 in the distance from the teacher's features; the rest is cosine distance (all but seed)."""
    queue: Count = 65536
    """Number of teacher embeddings in the queue that views are compared with; a multiple of the images per pass. For
    small data, about the size of the data set (seed)."""
    student_temperature: Positive = 0.2
    """Temperature of the student's similarities (seed)."""
    teacher_temperature: Positive = 0.01
    """Temperature of the teacher's similarities (seed)."""
    local_weight: NotNegative = 1.0
    """Weight of the local crops' term: with a queue of its own (seed), or learning the pooled features of the image's
    global crops (all others); 0 for none."""


class SlimSettings(Settings):
    """Slimmable networks, trained by contrast (methods slimclr-...)."""

    slow_start_epochs: NotNegative | None = None
    """Epochs in which only the full width is trained; by default half of all, 0 for none."""
    weighting: Literal["even", "share", "width", "scaled-width", "full", "cumulative", "full-next"] = "full"
    """How the losses of the widths are weighted; docs/slimmable.md has the formulas."""
    distillation: Literal["soft", "kl", "mse", "atkd", "dkd"] | None = "soft"
    """Online distillation from the full width to the others; none for no distillation."""
    distillation_share: Share = 0.5
    """Weight of distillation in the loss of a width; the contrastive loss has the rest."""
    distillation_temperature: Positive | None = None
    """Temperature of distillation; by default 5 for soft cross-entropy (1 with MoCo v3), otherwise as published."""
    temperature: Positive | None = None
    """Temperature of the contrastive loss; by default 0.1 (SimCLR), 0.2 (MoCo v2) or 1 (MoCo v3)."""
    head_norm: bool = False
    """BatchNorm in the head of MoCo v2, which is then that of SimCLR; small data are hardly learned without it."""
    hidden: Count | None = None
    """Hidden width of projection and prediction at full width; by default 2048 (SimCLR; MoCo v2 with BatchNorm in its
    head) or 4096 (MoCo v3)."""
    dim: Count | None = None
    """Width of embeddings; by default 128, and 256 for MoCo v3."""
    queue: Count = 65536
    """Number of keys in the queue of MoCo v2; a multiple of the images per pass."""


class EvaluationSettings(Settings):
    """Preprocessing of images for scoring."""

    resize: Count | None = None
    """Shorter side after resizing, before the centre crop to the global size; by default 8/7 of it from 96 pixels on,
    the global size itself below."""


class Config(Settings):
    """Everything that makes a run."""

    data: Sources = ""
    """Images: a folder, a list (txt, csv), a zip or tar (or a folder in it: a.zip/train), tars ('{00..99}.tar'),
    Parquet, `digits`; or several of these."""
    out: Annotated[str, Parameter(show_default=False)] = ""
    """Folder of the run; must be new, or hold the run to resume with --resume."""
    method: Literal["poa", "single", "distill", "seed", "slimclr-simclr", "slimclr-mocov2", "slimclr-mocov3", "own"] = (
        "poa"
    )
    """poa trains all sizes at once; distill trains them to predict a frozen teacher's features; single trains only the
    largest, as DINOv2 does; seed distils a teacher into it; slimclr-... trains all widths of a slimmable ResNet by
    contrastive learning; own is the one that --own names."""
    epochs: Count = 346
    """Passes over the images."""
    batch_size: Count = 1600
    """Images per step, over all devices and accumulated micro-batches."""
    lr: Positive | None = None
    """Peak learning rate; by default derived from optimizer.base_lr and the batch size."""
    devices: Count | None = None
    """Processes on this machine, one per device; by default all GPUs over which the batch can be divided."""
    parallel: Annotated[Literal["auto", "ddp", "fsdp"], FURTHER] = "auto"
    """What processes share: fsdp leaves a part of the weights, gradients, teacher and optimizer on each, for networks
    that one GPU has too little memory for; ddp keeps all on each, as does auto."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the backbones' forward pass, and with bf16 that of products in heads over prototypes where the
    device gains by it; losses are always fp32."""
    seed: Seed = 0
    """Seed of everything random."""
    init: str | None = None
    """Trained weights to start from: a folder that timm loads, the folder of a run, one of its checkpoints
    (step-....pt), a file of weights (.safetensors, .pth, .pt, .bin, .ckpt, .pth.tar), or a timm name such as
    vit_small_patch14_dinov2.lvd142m. Without --model NAME the network is theirs; a file needs it."""
    accumulate: Annotated[Count, FURTHER] = 1
    """Micro-batches per step; Sinkhorn-Knopp and KoLeo see one micro-batch at a time."""
    checkpointing: Annotated[bool, FURTHER] = False
    """Recompute students' blocks and heads in the backward pass: less memory, more time."""
    compile: Annotated[bool, FURTHER] = False
    """Compile the backbones' blocks."""
    elastic_samples: Annotated[Count, FURTHER] = 1
    """Sizes trained per step on each process. The published run had 32 processes, hence 32 sizes per step."""
    sampling: Annotated[Literal["published", "sandwich", "widening"], FURTHER] = "published"
    """Which sizes a step trains: published, by chance, small ones more often; sandwich, the smallest at every step too,
    each size taught by the next larger one of the step; widening, first sizes next to the largest, all from the middle
    of the run on, for runs with --init."""
    same_sizes_on_all_ranks: Annotated[bool, FURTHER] = False
    """Train the same sizes on all processes at each step."""
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], FURTHER] = "auto"
    """Kind of device: by default a GPU (cuda, or mps on a Mac) where PyTorch finds one."""
    num_nodes: Annotated[Count, FURTHER] = 1
    """Number of machines; a run on several is started by srun or torchrun, which say how many there are."""
    workers: Annotated[Natural | None, FURTHER] = None
    """Loader processes on each device; by default chosen from the cores and the image size."""
    channels: Annotated[Annotated[int, Field(ge=1, le=1000)] | None, FURTHER] = None
    """Channels of the images, which then keep all their bits (16 bits, floats; PNG, TIFF, NumPy, DICOM); by default all
    images become 8-bit RGB."""
    value_range: Annotated[Annotated[tuple[Finite, Finite], Ascending] | None, FURTHER] = None
    """Stored values that become 0 and 1, with --channels; by default those of unsigned integers, and 0 and 1 of
    floats."""
    limit: Annotated[Count | None, FURTHER] = None
    """Use only so many images, balanced over classes."""
    max_bad_share: Annotated[Share, FURTHER] = 0.01
    """Stop when more than this share of the images cannot be read; one may always be bad, unless this is 0."""
    own: Annotated[str, FURTHER, Parameter(show_default=False)] = ""
    """A method of your own, as MODULE:CLASS (method own); CONTRIBUTING.md has an example."""
    log: Annotated[
        tuple[Literal["tensorboard", "wandb", "mlflow"], ...], _one, FURTHER, Parameter(show_default=False)
    ] = ()
    """Loggers that the numbers of metrics.jsonl go to as well: TensorBoard, Weights & Biases (offline), MLflow (in a
    folder of the run)."""
    model: Annotated[ModelSettings, _section("Model", place=1)] = ModelSettings()
    heads: Annotated[HeadSettings, _section("Heads", place=2)] = HeadSettings()
    views: Annotated[ViewSettings, _section("Views", place=3)] = ViewSettings()
    losses: Annotated[LossSettings, _section("Losses", place=4)] = LossSettings()
    distill: Annotated[DistillSettings, _section("Distillation", place=5)] = DistillSettings()
    slim: Annotated[SlimSettings, _section("SlimCLR", place=6)] = SlimSettings()
    optimizer: Annotated[OptimizerSettings, _section("Optimizer", place=7)] = OptimizerSettings()
    saving: Annotated[SavingSettings, _section("Saving", place=8)] = SavingSettings()
    monitor: Annotated[MonitorSettings, _section("Monitor", place=9)] = MonitorSettings()
    evaluation: Annotated[EvaluationSettings, _section("Evaluation", place=10)] = EvaluationSettings()

    @property
    def values(self) -> Values:
        """Which channels and bits of image files the network sees."""
        return Values(self.channels, self.value_range)

    @property
    def processes(self) -> int:
        """Of the whole run, over all machines."""
        return (self.devices or 1) * self.num_nodes

    @property
    def trackers(self) -> tuple[str, ...]:
        """Loggers of other packages, each once."""
        older = ("tensorboard",) if self.monitor.tensorboard else ()
        return tuple(dict.fromkeys((*older, *self.log)))

    @property
    def exported_branch(self) -> str:
        """Branch of the method whose backbone is scored and exported."""
        return "teacher" if self.method in SELF_DISTILLED else "student"

    def head_weights(self, width: int) -> int:
        """Weights of all projection heads for features of a width, with their prototypes, if there are any."""
        heads = self.heads
        widths = [width, *[heads.hidden] * (heads.layers - 1), heads.bottleneck]
        mlp = sum(first * second for first, second in pairwise(widths))
        prototypes = heads.prototypes if self.losses.kind == "prototypes" else (0,)
        return sum(mlp + heads.bottleneck * number for number in prototypes)

    @property
    def scoring_resize(self) -> int:
        """Shorter side of an image before the centre crop for scoring, in pixels (256 for 224, as published)."""
        size = self.views.global_size
        return self.evaluation.resize or (round(size * 8 / 7) if size >= 96 else size)
