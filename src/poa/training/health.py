"""Failures of a training: losses that are not finite, full memory, and collapse that no loss shows."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from poa import distributed
from poa.errors import UserError

_RANKME_EPS = 1e-7
_MOST_NAMED = 4


class MemoryRanOut(UserError):  # noqa: N818  # as BadImage
    """There was too little memory for a step."""


class NonFinite(UserError):  # noqa: N818  # as BadImage
    """A training has come to numbers that are infinite or not a number."""


class NonFiniteLoss(NonFinite):
    """A loss is infinite or not a number."""


def check_finite(losses: Mapping[str, Tensor | float], *, step: int, is_updated: bool = False) -> None:
    """Stop where a loss is not finite: before it reaches the parameters, or, if they are updated, right after.

    Processes agree: if a tensor is not finite on one of them, all raise, so that none waits for the others for ever.
    Plain numbers are assumed to be the same on all processes.

    Raises:
        NonFiniteLoss: At least one is not finite; names the first few.
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
    were = "were updated with that, and are not saved" if is_updated else "were not updated"
    raise NonFiniteLoss(f"Not finite at step {step}: {_some(found)}. The weights {were}.")


def check_state(state: Mapping[str, Any]) -> None:
    """Refuse to keep tensors, of weights or of an optimizer, that are not finite.

    Raises:
        NonFinite: At least one is not; names the first few.
    """
    if bad := not_finite(state):
        raise NonFinite(f"Not finite after the last step: {_some(bad)}; no checkpoint of it is written.")


def not_finite(state: Mapping[str, Any]) -> list[str]:
    """Dotted names of tensors with values that are infinite or not a number."""
    return [name for name, value in _tensors("", state) if value.is_floating_point() and not _is_finite(value)]


def _is_finite(value: Tensor) -> bool:
    """Whether all values are; their sum, found in a tenth of the time, is finite for all but enormous ones."""
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """All tensors in containers, with dotted names."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in items:
            yield from _tensors(f"{name}.{key}" if name else str(key), inner)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{', '.join(names[:_MOST_NAMED])}{more}"


@contextmanager
def explained_memory() -> Iterator[None]:
    """Turn the errors of full memory into a ``MemoryRanOut``."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise MemoryRanOut(
            f"Memory ran out: {str(error).splitlines()[0]} Lower --batch-size or split it with --accumulate; to "
            "resume a run, add --resume --checkpointing."
        ) from error


@torch.no_grad()
def rankme(features: Float[Tensor, "n d"]) -> float:
    """Effective rank of features: the exponential of the entropy of their singular values.

    Near 1 if all features lie on a line, at most min(n, d); NaN if they are not finite. Features are not normalised.
    Source: RankMe (Garrido et al., 2023), Eq. 1.
    """
    if not features.isfinite().all():
        return math.nan
    values = torch.linalg.svdvals(features.float())
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny) + _RANKME_EPS
    return float((-shares * shares.log()).sum().exp())


@torch.no_grad()
def mean_cosine(features: Float[Tensor, "n d"]) -> float:
    """Mean cosine between the features of two different images, in time linear in their number.

    The squared length of the sum of unit vectors is the sum of all their cosines, those with themselves included. It is
    1 if all features are the same; there must be at least two rows.
    """
    units = F.normalize(features.float(), dim=1)
    num_rows = units.shape[0]
    between = units.sum(dim=0).square().sum() - units.square().sum()
    return float(between / (num_rows * (num_rows - 1)))


class _Symptom(NamedTuple):
    """A sentence in two parts, with the step between them."""

    what: str
    why: str


class _Persistence(NamedTuple):
    """For how many checks in a row a symptom has been there, and whether it was reported."""

    since: int
    num_checks: int
    is_reported: bool


class CollapseCheck:
    """Checks now and then whether a run has collapsed, and reports it in a sentence.

    Without KoLeo a small run can collapse in silence: an untrained ViT gives almost the same feature for all images,
    Sinkhorn-Knopp then makes uniform targets, and the loss stays at exactly ln(prototypes). A symptom is reported once
    ``num_checks`` checks in a row have found it, and again only after it was gone; nothing is reported before step
    ``grace_steps``, since every run starts like a collapsed one. ``cure`` is a sentence on what to do.
    """

    def __init__(self, *, grace_steps: int, num_checks: int = 3, cure: str) -> None:
        self._cure = cure
        self._grace_steps = grace_steps
        self._num_checks = num_checks
        self._persistent: dict[str, _Persistence] = {}

    def check(
        self, step: int, *, losses: Mapping[str, float], log_prototypes: float, rank: float, cosine: float
    ) -> list[str]:
        """Sentences for the user, none for a healthy run.

        Args:
            step: Number of steps done.
            losses: Mean cross-view loss by branch, not weighted, averaged over the heads.
            log_prototypes: ln(number of prototypes), averaged over the same heads.
            rank: RankMe of the teacher's features.
            cosine: Mean cosine of the teacher's features.
        """
        symptoms = _symptoms(losses, log_prototypes=log_prototypes, rank=rank, cosine=cosine, cure=self._cure)
        sentences = []
        persistent = {}
        for name, symptom in symptoms.items():
            since, num_checks, is_reported = self._persistent.get(name, _Persistence(step, 0, is_reported=False))
            is_due = num_checks + 1 >= self._num_checks and step >= self._grace_steps
            if is_due and not is_reported:
                sentences.append(f"{symptom.what} since step {since}: {symptom.why}")
            persistent[name] = _Persistence(since, num_checks + 1, is_reported=is_reported or is_due)
        self._persistent = persistent
        return sentences


def _symptoms(
    losses: Mapping[str, float], *, log_prototypes: float, rank: float, cosine: float, cure: str
) -> dict[str, _Symptom]:
    symptoms = {
        f"uniform {branch}": _Symptom(
            f"The loss of the {branch} student has been ln(prototypes) = {log_prototypes:.2f}",
            f"its targets are uniform. {cure}",
        )
        for branch, loss in losses.items()
        if abs(loss - log_prototypes) < 0.01 * log_prototypes
    }
    if cosine > 0.99:
        symptoms["alike"] = _Symptom(
            f"The teacher's features have been almost the same for all images (mean cosine {cosine:.3f})",
            f"it does not tell images apart. {cure}",
        )
    if rank < 2:
        symptoms["flat"] = _Symptom(
            f"The teacher's features have had about {rank:.1f} dimensions (RankMe)",
            f"they have collapsed to a point or a line. {cure}",
        )
    return symptoms
