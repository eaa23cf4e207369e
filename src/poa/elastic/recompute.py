"""Parts of a network that are computed again in the backward pass, instead of keeping what they computed until then."""

from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from poa.elastic.network import state


def recompute(part: nn.Module, *, compiled: bool = False) -> None:
    """Let a part, in place, keep nothing but its inputs where gradients are wanted; names and parameters stay.

    It draws the same random numbers again. Where it runs with parameters cut out of larger ones, it does so again.

    Args:
        part: A module that changes nothing but its outputs.
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
        return checkpoint(functional_call, _Plain(self), tensors, inputs, options, use_reentrant=False)


class _Plain(nn.Module):
    """A part without recomputation."""

    def __init__(self, part: Recomputed) -> None:
        super().__init__()
        self.part = part

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.part.plain(*inputs, **options)


@cache  # so that parts of equal classes stay so
def _recomputed(kind: type[nn.Module], compiled: bool) -> type[nn.Module]:
    plain = torch.compile(kind.forward) if compiled else kind.forward
    return type(f"Recomputed{kind.__name__}", (Recomputed, kind), {"plain": plain})
