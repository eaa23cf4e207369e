"""Modules that methods share: projection heads, a queue of embeddings, statistics and BatchNorm over all processes."""

from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from poa import distributed
from poa.errors import UserError, counted
from poa.machine.precision import multiplies_in_bf16


class Projector(nn.Module):
    """MLP and L2 normalisation (DINO; POA, Sec. 3, multiple heads).

    Attributes:
        in_low_precision: Linear layers multiply in bf16 where autocast has it and the device gains by it. Otherwise all
            is computed in the precision of the parameters, also under autocast.

    Args:
        width: Width of the features, the only part of a head that is elastic.
        layers: Number of linear layers, three as published.
        hidden: Width between them.
        bottleneck: Width of the outputs.
    """

    in_low_precision: ClassVar[bool] = False

    def __init__(self, width: int, *, layers: int = 3, hidden: int = 2048, bottleneck: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, hidden if layers > 1 else bottleneck))
        for number in range(1, layers):
            self.layers.extend([nn.GELU(), nn.Linear(hidden, hidden if number < layers - 1 else bottleneck)])
        self.bottleneck = bottleneck
        for module in self.layers:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, features: Float[Tensor, "rows width"]) -> Float[Tensor, "rows bottleneck"]:
        """Outputs on the unit sphere."""
        own, device = self._parameter.dtype, features.device
        with torch.autocast(device.type, enabled=self.in_low_precision and multiplies_in_bf16(device)):
            rows = self.layers(features.to(own))
        with torch.autocast(device.type, enabled=False):
            return F.normalize(rows.to(own), dim=-1, eps=1e-12)

    def prototypes(self) -> Float[Tensor, "prototypes bottleneck"]:
        """No rows."""
        return self._parameter.new_empty(0, self.bottleneck)

    @property
    def _parameter(self) -> Tensor:
        """Any: all have the same precision and device."""
        return next(self.parameters())


class ProjectionHead(Projector):
    """A projector and weight-normalised prototypes in the space of its outputs.

    Where prototypes are many, their products are most of a step; hence low precision (ADR 0051).

    Args:
        width: Width of the features, the only part of a head that is elastic.
        num_prototypes: Number of prototypes.
        layers: Number of linear layers.
        hidden: Width between them.
        bottleneck: Width of the space in which prototypes lie.
    """

    in_low_precision = True

    def __init__(
        self, width: int, *, num_prototypes: int, layers: int = 3, hidden: int = 2048, bottleneck: int = 256
    ) -> None:
        super().__init__(width, layers=layers, hidden=hidden, bottleneck=bottleneck)
        self.weight_g = nn.Parameter(torch.ones(num_prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(num_prototypes, bottleneck))
        nn.init.kaiming_uniform_(self.weight_v, a=5**0.5)  # as a bias-free linear layer starts

    def prototypes(self) -> Float[Tensor, "prototypes bottleneck"]:
        """Directions of the prototypes times their trained lengths; logits are features @ prototypes.T."""
        return torch._weight_norm(self.weight_v, self.weight_g, 0)


class EmbeddingQueue(nn.Module):
    """The newest embeddings, the same on all processes; it starts as random unit vectors."""

    rows: Tensor
    place: Tensor
    """Of the row that is replaced next."""

    def __init__(self, length: int, width: int, *, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(length, width, generator=generator, device="cpu")
        self.register_buffer("rows", F.normalize(rows, dim=1).to(torch.get_default_device()))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, rows: Float[Tensor, "batch width"]) -> None:
        """Replace the oldest embeddings by those of all processes, on the unit sphere; every process brings as many.

        Raises:
            UserError: The length of the queue is not a multiple of the rows per pass.
        """
        gathered = distributed.gather_rows(rows.detach().to(self.rows.dtype))
        length = len(self.rows)
        if length % len(gathered):
            enough = -(-length // len(gathered)) * len(gathered)
            raise UserError(
                f"A queue of {counted(length, 'embedding')} cannot be filled by {len(gathered)} at a time. Set "
                f"the queue to a multiple of {len(gathered)}, such as {enough}."
            )
        places = self.place + torch.arange(len(gathered), device=self.place.device)  # reading it would wait for a GPU
        self.rows.index_copy_(0, places, gathered)
        self.place.add_(len(gathered)).remainder_(length)


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


class RunningStandard(nn.Module):
    """Standardises channels by their mean and variance over all rows of all processes so far.

    The first batch counts whole; later ones count as in a mean over all batches, and from ``LONGEST`` batches on as in
    a moving average of that length. Statistics are buffers, hence saved.
    """

    LONGEST: ClassVar[int] = 1000
    EPSILON: ClassVar[float] = 1e-5
    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.zeros(width))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        """Follow the rows, then standardise them; every process brings as many."""
        rows = rows.to(self.mean.dtype)
        count = len(rows) * distributed.world_size()
        mean = distributed.sum_over_ranks(rows.sum(0)) / count
        variance = distributed.sum_over_ranks((rows - mean).square().sum(0)) / count
        self.batches += 1
        share = self.batches.clamp(max=self.LONGEST).to(mean.dtype).reciprocal()
        change = mean - self.mean
        self.variance.copy_((1 - share) * (self.variance + share * change.square()) + share * variance)
        self.mean += share * change
        return (rows - self.mean) * torch.rsqrt(self.variance + self.EPSILON)
