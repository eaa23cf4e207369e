"""The protocol by which networks are timed."""

import pytest

from choice.clocks import Machine
from poa.choice.timing import LEAST_ROUNDS, PASSES, ROUNDS, WARM_UP, Times, interruptions, times_of

SECONDS = {"small": 0.001, "middle": 0.002, "large": 0.004}


def timed(machine: Machine, *, seconds: float = 100.0) -> dict[str, Times]:
    passes = machine.passes(list(SECONDS))
    return times_of(passes, seconds=seconds, clock=machine.clock, interruptions=machine.interruptions)


def test_medians_are_the_times_of_the_networks() -> None:
    found = timed(Machine(SECONDS))
    assert {name: each.median for name, each in found.items()} == pytest.approx(SECONDS)
    assert {each.passes for each in found.values()} == {ROUNDS * PASSES}
    assert found["large"].p95 == pytest.approx(0.004 * 1.02)


def test_interrupted_passes_count_for_the_95_percent_alone() -> None:
    found = timed(Machine(SECONDS, is_busy=lambda number: number % 7 > 1))
    assert {name: each.median for name, each in found.items()} == pytest.approx(SECONDS, rel=0.02)
    assert all(each.passes / 2 < each.interrupted < each.passes for each in found.values())
    assert min(each.p95 for each in found.values()) > 1.0


def test_where_nearly_all_passes_are_interrupted_all_count() -> None:
    found = timed(Machine(SECONDS, is_busy=lambda _: True))
    assert all(each.interrupted == each.passes for each in found.values())
    assert found["small"].median == pytest.approx(1.001, rel=0.001)


def test_all_networks_take_turns_and_every_second_round_is_reversed() -> None:
    machine = Machine(SECONDS)
    timed(machine)
    rounds = machine.ran[WARM_UP * len(SECONDS) :]
    visits = rounds[:: 1 + PASSES]
    assert visits[:6] == ["small", "middle", "large", "large", "middle", "small"]
    assert len(visits) == ROUNDS * len(SECONDS)
    assert rounds[: 1 + PASSES] == ["small"] * (1 + PASSES)


def test_long_passes_are_made_less_often() -> None:
    machine = Machine({"small": 0.001, "huge": 2.0})
    found = times_of(machine.passes(["small", "huge"]), seconds=1.0, clock=machine.clock, interruptions=lambda: 0)
    assert machine.ran.count("huge") == 1 + LEAST_ROUNDS
    assert found["huge"].passes == LEAST_ROUNDS
    assert found["small"].passes == LEAST_ROUNDS * PASSES
    assert found["huge"].median == pytest.approx(2.0, rel=0.03)


def test_a_machine_that_slows_down_does_so_for_all_alike() -> None:
    found = timed(Machine(SECONDS, slows_down=0.5))
    small, middle, large = (found[name].median for name in SECONDS)
    assert middle / small == pytest.approx(2, rel=0.05)
    assert large / small == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, LEAST_ROUNDS), (0.2, 7), (100.0, ROUNDS)])
def test_no_round_begins_after_the_time_is_over(seconds: float, rounds: int) -> None:
    machine = Machine(SECONDS)
    found = timed(machine, seconds=seconds)
    assert found["small"].passes == rounds * PASSES


def test_interruptions_are_counted() -> None:
    assert 0 <= interruptions() <= interruptions()
