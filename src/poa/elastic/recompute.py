"""Parts of a network that are computed again in the backward pass, instead of keeping what they computed until then."""

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from poa.elastic.network import state


def recompute(part: nn.Module, *, compiled: bool = False) -> None:
    """Let a part, in place, keep nothing but its inputs where gradients are wanted; names and parameters stay.

    It draws the same random numbers again. Where it runs with parameters cut out of larger ones, it does so again.

    Args:
        part: A module that changes nothing but the statistics of BatchNorms.
        compiled: Compile what it computes.
    """
    part.__class__ = _recomputed(type(part), compiled)  # type: ignore[arg-type]  # classes can be hashed


class Recomputed(nn.Module):
    """What the class of such a part has beside its own."""

    plain: ClassVar[Callable[..., Any]]
    """Its computation."""

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """As without recomputation."""
        if not torch.is_grad_enabled():
            return self.plain(*inputs, **options)
        tensors = {f"part.{name}": tensor for name, tensor in state(self).items()}  # by then others may be in place
        counted = {f"part.{name}": tensor for name, tensor in _statistics(self).items()}
        copies = {name: tensor.clone() for name, tensor in counted.items()}
        outputs = checkpoint(functional_call, _Plain(self), tensors | copies, inputs, options, use_reentrant=False)
        for name, tensor in counted.items():
            tensor.copy_(copies[name])  # once: what is computed again changes the copies alone
        return outputs


class _Plain(nn.Module):
    """A part without recomputation."""

    def __init__(self, part: Recomputed) -> None:
        super().__init__()
        self.part = part

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.part.plain(*inputs, **options)


def _statistics(part: nn.Module) -> dict[str, Tensor]:
    """What its BatchNorms change when they run."""
    norms = {name: layer for name, layer in part.named_modules() if isinstance(layer, _BatchNorm) and layer.training}
    return {f"{name}.{own}": buffer for name, layer in norms.items() for own, buffer in layer.named_buffers()}


@cache  # so that parts of equal classes stay so
def _recomputed(kind: type[nn.Module], compiled: bool) -> type[nn.Module]:
    plain = torch.compile(kind.forward) if compiled else kind.forward
    return type(f"Recomputed{kind.__name__}", (Recomputed, kind), {"plain": plain})
