"""The method that settings name, and what it does not go together with."""

from collections.abc import Mapping
from typing import Any

import torch

from poa.config.own import own_class
from poa.config.pretraining import SELF_DISTILLED, SLIMMABLE, Config
from poa.errors import UserError
from poa.families.base import Family
from poa.families.slim_resnet import SlimResNet
from poa.methods.base import Method
from poa.methods.contrast import MoCoV2, MoCoV3, SimCLR
from poa.methods.distill import Distill
from poa.methods.poa import POA
from poa.methods.seed import SEED
from poa.methods.taught import TaughtPOA
from poa.models.registry import drop_path_of
from poa.models.teacher import Teacher

SLIMCLR: Mapping[str, type[SimCLR | MoCoV2 | MoCoV3]] = {
    "slimclr-simclr": SimCLR,
    "slimclr-mocov2": MoCoV2,
    "slimclr-mocov3": MoCoV3,
}


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
        if config.slim.hidden is not None and not config.slim.head_norm:
            raise UserError(
                "--slim.hidden has no effect on MoCo v2, whose head is as wide as its features. Leave it out, or set "
                "--slim.head-norm."
            )
        _check_queue("--slim.queue", config.slim.queue, config)


def _check_queue(flag: str, length: int, config: Config) -> None:
    at_once = config.batch_size // config.accumulate
    if length % at_once:
        raise UserError(
            f"{flag} {length} is not a multiple of the images per pass, {at_once}. Set it to "
            f"{max(1, length // at_once) * at_once}, for example."
        )
