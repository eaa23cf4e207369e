"""From settings to the parts of a training: the only place where they are taken apart."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from poa import distributed
from poa.config.own import own_class
from poa.config.pretraining import SELF_DISTILLED, SLIMMABLE, Config, ViewSettings
from poa.data.index import ImageIndex
from poa.data.loader import CropSchedule
from poa.data.sampler import steps_per_epoch
from poa.errors import UserError, counted
from poa.families.base import Family
from poa.families.slim_resnet import SlimResNet
from poa.machine.launchers import cores_of
from poa.methods.base import Method
from poa.methods.contrast import MoCoV2, MoCoV3, SimCLR
from poa.methods.distill import Distill
from poa.methods.poa import POA
from poa.methods.seed import SEED
from poa.methods.taught import TaughtPOA
from poa.models.init import LoadReport, start_from
from poa.models.registry import drop_path_of, family_of
from poa.models.teacher import Teacher, teacher_of
from poa.pretraining.crops import crops_of
from poa.pretraining.gradients import GradientDiagnosis
from poa.pretraining.memory import check_memory
from poa.pretraining.schedule import Subnets, peak_lr, schedules_of, subnets_of
from poa.pretraining.stem import whiten_stem
from poa.training.optimizer import OPTIMIZERS, norm_parameters, parameter_groups
from poa.training.schedules import Schedules

SLIMCLR: Mapping[str, type[SimCLR | MoCoV2 | MoCoV3]] = {
    "slimclr-simclr": SimCLR,
    "slimclr-mocov2": MoCoV2,
    "slimclr-mocov3": MoCoV3,
}
MANY_PIXELS = 256 * 224**2
"""Of global crops in a pass, above which the memory of a CPU may be too small for common networks."""


@dataclass(frozen=True)
class Parts:
    """All that a step works on, on this process.

    Attributes:
        wrapped: The method, wrapped for data parallelism.
        scaler: Of fp16 gradients; does nothing in other precisions.
        dtype: Precision of the backbones.
        ibot_start: First step with masks.
        clip: Largest gradient norm of backbone and heads each.
        gradients: How gradients are measured by width, if they are.
        report: What became of the trained weights that the run starts from, if there are any.
    """

    family: Family
    method: Method
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    schedules: Schedules
    subnets: Subnets
    views: ViewSettings
    crops: CropSchedule
    dtype: torch.dtype
    device: torch.device
    steps_per_epoch: int
    ibot_start: int
    clip: float
    seed: int
    gradients: GradientDiagnosis | None
    report: LoadReport | None


def assemble(config: Config, index: ImageIndex, *, device: torch.device, fresh: bool = True) -> Parts:
    """Build everything a run needs, freshly initialised from its seed.

    A fresh run may start from trained weights; one that is resumed has its weights in a checkpoint.

    Raises:
        UserError: Settings do not fit the images or the device, or trained weights do not fit the network.
    """
    views, every = config.views, config.monitor.gradients_every
    dtype = precision_of(config, device)
    family = suited(family_of(config), dtype, device)
    check_memory(config, family, device)
    epoch = steps_per_epoch(len(index), config.batch_size)
    torch.manual_seed(config.seed)
    beside = config.method in SELF_DISTILLED and config.distill.teacher
    teacher = teacher_of(config, family) if beside or config.method in ("distill", "seed") else None
    method = method_of(config, family, teacher=teacher)
    report, backbones = None, dict.fromkeys(branch.backbone for branch in (method.student, method.exported))
    if fresh and config.init is None and config.model.stem_init == "whitening":
        whiten_stem(backbones, config, index)
    if fresh and config.init is not None:
        if teacher is not None and teacher.initial is not None:
            backbones[teacher.initial] = None
        report = start_from(config.init, *backbones, normalisation=(views.mean, views.std))
    method = method.to(device).train()
    wrapped = in_parallel(method, config, device=device)
    groups = parameter_groups(  # of the parts that this process has
        method.student.named_parameters(),
        layer_of=family.layer,
        num_layers=family.num_layers,
        layer_decay=config.optimizer.layer_decay,
        patch_embed_multiplier=config.optimizer.patch_embed_multiplier,
        norms=norm_parameters(method.student),
        decay_all=config.optimizer.decay_all,
        backbone_warms_up=config.optimizer.backbone_warmup_epochs > 0,
    )
    return Parts(
        family=family,
        method=method,
        wrapped=wrapped,
        optimizer=OPTIMIZERS[config.optimizer.kind](groups),
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        schedules=schedules_of(config, steps_per_epoch=epoch),
        subnets=subnets_of(config, family, steps_per_epoch=epoch),
        views=views,
        crops=crops_of(config, family, steps_per_epoch=epoch),
        dtype=dtype,
        device=device,
        steps_per_epoch=epoch,
        ibot_start=round(config.losses.ibot_start_epoch * epoch),
        clip=config.optimizer.clip,
        seed=config.seed,
        gradients=None if every is None else GradientDiagnosis.of(family, every=every),
        report=report,
    )


# ---- machine ---------------------------------------------------------------------------------------------------------


def precision_of(config: Config, device: torch.device) -> torch.dtype:
    """Precision of the backbones; ``auto`` is bf16 where the hardware gains by it, else fp16 with CUDA, else fp32."""
    if config.precision == "fp16" and device.type != "cuda":
        raise UserError("--precision fp16 needs a GPU with CUDA. Use bf16 or fp32.")
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if config.precision != "auto":
        return named[config.precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and gains_by_bf16(torch.cpu.get_capabilities()) else torch.float32


def gains_by_bf16(capabilities: Mapping[str, Any]) -> bool:
    """Whether a CPU trains faster in bf16: with AMX, and with AVX512-BF16 on AMD's processors only (ADR 0009)."""
    is_amd = any(name in str(capabilities.get("cpu_name", "")) for name in ("AMD", "EPYC", "Ryzen"))
    with_amx = any(capabilities.get(name) for name in ("amx_bf16", "amx_tile"))
    return bool(with_amx or (is_amd and capabilities.get("avx512_bf16")))


def suited(family: Family, dtype: torch.dtype, device: torch.device) -> Family:
    """The family with layers that suit bf16 on the CPU (ADR 0009).

    There the fused attention kernel is several times slower in bf16 than matrix products and a softmax, and without
    fast bf16 linear layers are faster in fp32.
    """
    if device.type != "cpu" or dtype != torch.bfloat16:
        return family
    wide = not gains_by_bf16(torch.cpu.get_capabilities())
    return replace(family, fused_attention=False, wide_products=wide)


def workers_of(config: Config) -> int:
    """Loader processes: as set, else none for tiny images, and otherwise the cores that the training leaves."""
    if config.workers is not None:
        return config.workers
    if config.views.global_size < 96 and not torch.cuda.is_available():
        return 0
    return max(1, min(12, cores_of(config.devices or 1) - 1))


def in_parallel(method: Method, config: Config, *, device: torch.device) -> nn.Module:
    """The method, prepared for the other processes.

    Raises:
        UserError: Its networks cannot be shared among them.
    """
    is_slim = config.method in SLIMMABLE
    if config.parallel != "fsdp":
        return distributed.data_parallel(method, device=device, find_unused=is_slim)
    refused = {f"--method {config.method}": is_slim or config.method == "own", "--compile": config.compile}
    if wrong := [flag for flag, is_set in refused.items() if is_set]:
        raise UserError(f"--parallel fsdp does not support {' and '.join(wrong)}. Use --parallel ddp.")
    for branch in dict.fromkeys((method.student, method.exported)):
        distributed.shard(branch, branch.backbone.blocks, device=device)
    return method


# ---- the method ------------------------------------------------------------------------------------------------------


def method_of(config: Config, family: Family, *, teacher: Teacher | None = None) -> Method:
    """The method, with freshly initialised networks; distillation needs a frozen teacher.

    Raises:
        UserError: Method, network and batch do not fit together.
    """
    _check_own(config)
    is_slim = isinstance(family, SlimResNet)
    if is_slim != (config.method in SLIMMABLE):
        slim_only = "Add --model slim-resnet, or choose another method."
        remedy = f"Choose --method {' or '.join(SLIMMABLE)}, or another model." if is_slim else slim_only
        raise UserError(f"--method {config.method} cannot train a {type(family).__name__}. {remedy}")
    if config.compile:  # every width and crop size is a graph of its own, and past the limit torch runs without one
        widths = {size.width for size in family.space.sizes}
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 * len(widths))
    in_passes = {"checkpointing": config.checkpointing, "compile_blocks": config.compile}
    if is_slim:
        _check_slimmable(config)
        return SLIMCLR[config.method](family, config.slim, **in_passes)
    if config.optimizer.restart_lr is not None:
        raise UserError(
            f"--optimizer.restart-lr has no effect with --method {config.method}, which has no slow start. "
            "Leave it out."
        )
    if config.method == "own":
        own: Method = own_class(config.own, flag="--own", kind=Method)(family, config)
        return own
    students: dict[str, Any] = {"drop_path": drop_path_of(config.model), **in_passes}
    if config.method == "seed":
        assert teacher is not None
        _check_queue("--distill.queue", config.distill.queue, config)
        return SEED(family, teacher.network, width=teacher.width, distillation=config.distill, **students)
    students["taught_by_next"] = config.sampling == "sandwich"
    if teacher is not None:
        students |= {"widths": (teacher.width, teacher.patch_width), "distillation": config.distill}
        if config.method == "distill":
            inner: dict[str, Any] = {"hidden": config.heads.hidden, "intact_share": config.losses.intact_share}
            return Distill(family, teacher.network, **inner, **students)
    poa: dict[str, Any] = {"heads": config.heads, "losses": config.losses, "elastic": config.method == "poa"}
    return POA(family, **poa, **students) if teacher is None else TaughtPOA(family, teacher.network, **poa, **students)


def _check_own(config: Config) -> None:
    losses = config.losses
    if config.own and config.method != "own":
        raise UserError(f"--own {config.own} has no effect with --method {config.method}. Add --method own.")
    if losses.own and losses.kind != "own":
        raise UserError(
            f"--losses.own {losses.own} has no effect with --losses.kind {losses.kind}. Add --losses.kind own."
        )
    if losses.kind == "own" and config.method not in SELF_DISTILLED:
        raise UserError(
            f"--losses.kind own works with --method {' or '.join(SELF_DISTILLED)}, got {config.method}. Leave it out."
        )


def _check_slimmable(config: Config) -> None:
    refused = {
        "--views.num-locals": config.views.num_locals > 0,
        "--accumulate": config.accumulate > 1,
        "--init": config.init is not None,
        "--model.stem-init whitening": config.model.stem_init == "whitening",
        "--distill.teacher": bool(config.distill.teacher),
    }
    wrong = [flag for flag, is_set in refused.items() if is_set]
    if wrong:
        raise UserError(
            f"--method {config.method} does not support {', '.join(wrong)}. Leave out what is not supported."
        )
    processes = config.processes
    if config.batch_size // processes < 2:
        raise UserError(
            f"BatchNorm needs at least two images on each process, got --batch-size {config.batch_size} and "
            f"{processes} processes. Raise --batch-size."
        )
    if (config.slim.slow_start_epochs or 0) > config.epochs:
        raise UserError(
            f"--slim.slow-start-epochs {config.slim.slow_start_epochs} is more than the epochs of the run, "
            f"{config.epochs}. Lower it; half of the epochs is usual."
        )
    if config.method == "slimclr-mocov2":
        if config.slim.hidden is not None:
            raise UserError(
                "--slim.hidden has no effect on MoCo v2, whose head is as wide as its features. Leave it out."
            )
        _check_queue("--slim.queue", config.slim.queue, config)


def _check_queue(flag: str, length: int, config: Config) -> None:
    at_once = config.batch_size // config.accumulate
    if length % at_once:
        raise UserError(
            f"{flag} {length} is not a multiple of the images per pass, {at_once}. Set it to "
            f"{max(1, length // at_once) * at_once}, for example."
        )


# ---- what the user should know ---------------------------------------------------------------------------------------


def warnings_of(config: Config, *, num_images: int) -> list[str]:
    """Sentences about settings that are allowed but rarely right for so many epochs and images."""
    endless = list(_endless(config))
    short = f"With --epochs {config.epochs} {'; '.join(endless)}. Lower the settings in brackets, or raise --epochs."
    peak, final = peak_lr(config), config.optimizer.final_lr
    rising = f"The learning rate rises to the end, from {peak:.3g} to {final:.3g}. Lower --optimizer.final-lr."
    found = [*([short] if endless else []), *([rising] if final > peak else [])]
    return [*found, *_about_images(config, num_images=num_images)]


def _endless(config: Config) -> Iterator[str]:
    """What is counted in epochs from the start and does not end within the run."""
    losses, optimizer, epochs = config.losses, config.optimizer, config.epochs
    start, end = losses.teacher_temperature
    if optimizer.warmup_epochs >= epochs:
        yield f"the learning rate rises to the end (--optimizer.warmup-epochs {optimizer.warmup_epochs:g})"
    if optimizer.backbone_warmup_epochs >= epochs:
        rising = f"--optimizer.backbone-warmup-epochs {optimizer.backbone_warmup_epochs:g}"
        yield f"the backbone's learning rate rises to the end ({rising})"
    if config.views.small_epochs >= epochs:
        yield f"crops never have their full size (--views.small-epochs {config.views.small_epochs:g})"
    if config.method in SLIMMABLE and (config.slim.slow_start_epochs or 0) >= epochs:
        yield f"only the full width learns (--slim.slow-start-epochs {config.slim.slow_start_epochs:g})"
    if config.method not in SELF_DISTILLED:
        return
    if optimizer.freeze_last_layer_epochs >= epochs and losses.kind == "prototypes":
        yield f"prototypes never learn (--optimizer.freeze-last-layer-epochs {optimizer.freeze_last_layer_epochs:g})"
    if losses.teacher_temperature_epochs > epochs and start != end and losses.kind == "prototypes":
        ramp = f"--losses.teacher-temperature-epochs {losses.teacher_temperature_epochs:g}"
        yield f"the teacher's temperature does not reach {end:g} ({ramp})"
    if losses.ibot and losses.ibot_start_epoch >= epochs:
        yield f"no patches are ever masked (--losses.ibot-start-epoch {losses.ibot_start_epoch:g})"


def _about_images(config: Config, *, num_images: int) -> list[str]:
    queues = {"seed": ("--distill.queue", config.distill.queue), "slimclr-mocov2": ("--slim.queue", config.slim.queue)}
    if config.method in queues:
        flag, length = queues[config.method]
        repeated = (
            f"{flag} {length} is more than the number of images, so the queue holds images twice; lower it to at most"
        )
        return [f"{repeated} {num_images}."] if length > num_images else []
    if config.method not in SELF_DISTILLED or config.losses.kind != "prototypes":
        return []
    found = []
    most = max(config.heads.prototypes)
    # every image shows up in two global views; a prototype that never wins in an epoch is only noise in the targets
    if most > 2 * num_images:
        found.append(
            f"{most} prototypes are too many for {counted(num_images, 'image')}; set --heads.prototypes to at "
            f"most {2 ** int(math.log2(num_images))}, or start from a recipe for small data (`poa recipes`)."
        )
    per_pass = config.batch_size // config.accumulate
    if per_pass < 32 and config.losses.centering == "sinkhorn":
        found.append(
            f"Sinkhorn-Knopp sees only {counted(per_pass, 'image')} at a time; below 32 its targets are noisy."
        )
    if config.losses.koleo == 0:
        found.append("Without KoLeo (--losses.koleo 0) small runs can collapse while their loss looks normal.")
    return found


def memory_warning(config: Config) -> str | None:
    """A warning of runs on a CPU that take much memory, since the system ends them without a message."""
    processes, side = config.processes, config.views.global_size
    images = config.batch_size // (config.accumulate * processes)
    most = max(1, MANY_PIXELS // side**2)
    if distributed.this_device(config.device, float64=False).type != "cpu" or images <= most:
        return None
    of_process = config.batch_size // processes
    parts = next(parts for parts in range(1, of_process + 1) if of_process % parts == 0 and of_process // parts <= most)
    return (
        f"Passes of {images} images of {side} pixels on a CPU may need more memory than there is, and the system "
        f"may then kill the run without a message. Split them with --accumulate {parts}, lower --batch-size, or "
        "start from a recipe for small machines (`poa recipes`)."
    )
