import math
from typing import Any

import pytest

from poa.training.best import best_step, checks_since_best, score_of, scores_of


@pytest.mark.parametrize(
    ("row", "score"),
    [
        ({"step": 1, "loss": 2.0}, None),
        ({"step": 1, "rankme": 3.0, "cosine": 0.5}, None),
        ({"step": 1, "rankme": 3.0, "knn/32x2": 40.0, "knn/64x3": 60.0}, 50.0),
        ({"step": 1, "knn/64x3": None}, -math.inf),
        ({"step": 1, "rankme": 3.0, "knn/32x2": math.nan, "knn/64x3": 60.0}, -math.inf),
    ],
)
def test_a_step_is_scored_by_labels_alone(row: dict[str, Any], score: float | None) -> None:
    assert score_of(row) == score


def knn(*values: float | None) -> dict[int, float]:
    return scores_of([{"step": 10 * number, "knn/64x3": value} for number, value in enumerate(values, start=1)])


@pytest.mark.parametrize(
    ("values", "best", "since"),
    [
        ((), None, 0),
        ((1.0, 2.0, 3.0), 30, 0),
        ((1.0, 3.0, 2.0, 2.9), 20, 2),
        ((1.0, 3.0, 3.0), 20, 1),
        ((1.0, None), 10, 1),
        ((None, None), None, 1),
    ],
)
def test_the_first_of_the_highest_scores_is_best(
    values: tuple[float | None, ...], best: int | None, since: int
) -> None:
    scores = knn(*values)
    assert best_step(scores, among=range(100)) == best
    assert checks_since_best(scores) == since


def test_only_kept_steps_are_best() -> None:
    assert best_step(knn(1.0, 3.0, 2.0), among=[10, 30, 40]) == 30
    assert best_step(knn(1.0), among=[40]) is None
