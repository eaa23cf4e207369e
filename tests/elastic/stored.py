"""What autograd keeps for the backward pass."""

from collections.abc import Callable

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def stored(run: Callable[[], object]) -> list[Tensor]:
    """The tensors kept by a forward pass, but for those that are to be computed again."""
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.numel():  # torch 2.11 keeps an empty one where it is to compute again
            found.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return found
