"""What a run with a constant learning rate does before its cool-down does not depend on its length."""

from typing import Any

import pytest

import tiny
from poa.config.pretraining import Config
from poa.errors import UserError
from poa.models.registry import family_of
from poa.pretraining.schedule import epochs_to_cool_down, schedules_of, steps_before_cooldown, subnets_of

STEPS = 10
"""Of an epoch."""


def constant(**over: Any) -> Config:
    return tiny.config(**tiny.merged({"optimizer": {"schedule": "constant", "warmup_epochs": 2}, "epochs": 10}, over))


@pytest.mark.parametrize(
    ("over", "steps"),
    [
        ({}, 80),
        ({"epochs": 11}, 88),
        ({"optimizer": {"cooldown_epochs": 2.55}}, 74),
        ({"optimizer": {"cooldown_epochs": 0}}, 100),
        ({"optimizer": {"cooldown_epochs": 99}}, 0),
        ({"optimizer": {"schedule": "cosine"}}, 0),
    ],
)
def test_steps_before_the_cooldown(over: dict[str, Any], steps: int) -> None:
    assert steps_before_cooldown(constant(**over), steps_per_epoch=STEPS) == steps


@pytest.mark.parametrize("cooldown", [None, 0.0, 3.0, 2.55])
@pytest.mark.parametrize("after", [0, 1, 79, 80, 81])
def test_the_shortest_run_that_cools_down_from_a_step(cooldown: float | None, after: int) -> None:
    config = constant(optimizer={"cooldown_epochs": cooldown})
    epochs = epochs_to_cool_down(config, after=after, steps_per_epoch=STEPS)
    lengths = [config.model_copy(update={"epochs": number}) for number in range(1, epochs + 1)]
    before = [steps_before_cooldown(each, steps_per_epoch=STEPS) for each in lengths]
    assert before[-1] >= after
    assert epochs == 1 or before[-2] < after


FLAT: dict[str, Any] = {"distill": {"weight": [1.0, 0.5]}}


@pytest.mark.parametrize(
    "over", [FLAT, {"sampling": "sandwich"}, {"method": "distill", **FLAT}, {"elastic_samples": 3}], ids=str
)
def test_longer_runs_begin_the_same(over: dict[str, Any]) -> None:
    """All that is scheduled, and the sizes of each step; it ends as a cosine does."""
    shorter, longer = (constant(**over, epochs=epochs) for epochs in (10, 20))
    first, second = (schedules_of(config, steps_per_epoch=STEPS) for config in (shorter, longer))
    sizes = [subnets_of(config, family_of(config), steps_per_epoch=STEPS) for config in (shorter, longer)]
    for step in range(81):
        assert first.at(step) == second.at(step)
        assert sizes[0](step) == sizes[1](step)
    assert first.at(81) != second.at(81)
    assert second.at(20) == second.at(160)
    end = schedules_of(tiny.config(**over, epochs=10), steps_per_epoch=STEPS).at(100)
    for found, wanted in zip(first.at(100), end, strict=True):
        assert found == pytest.approx(wanted)


SLIM: dict[str, Any] = {"method": "slimclr-simclr"}


@pytest.mark.parametrize(
    ("over", "named"),
    [
        ({"optimizer": {"schedule": "cosine", "cooldown_epochs": 1}}, "cooldown-epochs has no effect on a cosine"),
        ({"optimizer": {"warmup_epochs": 8.5}}, r"8\.5 and 2 epochs, are longer than the run of 10\. Lower"),
        ({"optimizer": {"cooldown_epochs": 9}}, "2 and 9 epochs, are longer"),
        ({"sampling": "widening"}, "widening opens within half of them. Choose another --sampling"),
        (SLIM, "slow start of slimclr-simclr takes half of them by default. Set --slim.slow-start-epochs"),
    ],
)
def test_what_a_constant_rate_does_not_go_with(over: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        schedules_of(constant(**over), steps_per_epoch=STEPS)
    schedules_of(constant(**SLIM, slim={"slow_start_epochs": 3}), steps_per_epoch=STEPS)
