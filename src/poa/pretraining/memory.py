"""Whether a training can fit into memory at all, found out before its networks are built."""

from functools import cache

import torch

from poa.config.pretraining import SELF_DISTILLED, Config
from poa.elastic.skeleton import InitialValuesLeftOut
from poa.elastic.space import Size
from poa.errors import UserError
from poa.evaluation.cost import Cost, of_depth, parameters, shallowest
from poa.families.base import Backbone, Family
from poa.models.folder import memory_of_machine

WITH_TEACHER = (*SELF_DISTILLED, "slimclr-mocov2", "slimclr-mocov3")
"""Methods with a second network that follows the first."""
_BYTES = 4


def check_memory(config: Config, family: Family, device: torch.device) -> None:
    """Refuse networks for which there is no room, with all that is kept for each weight; images need room besides.

    Raises:
        UserError: They do not fit.
    """
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
    backbone = of_depth(intact, lambda size: Cost(parameters(built(size)), 0)).parameters
    if config.method not in SELF_DISTILLED:
        return backbone, 0
    return backbone, config.head_weights(built(shallowest(intact)).num_features)
