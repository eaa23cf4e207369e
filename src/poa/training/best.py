"""Which step of a run is best, by the scores that are written to its metrics while it trains."""

import math
from collections.abc import Collection, Iterable, Mapping
from statistics import fmean
from typing import Any, NamedTuple


class Score(NamedTuple):
    """What steps are compared by; higher is better."""

    name: str
    value: float
    """Minus infinity where features were not finite."""


def score_of(row: Mapping[str, Any]) -> Score | None:
    """The mean of the k-NN scores of a step if there are any, else RankMe, which needs no labels (arXiv 2210.02885).

    None if the step was not scored.
    """
    knn = [value for name, value in row.items() if name.startswith("knn/")]
    found = knn or [row[name] for name in ("rankme",) if name in row]
    if not found:
        return None
    is_finite = all(value is not None and math.isfinite(value) for value in found)
    return Score("k-NN" if knn else "RankMe", fmean(found) if is_finite else -math.inf)


def scores_of(rows: Iterable[Mapping[str, Any]]) -> dict[int, Score]:
    """Scores by step, in the order of the steps, of one kind: that of the last step that was scored."""
    found = {int(row["step"]): score for row in rows if (score := score_of(row))}
    kind = next((score.name for score in reversed(found.values())), "")
    return {step: score for step, score in found.items() if score.name == kind}


def best_step(scores: Mapping[int, Score], *, among: Collection[int]) -> int | None:
    """The step with the highest score, the first of several; None if none of them has one."""
    steps = [step for step, score in scores.items() if step in among and score.value > -math.inf]
    return max(steps, key=lambda step: scores[step].value, default=None)


def checks_since_best(scores: Mapping[int, Score]) -> int:
    """How many steps in a row were scored after the highest score without surpassing it."""
    values = [score.value for score in scores.values()]
    return len(values) - 1 - values.index(max(values)) if values else 0
