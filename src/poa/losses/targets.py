"""What the teacher says: one distribution over prototypes for every row of features."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from poa.distributed import max_over_ranks, sum_over_ranks


def prototype_logits(
    features: Float[Tensor, "rows width"], prototypes: Float[Tensor, "prototypes width"], *, temperature: float
) -> Float[Tensor, "rows prototypes"]:
    """``features @ prototypes.T / temperature`` in float32 (float64 stays), also under autocast."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        return (features.to(dtype) / temperature) @ prototypes.to(dtype).T


def _logsumexp_over_samples(logits: Float[Tensor, "rows prototypes"]) -> Float[Tensor, "prototypes"]:
    local = logits.logsumexp(0)  # -inf where this process has no rows
    highest = max_over_ranks(local)
    return highest + sum_over_ranks((local - highest).exp()).log()


@torch.no_grad()
def sinkhorn(
    features: Float[Tensor, "rows width"],
    prototypes: Float[Tensor, "prototypes width"],
    *,
    temperature: float,
    num_iterations: int = 3,
) -> Float[Tensor, "rows prototypes"]:
    """Targets that use all prototypes equally over the global batch (Sinkhorn-Knopp; SwAV, DINOv2, POA Sec. 3).

    In turn, every prototype's mass over the rows of all processes and every row's mass are made equal. Done in log
    space, so that no logit is too large. Processes may bring different numbers of rows, also none.

    Args:
        features: Teacher features of this process.
        prototypes: Teacher prototypes.
        temperature: Divides the logits.
        num_iterations: Rounds of the two normalisations.

    Returns:
        Targets without gradient; each row sums to 1.
    """
    log_targets = prototype_logits(features, prototypes, temperature=temperature)
    for _ in range(num_iterations):  # in place: the matrix can have billions of entries
        log_targets -= _logsumexp_over_samples(log_targets)
        log_targets -= log_targets.logsumexp(1, keepdim=True)
    return log_targets.exp_()


class MovingAverageCenter(nn.Module):
    """Targets ``softmax((logits - center) / temperature)`` (DINO).

    The centre is a moving average of the mean logits. It moves only in :meth:`update`, so that asking for targets
    changes nothing.

    Args:
        num_prototypes: Length of the centre.
        momentum: Share of the old centre that an update keeps.
    """

    center: Tensor

    def __init__(self, num_prototypes: int, *, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(num_prototypes))

    @torch.no_grad()
    def forward(
        self,
        features: Float[Tensor, "rows width"],
        prototypes: Float[Tensor, "prototypes width"],
        *,
        temperature: float,
    ) -> Float[Tensor, "rows prototypes"]:
        """Targets with the present centre; called like :func:`sinkhorn`."""
        logits = prototype_logits(features, prototypes, temperature=temperature)
        return logits.sub_(self.center / temperature).softmax(1)

    @torch.no_grad()
    def update(self, features: Float[Tensor, "rows width"], prototypes: Float[Tensor, "prototypes width"]) -> None:
        """Move the centre towards the mean logits of the global batch; nothing if no process has rows.

        Args:
            features: Teacher features of this process, also none.
            prototypes: Teacher prototypes.
        """
        dtype = self.center.dtype
        num_rows = torch.full((1,), len(features), dtype=dtype, device=features.device)
        totals = sum_over_ranks(torch.cat([features.sum(0, dtype=dtype), num_rows]))
        mean = totals[:-1] / totals[-1].clamp(min=1)
        logits = prototype_logits(mean[None], prototypes, temperature=1.0)[0]  # the mean of the logits: they are linear
        self.center.lerp_(logits.to(dtype), (totals[-1] > 0).to(dtype) * (1 - self.momentum))
