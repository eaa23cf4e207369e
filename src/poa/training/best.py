"""Which step of a run is best, by the k-NN scores that are written to its metrics while it trains.

RankMe, which needs no labels, does not tell: in a run of ours it was highest after a tenth of the steps, where k-NN was
four to five points lower than at the end (ADR 0037).
"""

import math
from collections.abc import Collection, Iterable, Mapping
from statistics import fmean
from typing import Any


def num_scored(row: Mapping[str, Any]) -> int:
    """How many sizes have a k-NN score."""
    return len(_knn(row))


def _knn(row: Mapping[str, Any]) -> list[Any]:
    return [value for name, value in row.items() if name.startswith("knn/")]


def score_of(row: Mapping[str, Any]) -> float | None:
    """The mean of the k-NN scores of a step, minus infinity where features were not finite; None without scores."""
    knn = _knn(row)
    if not knn:
        return None
    return fmean(knn) if all(value is not None and math.isfinite(value) for value in knn) else -math.inf


def scores_of(rows: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """Scores by step, in the order of the steps."""
    return {int(row["step"]): score for row in rows if (score := score_of(row)) is not None}


def best_step(scores: Mapping[int, float], *, among: Collection[int]) -> int | None:
    """The step with the highest score, the first of several; None if none of them has one."""
    steps = [step for step, score in scores.items() if step in among and score > -math.inf]
    return max(steps, key=lambda step: scores[step], default=None)


def checks_since_best(scores: Mapping[int, float]) -> int:
    """How many steps in a row were scored after the highest score without surpassing it."""
    values = list(scores.values())
    return len(values) - 1 - values.index(max(values)) if values else 0
