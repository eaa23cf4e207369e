"""One training step, and the parts it needs."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from poa import distributed
from poa.config.pretraining import SLIMMABLE, Config, ViewSettings
from poa.data.augment import augment
from poa.data.index import ImageIndex
from poa.data.masks import Masking
from poa.data.sampler import steps_per_epoch
from poa.data.views import RawViews
from poa.elastic.plan import SlicePlan
from poa.families.base import Family
from poa.methods.base import Method
from poa.models.init import Listing, start_from
from poa.models.registry import family_of
from poa.models.source import teacher_of
from poa.pretraining import build
from poa.pretraining import method as build_method
from poa.pretraining.gradients import leading_singular_values, slice_norms
from poa.training.health import check_finite
from poa.training.optimizer import OPTIMIZERS, clip_gradients, norm_parameters, parameter_groups, set_schedule
from poa.training.schedules import Schedules


@dataclass(frozen=True)
class Parts:
    """All that a step works on, on this process.

    Attributes:
        family: Backbones.
        method: All networks that training needs.
        wrapped: The method, wrapped for data parallelism.
        optimizer: Of the student.
        scaler: Of fp16 gradients; does nothing in other precisions.
        schedules: Values that change from step to step.
        subnets: Sizes to train at a step.
        views: How crops are made.
        masking: What is hidden in them.
        dtype: Precision of the backbones.
        device: Where it all lives.
        steps_per_epoch: Steps in a pass over the images.
        ibot_start: First step with masks.
        clip: Largest gradient norm of backbone and heads each.
        seed: Of the run.
        slices: By size, how gradients are cut for a look at them; the intact network first.
        slices_every: Steps between such looks.
        listing: What became of the trained weights that the run starts from, if there are any.
    """

    family: Family
    method: Method
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    schedules: Schedules
    subnets: build_method.Subnets
    views: ViewSettings
    masking: Masking
    dtype: torch.dtype
    device: torch.device
    steps_per_epoch: int
    ibot_start: int
    clip: float
    seed: int
    slices: Mapping[str, SlicePlan]
    slices_every: int
    listing: Listing | None


def assemble(config: Config, index: ImageIndex, *, device: torch.device, fresh: bool = True) -> Parts:
    """Build everything a run needs, freshly initialised from its seed, and from trained weights where they are named.

    Args:
        config: Settings.
        index: The images.
        device: Of this process.
        fresh: Whether the run begins here; one that goes on has its weights in a checkpoint.

    Raises:
        UserError: Settings do not fit the images or the device, or trained weights do not fit the network.
    """
    config.views.check()
    dtype = build.precision_of(config, device)
    # on the CPU the fused attention kernel is several times slower in bf16 than matrix products and a softmax
    family = family_of(config, fused_attention=not (device.type == "cpu" and dtype == torch.bfloat16))
    epoch = steps_per_epoch(len(index), config.batch_size)
    torch.manual_seed(config.seed)
    teacher = teacher_of(config) if config.method == "seed" else None
    method = build_method.method_of(config, family, teacher=teacher)
    init, normalisation = config.init if fresh else None, (config.views.mean, config.views.std)
    backbones = {branch.backbone: None for branch in (method.student, method.served)}
    listing = None if init is None else start_from(init, *backbones, normalisation=normalisation)
    method = method.to(device).train()
    groups = parameter_groups(
        method.student.named_parameters(),
        layer_of=family.layer,
        num_layers=family.num_layers,
        layer_decay=config.optimizer.layer_decay,
        patch_embed_multiplier=config.optimizer.patch_embed_multiplier,
        norms=norm_parameters(method.student),
        decay_all=config.optimizer.decay_all,
    )
    return Parts(
        family=family,
        method=method,
        wrapped=distributed.data_parallel(method, device=device, find_unused=config.method in SLIMMABLE),
        optimizer=OPTIMIZERS[config.optimizer.kind](groups),
        scaler=torch.amp.GradScaler(device.type, enabled=dtype == torch.float16),
        schedules=build.schedules_of(config, steps_per_epoch=epoch),
        subnets=build_method.subnets_of(config, family, steps_per_epoch=epoch),
        views=config.views,
        masking=build.masking_of(config, family),
        dtype=dtype,
        device=device,
        steps_per_epoch=epoch,
        ibot_start=round(config.losses.ibot_start_epoch * epoch),
        clip=config.optimizer.clip,
        seed=config.seed,
        slices={} if config.monitor.gradients_every is None else slices_of(family),
        slices_every=config.monitor.gradients_every or 1,
        listing=listing,
    )


def train_step(parts: Parts, step: int, batch: Sequence[RawViews], *, stop: bool = False) -> dict[str, float]:
    """Train on one global batch.

    Args:
        parts: Of the run.
        step: From 0.
        batch: This process's micro-batches.
        stop: Whether this process has been asked to stop.

    Returns:
        The losses by name (unweighted terms, ``loss`` is the weighted sum), gradient norms, and ``stop`` above 0 if
        any process has been asked to; averaged over processes.

    Raises:
        NonFiniteLoss: A loss or gradient is NaN or infinite. Nothing has been updated then.
    """
    values = parts.schedules.at(step)
    set_schedule(parts.optimizer, values)
    sizes = parts.subnets(step, rank=distributed.rank())
    weights = parts.method.weights(sizes, num_locals=parts.views.num_locals)
    torch.manual_seed(_step_seed(parts.seed, step))  # drop path: nothing random outlives a step
    terms: dict[str, Tensor] = {}
    for number, raw in enumerate(batch):
        views = augment(raw, augmentation=parts.views, device=parts.device)
        if step < parts.ibot_start:
            views = views._replace(masks=torch.zeros_like(views.masks))
        with _without_reduction(parts.wrapped, number < len(batch) - 1):
            with torch.autocast(parts.device.type, dtype=parts.dtype, enabled=parts.dtype != torch.float32):
                losses = parts.wrapped(views, sizes, temperature=values.temperature)
            total = sum((weights[name] * loss for name, loss in losses.items()), torch.zeros(()))
            parts.scaler.scale(total / len(batch)).backward()
        for name, loss in {"loss": total, **losses}.items():
            terms[name] = terms.get(name, 0.0) + loss.detach() / len(batch)
    parts.scaler.unscale_(parts.optimizer)
    student = parts.method.student
    looked_at = _look_at_gradients(parts) if (step + 1) % parts.slices_every == 0 else {}
    norms = clip_gradients([student.backbone, student.heads], max_norm=parts.clip)
    measured = _measure(terms | dict(zip(("grad_norm/backbone", "grad_norm/heads"), norms, strict=True)), stop=stop)
    in_losses_only = parts.scaler.is_enabled()  # fp16 gradients overflow now and then; the scaler skips those steps
    checked = {name: x for name, x in measured.items() if not (in_losses_only and name.startswith("grad_norm"))}
    check_finite(checked, step=step + 1)
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    parts.optimizer.zero_grad(set_to_none=True)
    parts.method.update_teacher(values.momentum)
    return measured | looked_at


def slices_of(family: Family) -> dict[str, SlicePlan]:
    """How the gradient of the intact network is cut for each width at full depth, the widest first.

    Args:
        family: All sizes.
    """
    networks = family.sub_networks()
    deepest = [size for size in family.space.sizes[::-1] if size.depths == family.space.intact.depths]
    return {str(size): networks.plan(size) for size in deepest}


def _look_at_gradients(parts: Parts) -> dict[str, float]:
    """How widths pull at what they share (SlimCLR, Sec. 3, official diagnosis).

    Mean norms over the weights that each width uses, and of the others by these; and the two leading singular values of
    the gradient of the heads' last matrix, which are near each other where widths pull different ways.
    """
    if not parts.slices:
        return {}
    named = parts.method.student.backbone.named_parameters()
    found = slice_norms(
        {name: parameter.grad for name, parameter in named if parameter.grad is not None}, list(parts.slices.values())
    )
    looked = {f"gradient/{size}": mean for size, mean in zip(parts.slices, found.means(), strict=True)}
    looked |= {f"gradient_rest/{size}": found.rest_ratio(n) for n, size in enumerate(parts.slices) if n}
    last = [matrix.grad for matrix in parts.method.student.heads.parameters() if matrix.ndim == 2][-1]
    assert last is not None
    return looked | dict(zip(("gradient_first", "gradient_second"), leading_singular_values(last), strict=True))


def _step_seed(seed: int, step: int) -> int:
    digest = hashlib.blake2b(f"{seed} {step} {distributed.rank()}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def _without_reduction(module: nn.Module, more_to_come: bool) -> AbstractContextManager[None]:
    """Gradients are averaged over processes once a step, with the last micro-batch."""
    if more_to_come and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def _measure(tensors: dict[str, Tensor], *, stop: bool) -> dict[str, float]:
    """Read all numbers of a step at once: one wait for the device and one message between processes."""
    stacked = torch.stack([tensor.float() for tensor in tensors.values()])
    row = torch.cat([stacked, stacked.new_tensor([float(stop)])])
    mean = distributed.sum_over_ranks(row) / distributed.world_size()
    return dict(zip([*tensors, "stop"], mean.tolist(), strict=True))
