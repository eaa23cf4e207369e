"""From settings to parts: the only place where a configuration is taken apart."""

import math
import os
from collections.abc import Callable
from functools import partial

import torch

from poa.config import Config
from poa.data.masks import Masking
from poa.data.views import Augmentation
from poa.errors import UserError
from poa.families.base import Family
from poa.methods.poa import POA, HeadSettings, LossSettings
from poa.networks import drop_path_of
from poa.training.schedules import Schedules, cosine, linear_ramp, scaled_lr


def device_of(config: Config) -> torch.device:
    """The device of this process.

    Raises:
        UserError: A GPU is asked for and there is none, or none for this process.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU here. Use --device cpu, or install a CUDA build of torch.")
    if config.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    place, available = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if place >= available:
        raise UserError(f"There are more processes than GPUs: {available}. Start at most {available} on this machine.")
    return torch.device("cuda", place)


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


def method_of(config: Config, family: Family) -> POA:
    """The method, with freshly initialised networks."""
    losses = config.losses
    if config.compile:  # every width and crop size is a graph of its own, and past the limit torch runs without one
        widths = {size.width for size in family.space.sizes}
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 * len(widths))
    return POA(
        family,
        heads=HeadSettings(config.heads.prototypes, config.heads.hidden, config.heads.bottleneck),
        losses=LossSettings(
            variant=losses.variant,
            intact_share=losses.intact_share,
            ibot=losses.ibot,
            koleo=losses.koleo,
            koleo_over_ranks=losses.koleo_over_ranks,
            student_temperature=losses.student_temperature,
            centering=losses.centering,
        ),
        drop_path=drop_path_of(config.model),
        checkpointing=config.checkpointing,
        compile_blocks=config.compile,
    )


def augmentation_of(config: Config) -> Augmentation:
    """How crops are made."""
    views = config.views
    return Augmentation(
        global_size=views.global_size,
        global_scale=views.global_scale,
        local_size=views.local_size,
        local_scale=views.local_scale,
        num_locals=views.num_locals,
        flip=views.flip,
        jitter=views.jitter,
        jitter_probability=views.jitter_probability,
        grey_probability=views.grey_probability,
        blur_probabilities=views.blur_probabilities,
        blur_kernel=views.blur_kernel,
        solarize_probability=views.solarize_probability,
        mean=views.mean,
        std=views.std,
    )


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
    return Schedules(
        lr=curve(peak_lr(config), settings.final_lr, warmup_epochs=settings.warmup_epochs),
        weight_decay=curve(*settings.weight_decay),
        momentum=curve(*settings.teacher_momentum),
        temperature=partial(linear_ramp, start=start, end=end, num_steps=ramp),
        frozen_steps=steps(settings.freeze_last_layer_epochs),
    )


def peak_lr(config: Config) -> float:
    """The learning rate after warm-up."""
    return config.lr or scaled_lr(config.optimizer.base_lr, batch_size=config.batch_size)


def scoring_resize(config: Config) -> int:
    """Shorter side of an image before the centre crop for scoring, in pixels (256 for 224, as published)."""
    size = config.views.global_size
    return config.evaluation.resize or (round(size * 8 / 7) if size >= 96 else size)


def crop_share(config: Config) -> float:
    """Share of the resized image that the centre crop keeps."""
    return config.views.global_size / scoring_resize(config)


def warnings_of(config: Config, *, num_images: int) -> list[str]:
    """What the user should know about settings that are allowed but rarely right.

    Args:
        config: Settings.
        num_images: Images in the data set.
    """
    said = []
    most = max(config.heads.prototypes)
    # every image shows up in two global views; a prototype that never wins in an epoch is only noise in the targets
    if most > 2 * num_images:
        said.append(
            f"{most} prototypes are more than {num_images} images can fill; "
            f"set --heads.prototypes to at most {2 ** int(math.log2(num_images))}."
        )
    per_pass = config.batch_size // config.accumulate
    if per_pass < 32:
        said.append(f"Sinkhorn-Knopp sees only {per_pass} images at a time; below 32 its targets are noisy.")
    if config.losses.koleo == 0:
        said.append("Without KoLeo (losses.koleo = 0) small runs collapse silently.")
    return said
