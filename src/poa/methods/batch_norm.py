"""BatchNorm over the images of all processes, on any device (torch's own exists on GPUs alone)."""

from typing import TypeVar

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from poa import distributed

N = TypeVar("N", bound=nn.Module)


def synced(network: N) -> N:
    """Let the BatchNorms of a network, in place, measure the images of all processes; names and parameters stay."""
    for layer in network.modules():
        if isinstance(layer, BatchNormAct2d):
            layer.__class__ = _SyncedAct2d
        elif isinstance(layer, nn.BatchNorm1d):
            layer.__class__ = _Synced1d
    return network


class _Synced1d(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        if not self.training or distributed.world_size() == 1:
            return super().forward(input)
        return _normalised(self, input)


class _SyncedAct2d(BatchNormAct2d):  # type: ignore[misc]  # timm is untyped
    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.world_size() == 1:
            normalised: Tensor = super().forward(x)
            return normalised
        acted: Tensor = self.act(self.drop(_normalised(self, x)))
        return acted


def _normalised(layer: _BatchNorm, x: Tensor) -> Tensor:
    """As torch does on one process, in float32: two passes, and the unbiased variance among the running statistics."""
    values = x.float()
    axes = [axis for axis in range(x.ndim) if axis != 1]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    count = values.numel() // values.shape[1] * distributed.world_size()  # every process has as many images
    mean = distributed.differentiable_sum(values.sum(axes)) / count
    centred = values - mean.view(shape)
    variance = distributed.differentiable_sum(centred.square().sum(axes)) / count
    with torch.no_grad():
        assert layer.running_mean is not None
        assert layer.running_var is not None
        assert layer.num_batches_tracked is not None
        assert layer.momentum is not None
        layer.num_batches_tracked += 1
        layer.running_mean.lerp_(mean, layer.momentum)
        layer.running_var.lerp_(variance * (count / max(count - 1, 1)), layer.momentum)
    out = centred * torch.rsqrt(variance + layer.eps).view(shape)
    if layer.affine:
        out = out * layer.weight.view(shape) + layer.bias.view(shape)
    return out.to(x.dtype)
