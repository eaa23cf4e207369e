"""Optimisers of pre-training (AdamW, SGD, LARS), their parameter groups, and clipping."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from timm.layers import RmsNorm, RmsNorm2d
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from poa import distributed
from poa.training.schedules import StepValues


class Lars(torch.optim.Optimizer):
    """LARS (You et al. 2017, arXiv 1708.03888) as in the official code of MoCo v3 and SlimCLR.

    For weights with more than one axis ``g <- g + weight_decay * p`` and then ``g <- g * trust * |p| / |g|``, without
    that factor where one of the norms is 0; norms are those of the whole tensor. Biases and scales of norms keep their
    gradient as it is and do not decay. Then ``v <- momentum * v + g`` and ``p <- p - lr * v``.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 0.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step, after evaluating the loss anew by the closure if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad
                if parameter.ndim > 1:
                    gradient = gradient.add(parameter, alpha=group["weight_decay"])
                    gradient = gradient * _adapted(parameter, gradient, trust=group["trust"])
                state = self.state[parameter]
                if not state:
                    state["velocity"] = torch.zeros_like(parameter)
                state["velocity"].mul_(group["momentum"]).add_(gradient)
                parameter.add_(state["velocity"], alpha=-group["lr"])
        return loss


def _adapted(parameter: Tensor, gradient: Tensor, *, trust: float) -> Tensor:
    """The factor on a gradient, left on its device."""
    size, slope = parameter.norm(), gradient.norm()
    return torch.where((size > 0) & (slope > 0), trust * size / slope, 1.0)


NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, RmsNorm, RmsNorm2d, GlobalResponseNorm)


class _Kind(NamedTuple):
    """What parameters must share to be in one group; also the extra entries of the group."""

    lr_multiplier: float
    weight_decay_multiplier: float
    last_layer: bool
    warms_up: bool = False
    """Whether the rate has the factor of the backbone's own warm-up."""


def norm_parameters(module: nn.Module) -> set[str]:
    """Names of the parameters that belong to norm layers."""
    norms = {name for name, layer in module.named_modules() if isinstance(layer, NORMS)}
    return {name for name, _ in module.named_parameters() if name.rpartition(".")[0] in norms}


def _kind(name: str, *, is_norm: bool, lr_multiplier: float) -> _Kind:
    decays = not is_norm and not name.endswith(".bias") and "norm" not in name and "gamma" not in name
    last_layer = name.startswith("heads.") and name.endswith(("weight_g", "weight_v"))
    return _Kind(lr_multiplier, float(decays), last_layer)


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    layer_of: Callable[[str], int | None],
    num_layers: int,
    layer_decay: float,
    patch_embed_multiplier: float = 0.2,
    norms: Collection[str] = (),
    decay_all: bool = False,
    backbone_warms_up: bool = False,
) -> list[dict[str, Any]]:
    """Group a student's parameters by learning rate, weight decay and whether they are prototypes (POA official code).

    A parameter in layer i learns with ``layer_decay ** (num_layers + 1 - i)`` times the learning rate, heads and what
    follows the last block with 1 times. Biases, norms and LayerScale (``gamma``) do not decay; tokens, positions and
    prototypes do. Groups and their members follow the order of the parameters, hence are the same in every run.

    Args:
        named_parameters: Of the intact student; frozen ones are left out.
        layer_of: Layer of a backbone parameter: 0 for the input, ``i + 1`` for block i, None beyond the last block.
        num_layers: Number of blocks.
        layer_decay: Factor from a layer to the one before it.
        patch_embed_multiplier: Further factor for the patch embedding.
        norms: Names of parameters of norm layers that cannot be told by their names.
        decay_all: Let biases, norms and LayerScale decay too.
        backbone_warms_up: Keep the backbone's parameters apart from others with the same rate.
    """
    members: dict[_Kind, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        layer = None if name.startswith("heads.") else layer_of(name)
        multiplier = 1.0 if layer is None else layer_decay ** (num_layers + 1 - layer)
        if "patch_embed" in name:
            multiplier *= patch_embed_multiplier
        kind = _kind(name, is_norm=name in norms, lr_multiplier=multiplier)
        kind = kind._replace(weight_decay_multiplier=1.0) if decay_all else kind
        kind = kind._replace(warms_up=backbone_warms_up and name.startswith("backbone."))
        members.setdefault(kind, []).append((name, parameter))
    return [{"params": parameters, **kind._asdict()} for kind, parameters in members.items()]


def build_sgd(groups: Sequence[dict[str, Any]], *, momentum: float = 0.9) -> torch.optim.SGD:
    """SGD with momentum."""
    return torch.optim.SGD(list(groups), lr=0.0, momentum=momentum, weight_decay=0.0)


def build_lars(groups: Sequence[dict[str, Any]], *, momentum: float = 0.9) -> Lars:
    """LARS with momentum."""
    return Lars(
        [{**group, "params": [parameter for _, parameter in group["params"]]} for group in groups], momentum=momentum
    )


def build_adamw(
    groups: Sequence[dict[str, Any]], *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> torch.optim.AdamW:
    """AdamW, in one fused kernel where there is one."""
    devices = {parameter.device.type for group in groups for _, parameter in group["params"]}
    return torch.optim.AdamW(
        list(groups), lr=0.0, betas=betas, eps=eps, weight_decay=0.0, fused=devices <= {"cpu", "cuda"}
    )


OPTIMIZERS: Mapping[str, Callable[[Sequence[dict[str, Any]]], torch.optim.Optimizer]] = {
    "adamw": build_adamw,
    "sgd": build_sgd,
    "lars": build_lars,
}
"""By name, with their usual constants, from groups; rates are 0 until ``set_schedule`` sets them."""


def set_schedule(optimizer: torch.optim.Optimizer, values: StepValues) -> None:
    """Set the learning rate and weight decay of every group for the next step."""
    for group in optimizer.param_groups:
        lr = values.last_layer_lr if group["last_layer"] else values.lr
        own = values.backbone if group.get("warms_up") else 1.0  # no entry in checkpoints of earlier commits
        group["lr"] = lr * group["lr_multiplier"] * own
        group["weight_decay"] = values.weight_decay * group["weight_decay_multiplier"]


def clip_gradients(modules: Iterable[nn.Module], *, max_norm: float) -> tuple[Tensor, ...]:
    """Clip the gradients of each module by their L2 norm, and return the norms before (POA official code).

    A ``max_norm`` of ``inf`` only measures. Norms stay on their device; where one is not finite, its gradients are not.
    """
    return tuple(distributed.whole(nn.utils.clip_grad_norm_([*module.parameters()], max_norm)) for module in modules)
