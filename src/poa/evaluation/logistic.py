"""Multinomial logistic regression on frozen features, for many strengths of the penalty at once.

For standardised rows x of n images it finds, for each strength, the weights and biases with the least
``mean cross-entropy + strength / 2 * sum of squared weights``; biases are not penalised. scikit-learn's ``C`` is
``1 / (strength * n)``.
"""

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from poa.evaluation.protocol import column_statistics, full_precision

_PAIRS = 2**24
"""Logits, and numbers of a copied block of rows, that are held at once: 64 MB a copy."""
_WEIGHTS = 2**23
"""Weights that are fitted at once; L-BFGS holds about 26 copies, 0.9 GB."""
_MEMORY = 10
_MOST_STEPS = 500
_MOST_HALVINGS = 15
_GOOD_ENOUGH = 1e-7
"""Stop when the next step promises less than this share of the loss, near what float32 can tell apart."""
_SUFFICIENT = 1e-4
_LEAST_VARIANCE = 1e-10
"""Of an axis, as a share of the largest; standard deviations below 1e-5 are rounding of float32 rows."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LogisticFit:
    """Classifiers of standardised features, one for each strength.

    Attributes:
        strengths: Of the penalty, in the order asked for.
        mean: Of each column of the features, taken off first.
        scale: What each column is multiplied with then; 0 for constant columns.
        weights: Of the standardised features.
        bias: Of the classes.
    """

    strengths: tuple[float, ...]
    mean: Float[Tensor, " width"]
    scale: Float[Tensor, " width"]
    weights: Float[Tensor, "strengths classes width"]
    bias: Float[Tensor, "strengths classes"]

    @torch.inference_mode()
    def logits(self, features: Float[Tensor, "images width"]) -> Float[Tensor, "strengths images classes"]:
        """Logits of images, on the device of the weights; give no more images than fit in memory.

        Args:
            features: One row an image, as the network gives them.
        """
        rows = (features.to(self.mean.device, torch.float32) - self.mean) * self.scale
        with full_precision(rows.device):
            return rows @ self.weights.mT + self.bias[:, None, :]


@torch.inference_mode()
def fit_logistic(
    features: Float[Tensor, "images width"],
    labels: Int[Tensor, " images"],
    *,
    strengths: Sequence[float],
    num_classes: int,
    device: torch.device,
) -> LogisticFit:
    """Fit a classifier for each strength by full-batch L-BFGS in float32.

    Weights are sought along the principal axes of the rows. That changes neither penalty nor result, but there the
    curvature of the loss is known nearly, so that no step size is needed and tens of steps do. Strengths are fitted
    together as far as their weights fit in memory, strong ones first; the next ones start from there.

    Args:
        features: One row an image, finite; read twice in chunks. A float32 copy is held on ``device``.
        labels: From 0 to ``num_classes - 1``; a class without images gets no finite bias, so leave none out.
        strengths: Positive.
        num_classes: Number of classes.
        device: Where to compute.
    """
    mean, scale = column_statistics(features, rows_at_once=_rows_at_once(features.shape[1]), device=device)
    axes, variances = _principal_axes(features, mean, scale)
    problem = _Problem(_rotate(features, mean, scale, axes), labels.to(device), variances, num_classes)
    by_strength: dict[float, Tensor] = {}
    at_once = max(1, _WEIGHTS // (num_classes * len(variances)))
    start = torch.zeros(1, num_classes, len(variances), device=device)
    ordered = sorted(set(strengths), reverse=True)
    with full_precision(device):
        for group in (ordered[number : number + at_once] for number in range(0, len(ordered), at_once)):
            found = _minimise(problem, torch.tensor(group, device=device), start.repeat(len(group), 1, 1))
            by_strength |= dict(zip(group, found, strict=True))
            start = found[-1:]
        along = torch.stack([by_strength[strength] for strength in strengths])
        weights = along[..., :-1] @ axes.T
    return LogisticFit(tuple(strengths), mean, scale, weights, along[..., -1])


def _rows_at_once(width: int) -> int:
    return max(1, _PAIRS // max(width, 1))


def _principal_axes(
    features: Float[Tensor, "images width"], mean: Float[Tensor, " width"], scale: Float[Tensor, " width"]
) -> tuple[Float[Tensor, "width axes"], Float[Tensor, "axes_and_bias"]]:
    """Directions in which the standardised rows vary, and how much; 1 for the constant column of the bias.

    In float64, as float32 would take its rounding for axes of its own.
    """
    width = features.shape[1]
    parts = torch.split(features, _rows_at_once(width))
    rows = (((part.to(mean.device, torch.float32) - mean) * scale).double() for part in parts)
    if len(features) < width:
        _, spreads, axes = torch.linalg.svd(torch.cat(list(rows)), full_matrices=False)
        variances, axes = spreads.square() / len(features), axes.T
    else:
        covariance = torch.zeros(width, width, dtype=torch.float64, device=mean.device)
        for part in rows:
            covariance += part.T @ part
        variances, axes = torch.linalg.eigh(covariance / len(features))
    kept = variances > _LEAST_VARIANCE * variances.max()
    one = torch.ones(1, device=mean.device)
    return axes[:, kept].float(), torch.cat([variances[kept].float(), one])


def _rotate(
    features: Float[Tensor, "images width"],
    mean: Float[Tensor, " width"],
    scale: Float[Tensor, " width"],
    axes: Float[Tensor, "width axes"],
) -> Float[Tensor, "images axes_and_bias"]:
    rows = torch.ones(len(features), axes.shape[1] + 1, device=mean.device)
    at_once = _rows_at_once(features.shape[1])
    with full_precision(mean.device):
        for part, place in zip(torch.split(features, at_once), torch.split(rows, at_once), strict=True):
            place[:, :-1] = ((part.to(mean.device, torch.float32) - mean) * scale) @ axes
    return rows


class _Point(NamedTuple):
    """Weights of some strengths, and what the loss is like there."""

    weights: Float[Tensor, "some classes axes"]
    loss: Float[Tensor, " some"]
    gradient: Float[Tensor, "some classes axes"]
    curvature: Float[Tensor, " some"]

    def take(self, kept: Tensor) -> "_Point":
        return _Point(*(part[kept] for part in self))

    def replace(self, which: Tensor, other: "_Point") -> "_Point":
        return _Point(*(part.index_copy(0, which, new) for part, new in zip(self, other, strict=True)))


class _Problem(NamedTuple):
    """Rows along their principal axes with a last column of ones, and their classes.

    Attributes:
        variances: Mean square of each column of ``rows``.
    """

    rows: Float[Tensor, "images axes"]
    labels: Int[Tensor, " images"]
    variances: Float[Tensor, " axes"]
    num_classes: int

    def penalties(self, strengths: Float[Tensor, " some"]) -> Float[Tensor, "some 1 axes"]:
        """The strength for each weight, 0 for biases."""
        penalised = torch.ones_like(self.variances)
        penalised[-1] = 0
        return strengths[:, None, None] * penalised

    def evaluate(self, weights: Float[Tensor, "some classes axes"], strengths: Float[Tensor, " some"]) -> _Point:
        """Loss and gradient; the curvature is the mean over images and classes of ``p * (1 - p)``."""
        some, classes, axes = weights.shape
        flat = weights.reshape(some * classes, axes)
        gradient = torch.zeros_like(flat)
        loss, curvature = torch.zeros(2, some, dtype=torch.float64, device=flat.device)
        at_once = _rows_at_once(some * classes)
        for rows, labels in zip(torch.split(self.rows, at_once), torch.split(self.labels, at_once), strict=True):
            shares = (rows @ flat.T).view(len(rows), some, classes).log_softmax(dim=2)
            images = torch.arange(len(rows), device=flat.device)
            loss -= shares[images, :, labels].double().sum(dim=0)
            shares.exp_()
            curvature += (1 - shares.square().sum(dim=2)).double().sum(dim=0)
            shares[images, :, labels] -= 1
            gradient += shares.view(len(rows), -1).T @ rows
        num_images, penalties = len(self.rows), self.penalties(strengths)
        return _Point(
            weights,
            loss / num_images + 0.5 * (penalties * weights.square()).sum(dim=(1, 2)),
            gradient.view_as(weights) / num_images + penalties * weights,
            (curvature / (num_images * classes)).float(),
        )


class _Move(NamedTuple):
    """A step taken, how the gradient changed over it, and one over the product of the two."""

    step: Float[Tensor, "some classes axes"]
    change: Float[Tensor, "some classes axes"]
    inverse: Float[Tensor, "some 1 1"]


def _dot(a: Float[Tensor, "some classes axes"], b: Float[Tensor, "some classes axes"]) -> Float[Tensor, "some 1 1"]:
    return (a * b).sum(dim=(1, 2), keepdim=True)


def _minimise(
    problem: _Problem, strengths: Float[Tensor, " some"], start: Float[Tensor, "some classes axes"]
) -> Float[Tensor, "some classes axes"]:
    """L-BFGS for each strength by itself; those that are done leave the batch."""
    best, numbers = start.clone(), torch.arange(len(start), device=start.device)
    point, moves = problem.evaluate(start, strengths), deque[_Move](maxlen=_MEMORY)
    for _ in range(_MOST_STEPS):
        moved = _step(problem, point, strengths, moves)
        going = moved.loss < point.loss
        best[numbers] = moved.weights
        moves.append(_move(point, moved))
        point = moved
        if not bool(going.all()):
            numbers, strengths, point = numbers[going], strengths[going], point.take(going)
            moves = deque((_Move(*(part[going] for part in move)) for move in moves), maxlen=_MEMORY)
        if len(numbers) == 0:
            return best
    _log.warning(
        "Logistic regression stopped after %d steps, before it had converged for strengths of %s.",
        _MOST_STEPS,
        ", ".join(f"{strength:.1e}" for strength in strengths.tolist()),
    )
    return best


def _step(problem: _Problem, point: _Point, strengths: Float[Tensor, " some"], moves: deque[_Move]) -> _Point:
    """Where a step along the direction leads, halved until the loss goes down; as it was where that is of no use."""
    direction = _direction(problem, point, strengths, moves)
    slope = _dot(point.gradient, direction).flatten().double()
    left = (-slope > _GOOD_ENOUGH * point.loss).nonzero()[:, 0]
    moved = point
    for halvings in range(_MOST_HALVINGS):
        if len(left) == 0:
            break
        length = 0.5**halvings
        tried = problem.evaluate(point.weights[left] + length * direction[left], strengths[left])
        lower = tried.loss <= point.loss[left] + _SUFFICIENT * length * slope[left]
        moved, left = moved.replace(left[lower], tried.take(lower)), left[~lower]
    return moved


def _direction(
    problem: _Problem, point: _Point, strengths: Float[Tensor, " some"], moves: deque[_Move]
) -> Float[Tensor, "some classes axes"]:
    """Two-loop recursion from the Hessian that the loss would have if all classes were as sure as on average."""
    curvature = point.curvature.clamp_min(1e-8)[:, None, None]  # none is left once all images are certain
    expected = 1 / (curvature * problem.variances + problem.penalties(strengths))
    q, shares = point.gradient.clone(), []
    for move in reversed(moves):
        shares.append(move.inverse * _dot(move.step, q))
        q -= shares[-1] * move.change
    q *= expected
    if moves:
        last = moves[-1]
        ratio = 1 / (last.inverse * _dot(last.change, expected * last.change))
        q *= torch.where(last.inverse > 0, ratio, 1.0)
    for move, share in zip(moves, reversed(shares), strict=True):
        q += (share - move.inverse * _dot(move.change, q)) * move.step
    return -q


def _move(point: _Point, moved: _Point) -> _Move:
    step, change = moved.weights - point.weights, moved.gradient - point.gradient
    product = _dot(step, change)
    is_safe = product > 1e-10 * _dot(change, change)  # else it is rounding, and the move is passed over
    return _Move(step, change, torch.where(is_safe, 1 / product, 0.0))
