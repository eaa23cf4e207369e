"""Signs that a run is ill: losses that are not finite, and features that collapse without any loss saying so."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from poa import distributed
from poa.errors import UserError

_RANKME_EPS = 1e-7
_MOST_NAMED = 4


class NonFiniteLoss(UserError):  # noqa: N818  # named like the thing, as BadImage is
    """A loss is infinite or not a number."""


def check_finite(losses: Mapping[str, Tensor | float], *, step: int) -> None:
    """Stop before a loss that is not finite reaches the parameters.

    Processes agree: if a tensor is not finite on one of them, all raise, so that none waits for the others for ever.
    Plain numbers are taken to be the same on all processes already.

    Args:
        losses: Losses by name, at least one, each a single number; the same names on all processes.
        step: Number of the step, for the message.

    Raises:
        NonFiniteLoss: At least one is not finite; names the first.
    """
    tensors = [loss for loss in losses.values() if isinstance(loss, Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")
    values = torch.stack([torch.as_tensor(loss, device=device).detach().float() for loss in losses.values()])
    bad = (~values.isfinite()).float()
    if tensors:
        bad = distributed.sum_over_ranks(bad)
    if not bad.any():
        return
    found = [
        f"{name} on another process" if math.isfinite(value) else f"{name} = {value}"
        for name, value, is_bad in zip(losses, values.tolist(), bad.tolist(), strict=True)
        if is_bad
    ]
    more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    raise NonFiniteLoss(
        f"Not finite at step {step}: {', '.join(found[:_MOST_NAMED])}{more}. The step was not taken and the last "
        "checkpoint is kept. Go on with --resume --precision fp32, or start a new run with a lower --lr."
    )


@contextmanager
def explained_memory() -> Iterator[None]:
    """Say in a sentence that the memory of the device, or that of the loader's processes, is full.

    Raises:
        UserError: It is.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" in str(error):  # what torch says when the system has ended one
            raise UserError(
                f"{str(error).splitlines()[0].rstrip('. ')}. Go on with --resume and fewer --workers, or give them "
                "more memory (in containers also --shm-size)."
            ) from error
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise UserError(
            f"The memory is full: {str(error).splitlines()[0]} Lower --batch-size or split it with --accumulate; "
            "a run that has begun can go on with --resume --checkpointing."
        ) from error


@torch.no_grad()
def rankme(features: Float[Tensor, "n d"]) -> float:
    """Effective rank of features: the exponential of the entropy of their singular values.

    Near 1 if all features lie on a line, at most min(n, d). Source: RankMe (Garrido et al., 2023), Eq. 1.

    Args:
        features: One row an image, not normalised.

    Returns:
        The effective number of dimensions.
    """
    values = torch.linalg.svdvals(features.float())
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + _RANKME_EPS
    return float((-shares * shares.log()).sum().exp())


@torch.no_grad()
def mean_cosine(features: Float[Tensor, "n d"]) -> float:
    """Mean cosine between the features of two different images, in time linear in their number.

    The squared length of the sum of unit vectors is the sum of all their cosines, those with themselves included.

    Args:
        features: One row an image, at least two rows.

    Returns:
        A number from -1 to 1; 1 if all images look the same to the model.
    """
    units = F.normalize(features.float(), dim=1)
    num_rows = units.shape[0]
    between = units.sum(dim=0).square().sum() - units.square().sum()
    return float(between / (num_rows * (num_rows - 1)))


class _Symptom(NamedTuple):
    """A sentence in two parts, with the step between them."""

    what: str
    why: str


class _Spell(NamedTuple):
    """How long a symptom has been there in every look."""

    since: int
    num_looks: int
    is_told: bool


class CollapseWatch:
    """Looks at a run now and then, and says in a sentence that it has collapsed.

    Without KoLeo a small run can collapse in silence: an untrained ViT gives almost the same feature for all images,
    Sinkhorn-Knopp then makes uniform targets, and the loss stays at exactly ln(prototypes). A symptom is told once it
    has been there for ``num_looks`` looks in a row, and again only after it was gone.

    Args:
        grace_steps: Nothing is told before this step: every run starts like a collapsed one.
        num_looks: How many looks in a row must show a symptom.
    """

    def __init__(self, *, grace_steps: int, num_looks: int = 3) -> None:
        self._grace_steps = grace_steps
        self._num_looks = num_looks
        self._spells: dict[str, _Spell] = {}

    def look(
        self, step: int, *, losses: Mapping[str, float], log_prototypes: float, rank: float, cosine: float
    ) -> list[str]:
        """Take the present state into account.

        Args:
            step: Number of steps done.
            losses: Mean cross-view loss by branch, not weighted, averaged over the heads.
            log_prototypes: ln(number of prototypes), averaged over the same heads.
            rank: RankMe of the teacher's features.
            cosine: Mean cosine of the teacher's features.

        Returns:
            Sentences for the user; none for a healthy run.
        """
        symptoms = _symptoms(losses, log_prototypes=log_prototypes, rank=rank, cosine=cosine)
        sentences = []
        spells = {}
        for name, symptom in symptoms.items():
            since, num_looks, is_told = self._spells.get(name, _Spell(since=step, num_looks=0, is_told=False))
            is_due = num_looks + 1 >= self._num_looks and step >= self._grace_steps
            if is_due and not is_told:
                sentences.append(f"{symptom.what} since step {since}: {symptom.why}")
            spells[name] = _Spell(since=since, num_looks=num_looks + 1, is_told=is_told or is_due)
        self._spells = spells
        return sentences


def _symptoms(losses: Mapping[str, float], *, log_prototypes: float, rank: float, cosine: float) -> dict[str, _Symptom]:
    """Symptoms of this moment by name."""
    cure = "Raise --losses.koleo or --lr, or use fewer --heads.prototypes."
    stuck = {
        f"uniform {branch}": _Symptom(
            f"The {branch} student sits at ln(prototypes) = {log_prototypes:.2f}", f"its targets are uniform. {cure}"
        )
        for branch, loss in losses.items()
        if abs(loss - log_prototypes) < 0.01 * log_prototypes
    }
    alike = {
        "alike": _Symptom(
            f"The teacher's features are almost the same for all images (mean cosine {cosine:.3f})",
            f"it does not tell images apart. {cure}",
        )
    }
    flat = {
        "flat": _Symptom(
            f"The teacher's features fill about {rank:.1f} dimensions (RankMe)",
            f"they have collapsed to a point or a line. {cure}",
        )
    }
    return stuck | (alike if cosine > 0.99 else {}) | (flat if rank < 2 else {})
