from collections.abc import Sequence

import pytest

from poa.errors import UserError
from poa.losses.slimmable import WEIGHTINGS, width_weights

FOUR = (1.0, 0.75, 0.5, 0.25)


@pytest.mark.parametrize(
    ("weighting", "expected"),
    [
        ("even", (1, 1, 1, 1)),
        ("share", (0.4, 0.3, 0.2, 0.1)),
        ("width", (1, 0.75, 0.5, 0.25)),
        ("scaled-width", (1.6, 1.2, 0.8, 0.4)),
        ("full", (2.5, 1, 1, 1)),
        ("cumulative", (1.538, 1.077, 0.769, 0.615)),
        ("full-next", (1.75, 1, 1, 1)),
    ],
)
def test_official_values(weighting: str, expected: Sequence[float]) -> None:
    assert width_weights(FOUR, weighting=weighting) == pytest.approx(expected, abs=5e-4)


def test_all_weightings_are_tested_and_the_published_one_is_usual() -> None:
    assert [*WEIGHTINGS] == ["even", "share", "width", "scaled-width", "full", "cumulative", "full-next"]
    assert width_weights(FOUR) == width_weights(FOUR, weighting="full")


def test_other_widths() -> None:
    assert width_weights((1.0, 0.5, 0.25)) == (1.75, 1.0, 1.0)
    assert width_weights((1.0, 0.5, 0.25), weighting="share") == (0.571, 0.286, 0.143)  # to three decimals
    assert sum(width_weights((1.0, 0.6, 0.1), weighting="cumulative")) == pytest.approx(3)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_single_width(weighting: str) -> None:
    assert width_weights((1.0,), weighting=weighting) == (1.0,)


@pytest.mark.parametrize("widths", [(), (0.5, 1.0), (1.0, 0.5, 0.5), (0.75, 0.5), (1.0, 0.5, 0.0), (1.0, float("nan"))])
def test_widths_fall_from_one(widths: Sequence[float]) -> None:
    with pytest.raises(UserError, match=r"fall from 1, such as 1, 0\.75.*Put the full width first"):
        width_weights(widths)


def test_unknown_name() -> None:
    with pytest.raises(UserError, match=r"no weighting 'ful' of widths\. Did you mean 'full'\?"):
        width_weights(FOUR, weighting="ful")
