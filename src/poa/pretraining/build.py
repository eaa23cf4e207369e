"""From settings to parts: the only place where a configuration is taken apart."""

import os
from collections.abc import Callable
from functools import partial

import torch

from poa.config.pretraining import Config
from poa.data.masks import Masking
from poa.errors import UserError
from poa.families.base import Family
from poa.training.schedules import Schedules, cosine, linear_ramp, scaled_lr, switched


def precision_of(config: Config, device: torch.device) -> torch.dtype:
    """Precision of the backbones' forward pass.

    ``auto`` is bf16 where the hardware multiplies it (GPUs from Ampere on, CPUs with AVX512-BF16 or AMX), else fp32.

    Raises:
        UserError: The precision does not exist on the device.
    """
    if config.precision == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 needs a GPU. Use bf16 or fp32 on the CPU.")
    named = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if config.precision != "auto":
        return named[config.precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if _cpu_multiplies_bf16() else torch.float32


def _cpu_multiplies_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("amx_tile"))


def workers_of(config: Config) -> int:
    """Loader processes: as asked for, else none for tiny images, and the cores that the training leaves otherwise."""
    if config.workers is not None:
        return config.workers
    if config.views.global_size < 96 and not torch.cuda.is_available():
        return 0
    return max(1, min(12, (os.cpu_count() or 1) // config.devices - 1))


def masking_of(config: Config, family: Family) -> Masking:
    """How much of the global crops is hidden."""
    grid = family.mask_grid(config.views.global_size)
    return Masking(grid=grid, share=config.views.mask_share, ratio=config.views.mask_ratio)


def schedules_of(config: Config, *, steps_per_epoch: int) -> Schedules:
    """All values that change from step to step."""
    settings, num_steps = config.optimizer, config.epochs * steps_per_epoch

    def steps(epochs: float) -> int:
        return round(epochs * steps_per_epoch)

    def curve(base: float, final: float, *, warmup_epochs: float = 0.0) -> Callable[[int], float]:
        return partial(
            cosine,
            base=base,
            final=final,
            num_steps=num_steps,
            warmup_steps=steps(warmup_epochs),
            stretch=settings.cosine_stretch,
        )

    start, end = config.losses.teacher_temperature
    ramp = steps(config.losses.teacher_temperature_epochs)
    lr = curve(peak_lr(config), settings.final_lr, warmup_epochs=settings.warmup_epochs)
    if settings.restart_lr is not None:
        after = curve(settings.restart_lr, settings.final_lr, warmup_epochs=settings.warmup_epochs)
        lr = partial(switched, before=lr, after=after, at=slow_start_steps(config, steps_per_epoch=steps_per_epoch))
    return Schedules(
        lr=lr,
        weight_decay=curve(*settings.weight_decay),
        momentum=curve(*settings.teacher_momentum),
        temperature=partial(linear_ramp, start=start, end=end, num_steps=ramp),
        frozen_steps=steps(settings.freeze_last_layer_epochs),
    )


def slow_start_steps(config: Config, *, steps_per_epoch: int) -> int:
    """Steps in which the full width of a slimmable network learns alone."""
    epochs = config.slim.slow_start_epochs
    return round((config.epochs / 2 if epochs is None else epochs) * steps_per_epoch)


def peak_lr(config: Config) -> float:
    """The learning rate after warm-up."""
    return config.lr or scaled_lr(config.optimizer.base_lr, batch_size=config.batch_size)
