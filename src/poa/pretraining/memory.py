"""Whether a training can fit into memory at all, found out before its networks are built."""

from functools import cache

import torch
from torch import Tensor

from poa.config.pretraining import SELF_DISTILLED, SLIMMABLE, Config
from poa.elastic.skeleton import InitialValuesLeftOut
from poa.elastic.space import Size
from poa.errors import UserError
from poa.evaluation.cost import of_depth, parameters, shallowest
from poa.families.base import Backbone, Family
from poa.machine.limits import memory_of_machine
from poa.models.registry import drop_path_of
from poa.training.health import MemoryRanOut

WITH_TEACHER = (*SELF_DISTILLED, "slimclr-mocov2", "slimclr-mocov3")
"""Methods with a second network that follows the first."""
_BYTES = 4
_CROPS = 4
"""That are followed through a network, to tell what each of many keeps."""
_MOST_OF_PIXEL = 2**14
"""Bytes. Networks of our recipes keep 0.4 to 7 KiB for a pixel of an image, and an elastic student as much again."""


def check_memory(config: Config, family: Family, device: torch.device, dtype: torch.dtype) -> str | None:
    """Refuse networks for which there is no room, and on a CPU, whose system stops such a process, images.

    Returns:
        A warning where images may not fit.

    Raises:
        UserError: The networks do not fit.
        MemoryRanOut: The images do not; fewer at a time may.
    """
    _check_weights(config, family, device)
    if device.type != "cpu" or config.checkpointing or config.method == "own":
        return None
    return _check_images(config, family, dtype)


def _check_weights(config: Config, family: Family, device: torch.device) -> None:
    """With all that is kept for each of them."""
    on_cpu, has_teacher = device.type != "cuda", config.method in WITH_TEACHER
    there = memory_of_machine() if on_cpu else torch.cuda.mem_get_info(device)[1]
    backbone, heads = _parameters(config, family)
    copies = 2 + (2 if config.optimizer.kind == "adamw" else 1) + has_teacher
    processes = (config.devices or 1) if on_cpu else 1
    is_shared = config.parallel == "fsdp" and config.processes > 1
    at_once = 2 + copies / config.processes if is_shared else copies  # the student and its gradients are gathered
    copied = (copies - 1) * on_cpu  # of the main process, for the checkpoint that is written; gradients are not in it
    needed = _BYTES * (at_once * processes + copied) * (backbone + heads)
    if there is None or needed <= there:
        return
    kept = f"weights, gradients, {'teacher, ' if has_teacher else ''}state of the optimizer"
    kept += ", a copy for checkpoints" * on_cpu
    remedy = "Lower --model.width-max or --model.depth-max, or choose another --model."
    if heads > backbone:
        remedy = "Lower --heads.hidden, --heads.bottleneck or --heads.prototypes."
    raise UserError(
        f"The {(backbone + heads) / 1e6:,.0f} million parameters of backbone and heads need {needed / 1e9:,.0f} GB in "
        f"training ({kept}{f'; {processes} processes' if processes > 1 else ''}), more than the memory of the "
        f"{'machine' if on_cpu else 'GPU'}, {there / 1e9:,.0f} GB. {remedy}"
    )


def _parameters(config: Config, family: Family) -> tuple[int, int]:
    """Of the intact backbone and of its projection heads; the heads of methods without prototypes are small."""

    @cache
    def built(size: Size) -> Backbone:
        with torch.device("meta"), InitialValuesLeftOut():
            return family.build(size)

    intact = family.space.intact
    backbone = of_depth(intact, lambda size: parameters(built(size)))
    if config.method not in SELF_DISTILLED:
        return backbone, 0
    return backbone, config.head_weights(built(shallowest(intact)).num_features)


def _check_images(config: Config, family: Family, dtype: torch.dtype) -> str | None:
    """With what the intact student alone keeps of them for its backward pass; elastic students and heads add theirs."""
    there, views = memory_of_machine(), config.views
    at_once = config.batch_size // config.processes // config.accumulate * (config.devices or 1)
    has_locals = config.method != "distill" or config.distill.local_weight > 0
    crops = {views.global_size: 2.0 * (1 - views.drop_patches) ** 2}  # attention between the patches that are left
    crops[views.local_size] = crops.get(views.local_size, 0.0) + views.num_locals * has_locals
    pixels = at_once * sum(count * side**2 for side, count in crops.items())
    if there is None or pixels * _MOST_OF_PIXEL < there:  # the usual case, without a pass, which takes memory itself
        return None
    of_image = sum(count * _kept_of_crop(config, family, side, dtype) for side, count in crops.items() if count)
    needed = at_once * of_image
    if 2 * needed <= there:
        return None
    each = config.batch_size // config.processes
    parts = next((n for n in range(1, each + 1) if each % n == 0 and each / n * of_image < there / 4), None)
    split = f"--accumulate {parts} or " if parts and config.method not in SLIMMABLE else ""
    small = f" and {views.num_locals} of {views.local_size}" if views.num_locals else ""
    fits = needed <= there
    said = (
        f"Of {at_once} images at a time, with 2 crops of {views.global_size} pixels{small} of each, the backward pass "
        f"keeps {needed / 1e9:,.1f} GB or more, {'and' if fits else 'but'} the memory of the machine has "
        f"{there / 1e9:,.1f} GB. Add {split}--checkpointing, lower --batch-size or the size of crops, or train on a "
        "GPU."
    )
    if fits:
        return said
    raise MemoryRanOut(said)


def _kept_of_crop(config: Config, family: Family, side: int, dtype: torch.dtype) -> float:
    """Bytes that the intact network keeps of a crop for its backward pass, by those of shallow ones."""

    def kept(size: Size) -> int:
        network = family.build(size, drop_path=drop_path_of(config.model)).train()
        crops = torch.zeros(_CROPS, family.in_chans, side, side)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            return kept_for_backward(network, crops)

    return of_depth(family.space.intact, kept) / _CROPS


def kept_for_backward(network: Backbone, crops: Tensor) -> int:
    """Bytes of the tensors that a forward pass keeps for the backward pass, each once; weights do not count."""
    own = {_place(tensor) for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _place(tensor) not in own:
            kept[_place(tensor)] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(crops, None)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
