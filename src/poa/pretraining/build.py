"""From settings to the parts of a training: the only place where they are taken apart."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from poa import distributed
from poa.config.pretraining import SELF_DISTILLED, SLIMMABLE, Config, ViewSettings
from poa.data.index import ImageIndex
from poa.data.loader import CropSchedule
from poa.data.sampler import steps_per_epoch
from poa.errors import UserError
from poa.families.base import Family
from poa.machine.launchers import cores_of
from poa.machine.precision import gains_by_bf16
from poa.methods.base import Method
from poa.models.init import LoadReport, start_from
from poa.models.registry import family_of
from poa.models.teacher import teacher_of
from poa.pretraining.crops import crops_of
from poa.pretraining.gradients import GradientDiagnosis
from poa.pretraining.memory import check_memory
from poa.pretraining.method import method_of
from poa.pretraining.schedule import Subnets, schedules_of, subnets_of
from poa.pretraining.stem import whiten_stem
from poa.training.optimizer import OPTIMIZERS, norm_parameters, parameter_groups
from poa.training.schedules import Schedules


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
        warning: Of the memory that images take, if it may be too little.
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
    warning: str | None


def assemble(config: Config, index: ImageIndex, *, device: torch.device, fresh: bool = True) -> Parts:
    """Build everything a run needs, freshly initialised from its seed.

    A fresh run may start from trained weights; one that is resumed has its weights in a checkpoint.

    Raises:
        UserError: Settings do not fit the images or the device, or trained weights do not fit the network.
    """
    views, every = config.views, config.monitor.gradients_every
    dtype = precision_of(config, device)
    family = suited(family_of(config), dtype, device)
    warning = check_memory(config, family, device, dtype)
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
        warning=warning,
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
    return torch.bfloat16 if device.type == "cpu" and gains_by_bf16(device) else torch.float32


def suited(family: Family, dtype: torch.dtype, device: torch.device) -> Family:
    """The family with layers that suit bf16 on the CPU (ADR 0009).

    There the fused attention kernel is several times slower in bf16 than matrix products and a softmax, and without
    fast bf16 linear layers are faster in fp32.
    """
    if device.type != "cpu" or dtype != torch.bfloat16:
        return family
    return replace(family, fused_attention=False, wide_products=not gains_by_bf16(device))


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
