"""Values that do not depend on a random number generator, for comparison with the official modules."""

import torch
from torch import Tensor


def filler(shape: int | tuple[int, ...], c: int = 0) -> Tensor:
    """The k-th number, row-major, is ``frac(sin(12.9898 k + 78.233 c) 43758.5453) - 0.5`` in float64."""
    size = torch.Size((shape,) if isinstance(shape, int) else shape)
    k = torch.arange(size.numel(), dtype=torch.float64)
    value = torch.sin(12.9898 * k + 78.233 * c) * 43758.5453
    return (value - value.floor() - 0.5).reshape(size)
