"""LARS: SGD whose steps are in proportion to the size of each weight matrix (You et al. 2017, arXiv 1708.03888)."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Lars(torch.optim.Optimizer):
    """LARS as MoCo v3 and SlimCLR have it (official code).

    For weights with more than one axis ``g <- g + weight_decay * p`` and then ``g <- g * trust * |p| / |g|``, without
    that factor where one of the norms is 0; norms are those of the whole tensor. Biases and scales of norms keep their
    gradient as it is and do not decay. Then ``v <- momentum * v + g`` and ``p <- p - lr * v``.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate.
        momentum: Share of the old velocity that is kept.
        weight_decay: Of weights with more than one axis.
        trust: Length of a step as a share of the length of the weights, at learning rate 1.
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
        """Take one step.

        Args:
            closure: Evaluates the loss anew and returns it; called first, with gradients, if given.
        """
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
