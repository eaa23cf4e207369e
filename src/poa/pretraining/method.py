"""From settings to the method: all networks that training needs, and which of them learn at a step."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from poa import distributed
from poa.config.pretraining import ELASTIC, SLIMMABLE, Config
from poa.elastic.space import Size, SubnetSchedule
from poa.errors import UserError
from poa.families.base import Family
from poa.families.slim_resnet import SlimResNet
from poa.methods.base import Method
from poa.methods.contrast import MoCoV2, MoCoV3, SimCLR
from poa.methods.poa import POA
from poa.methods.seed import SEED
from poa.methods.slimclr import SlimCLR
from poa.models.registry import drop_path_of
from poa.pretraining import build

SLIMCLR: Mapping[str, type[SimCLR | MoCoV2 | MoCoV3]] = {
    "slimclr-simclr": SimCLR,
    "slimclr-mocov2": MoCoV2,
    "slimclr-mocov3": MoCoV3,
}
MANY_PIXELS = 256 * 224**2
"""Of global crops in a pass, above which a CPU's memory may be too small for common networks."""
Subnets = Callable[..., tuple[Size, ...]]
"""Which sub-networks are trained at a step, called as ``subnets(step, rank=rank)``."""


def method_of(config: Config, family: Family, *, teacher: tuple[nn.Module, int] | None = None) -> Method:
    """The method, with freshly initialised networks.

    Args:
        config: Settings.
        family: Of the networks to train.
        teacher: The frozen teacher of a distillation, and the width of its features.

    Raises:
        UserError: Method, network and batch do not fit one another.
    """
    _check_family(config, family)
    if config.compile:  # every width and crop size is a graph of its own, and past the limit torch runs without one
        widths = {size.width for size in family.space.sizes}
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 8 * len(widths))
    if config.method in SLIMMABLE:
        return _slimmable(config, family)
    if config.optimizer.restart_lr is not None:
        raise UserError(
            f"--optimizer.restart-lr says nothing to --method {config.method}, which has no slow start. Leave it out."
        )
    students: dict[str, Any] = {
        "drop_path": drop_path_of(config.model),
        "checkpointing": config.checkpointing,
        "compile_blocks": config.compile,
    }
    if teacher is not None:
        network, width = teacher
        _check_queue("--distill.queue", config.distill.queue, config)
        return SEED(family, network, width=width, distillation=config.distill, **students)
    return POA(family, heads=config.heads, losses=config.losses, elastic=config.method == "poa", **students)


def _check_family(config: Config, family: Family) -> None:
    is_slim = isinstance(family, SlimResNet)
    if is_slim != (config.method in SLIMMABLE):
        remedy = (
            f"Train it with --method {', '.join(SLIMMABLE)}."
            if is_slim
            else "Its network is a slimmable ResNet with BatchNorm: --model slim-resnet."
        )
        raise UserError(f"--method {config.method} does not train a {type(family).__name__}. {remedy}")


def _slimmable(config: Config, family: Family) -> SlimCLR:
    refused = {
        "--views.num-locals": config.views.num_locals > 0,
        "--accumulate": config.accumulate > 1,
        "--checkpointing": config.checkpointing,
        "--init": config.init is not None,
    }
    wrong = [flag for flag, is_set in refused.items() if is_set]
    if wrong:
        raise UserError(
            f"--method {config.method} has two global crops an image, and BatchNorms that see each batch once, as a "
            f"whole, from their first step on: {', '.join(wrong)} cannot be set with it."
        )
    if config.batch_size // (config.devices * config.num_nodes) < 2:
        raise UserError(
            f"BatchNorm needs two images or more on each process, got a --batch-size of {config.batch_size} over "
            f"{config.devices * config.num_nodes}. Raise --batch-size."
        )
    if (config.slim.slow_start_epochs or 0) > config.epochs:
        raise UserError(
            f"--slim.slow-start-epochs {config.slim.slow_start_epochs} is beyond the end: the run has {config.epochs} "
            "epochs. Choose fewer; half of all are usual."
        )
    if config.method == "slimclr-mocov2":
        if config.slim.hidden is not None:
            raise UserError(
                "--slim.hidden has no effect on MoCo v2, whose head is as wide as its features. Leave it out."
            )
        _check_queue("--slim.queue", config.slim.queue, config)
    return SLIMCLR[config.method](family, config.slim)


def _check_queue(flag: str, length: int, config: Config) -> None:
    at_once = config.batch_size // config.accumulate
    if length % at_once:
        raise UserError(
            f"{flag} {length} is no multiple of the {at_once} images that are put in at once. "
            f"Set it to {max(1, length // at_once) * at_once}, for example."
        )


def subnets_of(config: Config, family: Family, *, steps_per_epoch: int) -> Subnets:
    """Which sub-networks are trained at a step: none where a method trains one size.

    Args:
        config: Settings.
        family: All sizes.
        steps_per_epoch: Steps in a pass over the images.
    """
    if config.method in SLIMMABLE:
        start = build.slow_start_steps(config, steps_per_epoch=steps_per_epoch)
        return partial(_all_widths, sizes=family.space.sizes[-2::-1], start=start)
    if config.method not in ELASTIC:
        return _no_sub_networks
    return SubnetSchedule(
        family.space, seed=config.seed, samples=config.elastic_samples, shared=config.same_sizes_on_all_ranks
    )


def _no_sub_networks(step: int, *, rank: int = 0) -> tuple[Size, ...]:  # noqa: ARG001  # always none
    return ()


def _all_widths(step: int, *, sizes: tuple[Size, ...], start: int, rank: int = 0) -> tuple[Size, ...]:  # noqa: ARG001
    """All but the full width, descending, once it has learnt alone for a while."""
    return sizes if step >= start else ()


def warnings_of(config: Config, *, num_images: int) -> list[str]:
    """What the user should know about settings that are allowed but rarely right.

    Args:
        config: Settings.
        num_images: Images in the data set.
    """
    if config.method == "seed":
        return _warnings_of_queue("--distill.queue", config.distill.queue, num_images=num_images)
    if config.method in SLIMMABLE:
        queue = config.slim.queue if config.method == "slimclr-mocov2" else 0
        return _warnings_of_queue("--slim.queue", queue, num_images=num_images)
    said = []
    most = max(config.heads.prototypes)
    # every image shows up in two global views; a prototype that never wins in an epoch is only noise in the targets
    if most > 2 * num_images:
        said.append(
            f"{most} prototypes are more than {num_images} images can fill; "
            f"set --heads.prototypes to at most {2 ** int(math.log2(num_images))}, or begin with a recipe for small "
            "data (`poa recipes`)."
        )
    per_pass = config.batch_size // config.accumulate
    if per_pass < 32:
        said.append(f"Sinkhorn-Knopp sees only {per_pass} images at a time; below 32 its targets are noisy.")
    if config.losses.koleo == 0:
        said.append("Without KoLeo (losses.koleo = 0) small runs collapse silently.")
    return said


def memory_warning(config: Config) -> str | None:
    """What to know of runs on a CPU that take much memory: systems end them without a word.

    Args:
        config: Settings.
    """
    processes, side = config.devices * config.num_nodes, config.views.global_size
    images = config.batch_size // (config.accumulate * processes)
    most = max(1, MANY_PIXELS // side**2)
    if distributed.this_device(config.device).type != "cpu" or images <= most:
        return None
    of_process = config.batch_size // processes
    parts = next(parts for parts in range(1, of_process + 1) if of_process % parts == 0 and of_process // parts <= most)
    return (
        f"Passes of {images} images of {side} pixels on a CPU may need more memory than there is, and the system then "
        f"ends the run without a word. Split them with --accumulate {parts}, lower --batch-size, or begin with a "
        "recipe for small machines (`poa recipes`)."
    )


def _warnings_of_queue(flag: str, length: int, *, num_images: int) -> list[str]:
    if length <= num_images:
        return []
    return [
        f"A queue of {length} holds each of the {num_images} images more than once; set {flag} to at most {num_images}."
    ]
