"""Projection heads: from a backbone's features to the space in which prototypes are compared."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """Three-layer MLP, L2 normalisation, and weight-normalised prototypes (DINO; POA, Sec. 3, multiple heads).

    It computes in float32 also under autocast: early in a run features of different images hardly differ, and low
    precision would lose the difference.

    Args:
        width: Width of the features, the only part of a head that is elastic.
        num_prototypes: Number of prototypes.
        hidden: Width of the hidden layers.
        bottleneck: Width of the space in which prototypes lie.
    """

    def __init__(self, width: int, *, num_prototypes: int, hidden: int = 2048, bottleneck: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        self.weight_g = nn.Parameter(torch.ones(num_prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(num_prototypes, bottleneck))
        for module in self.layers:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        nn.init.kaiming_uniform_(self.weight_v, a=5**0.5)  # as a bias-free linear layer starts

    def forward(self, features: Float[Tensor, "rows width"]) -> Float[Tensor, "rows bottleneck"]:
        """Features on the unit sphere."""
        with torch.autocast(features.device.type, enabled=False):
            return F.normalize(self.layers(features.to(self.weight_v.dtype)), dim=-1, eps=1e-12)

    def prototypes(self) -> Float[Tensor, "prototypes bottleneck"]:
        """Directions of the prototypes times their trained lengths; logits are features @ prototypes.T."""
        return self.weight_g * F.normalize(self.weight_v, dim=-1, eps=1e-12)
