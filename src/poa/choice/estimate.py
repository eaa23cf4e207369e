"""Scores of many sizes from those of a few: a smooth function of width and depths, checked on held-out sizes."""

from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from poa.elastic.space import Size

FOLDS = 5
"""Into which sizes with scores are divided; each is held out once."""
_PENALTY = 1e-3
_LEAST = 2
"""Scores for each coefficient of the function."""

Array = npt.NDArray[np.float64]


class Estimates(NamedTuple):
    """Estimated scores, and how far off they are on held-out sizes (root mean square), of which there are so many."""

    scores: dict[Size, float]
    error: float
    held_out: int


def spread(sizes: Sequence[Size], number: int) -> list[Size]:
    """Sizes that are spread over all, in their order: each next one is the farthest from those before."""
    places = _scaled(sizes, sizes)
    taken = [len(sizes) - 1]
    distances = np.linalg.norm(places - places[-1], axis=1)
    while len(taken) < min(number, len(sizes)):
        taken.append(int(distances.argmax()))
        distances = np.minimum(distances, np.linalg.norm(places - places[taken[-1]], axis=1))
    return [sizes[place] for place in sorted(taken)]


def estimate(scores: Mapping[Size, float], wanted: Sequence[Size]) -> Estimates | None:
    """Estimate the scores of sizes without one; None where there are too few scores to estimate from.

    The function is a polynomial of second degree in the logarithms of width and depths, fitted by least squares with a
    small penalty.
    """
    known = list(scores)
    axes = 1 + len(known[0].depths) if known else 0
    if not wanted or len(known) < _LEAST * ((axes + 1) * (axes + 2) // 2):
        return None
    values = np.array([scores[size] for size in known])
    columns, asked = _columns(_scaled(known, known)), _columns(_scaled(wanted, known))
    places, errors = np.arange(len(known)), np.empty(len(known))
    for fold in range(FOLDS):
        out = places % FOLDS == fold
        errors[out] = _fitted(columns[~out], values[~out], columns[out]) - values[out]
    found = np.clip(_fitted(columns, values, asked), 0.0, 100.0)
    error = float(np.sqrt((errors**2).mean()))
    return Estimates(dict(zip(wanted, map(float, found), strict=True)), error, len(known))


def _scaled(sizes: Sequence[Size], by: Sequence[Size]) -> Array:
    """Logarithms of width and depths, each with mean 0 and standard deviation 1 over the sizes in ``by``."""
    rows, others = (np.log2([(size.width, *size.depths) for size in each]) for each in (sizes, by))
    deviation = others.std(axis=0)
    scaled: Array = (rows - others.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    return scaled


def _columns(rows: Array) -> Array:
    """1, each value, and each product of two."""
    products = [rows[:, a] * rows[:, b] for a, b in combinations_with_replacement(range(rows.shape[1]), 2)]
    return np.column_stack([np.ones(len(rows)), rows, *products])


def _fitted(columns: Array, values: Array, asked: Array) -> Array:
    """What the function that is fitted to values gives elsewhere."""
    penalty = _PENALTY * len(values) * np.diag([0.0] + [1.0] * (columns.shape[1] - 1))
    weights = np.linalg.solve(columns.T @ columns + penalty, columns.T @ values)
    found: Array = asked @ weights
    return found
