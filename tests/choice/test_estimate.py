"""Scores of sizes that are not scored."""

from math import log2

import numpy as np
import pytest

from poa.choice.estimate import FOLDS, estimate, spread
from poa.elastic.space import Size

GRID = [Size(width, (depth,)) for width in range(64, 384, 32) for depth in range(2, 12)]


def smooth(size: Size) -> float:
    """A score that grows ever more slowly with width and depth."""
    width, depth = log2(size.width) - 6, log2(size.depths[0]) - 1
    return 40 + 9 * width + 5 * depth - 2 * width * width - depth * depth - 0.5 * width * depth


def test_a_smooth_score_is_found_from_a_few_sizes() -> None:
    scored = {size: smooth(size) for size in spread(GRID, 24)}
    wanted = [size for size in GRID if size not in scored]
    found = estimate(scored, wanted)
    assert found is not None
    assert found.held_out == 24
    assert found.error < 0.1
    assert max(abs(found.scores[size] - smooth(size)) for size in wanted) < 0.1


def test_the_error_is_that_of_sizes_which_were_not_fitted() -> None:
    """Noise of one point cannot be foreseen: its estimate on held-out sizes is near that on sizes never seen."""
    noise = dict(zip(GRID, np.random.default_rng(0).normal(size=len(GRID)), strict=True))
    scored = {size: smooth(size) + noise[size] for size in spread(GRID, 40)}
    wanted = [size for size in GRID if size not in scored]
    found = estimate(scored, wanted)
    assert found is not None
    really = np.sqrt(np.mean([(found.scores[size] - smooth(size) - noise[size]) ** 2 for size in wanted]))
    assert found.error == pytest.approx(really, rel=0.3)
    assert 0.8 < found.error < 1.5


def test_a_held_out_size_does_not_help_its_own_estimate() -> None:
    scored = {size: smooth(size) for size in spread(GRID, 6 * FOLDS)}
    odd = next(iter(scored))
    found = estimate(scored | {odd: 0.0}, GRID[:1])
    assert found is not None
    assert found.error > scored[odd] / len(scored) ** 0.5 * 0.9


def test_too_few_scores_give_no_estimate() -> None:
    scored = {size: smooth(size) for size in spread(GRID, 11)}
    assert estimate(scored, GRID) is None
    assert estimate({}, GRID) is None
    assert estimate({size: smooth(size) for size in GRID}, []) is None


def test_sizes_with_several_depths_and_with_a_constant_one() -> None:
    grid = [Size(width, (first, 3)) for width in range(64, 320, 32) for first in range(2, 8)]
    scored = {size: smooth(size) for size in spread(grid, 24)}
    found = estimate(scored, [size for size in grid if size not in scored])
    assert found is not None
    assert found.error < 0.2


def test_a_spread_has_the_corners_and_leaves_no_gap() -> None:
    chosen = spread(GRID, 24)
    assert len(chosen) == 24
    assert chosen == sorted(chosen)
    corners = {Size(width, (depth,)) for width in (64, 352) for depth in (2, 11)}
    assert corners <= set(chosen)
    assert len({size.width for size in chosen}) > 5
    assert len({size.depths for size in chosen}) > 5
    assert spread(GRID[:5], 24) == GRID[:5]


def test_estimates_are_shares_of_images() -> None:
    scored = {size: 99.9 - 40 / size.width - 300 / size.depths[0] ** 2 for size in spread(GRID, 24)}
    found = estimate(scored, GRID)
    assert found is not None
    assert 0 <= min(found.scores.values()) <= max(found.scores.values()) <= 100
