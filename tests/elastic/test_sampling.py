from statistics import fmean

import pytest

from poa.elastic.sampling import Sandwich, Widening, by_cost
from poa.elastic.space import SearchSpace, Size, SubnetSchedule

SPACE = SearchSpace.grid([64, 96, 128], [2, 3, 4], bias=2.0)
SMALLEST, COSTS = SPACE.sizes[0], {size: float(size.width * size.depths[0]) for size in SPACE.sizes}
STEPS = 400


def widening(**over: bool) -> Widening:
    return Widening(SubnetSchedule(SPACE, seed=3, samples=2, shared=over.get("shared", False)), STEPS)


def test_sandwich_has_the_smallest_and_what_the_walk_draws() -> None:
    walk = SubnetSchedule(SPACE, seed=3, samples=2)
    for step in range(30):
        sizes = Sandwich(walk)(step, rank=1)
        assert set(sizes) == {*walk(step, rank=1), SMALLEST}
        assert len(sizes) == len(set(sizes))
        assert list(sizes) == sorted(sizes, key=by_cost, reverse=True)
        assert sizes[-1] == SMALLEST


def test_widening_opens_from_the_largest_to_all_by_half_of_the_run() -> None:
    sampler = widening()
    drawn = [sampler(step) for step in range(STEPS)]
    assert all(len(sizes) == 2 for sizes in drawn)
    largest = sorted(set(SPACE.entries[:-1]), key=by_cost)[-2:]
    assert {size for sizes in drawn[:10] for size in sizes} <= set(largest)
    quarter = {size for sizes in drawn[: STEPS // 4] for size in sizes}
    assert SMALLEST not in quarter
    assert len(quarter) > 2
    assert {size for sizes in drawn[STEPS // 2 :] for size in sizes} == set(SPACE.entries[:-1])


def test_widening_is_a_function_of_seed_step_and_rank() -> None:
    assert [widening()(step) for step in (300, 7)] == [widening()(step) for step in (300, 7)]
    apart = [widening()(step, rank=0) != widening()(step, rank=1) for step in range(200, 220)]
    assert any(apart)
    assert all(widening(shared=True)(step, rank=0) == widening(shared=True)(step, rank=1) for step in range(200, 220))


def test_a_run_of_one_step() -> None:
    assert len(Widening(SubnetSchedule(SPACE), num_steps=1)(0)) == 1


@pytest.mark.parametrize("kind", ["published", "sandwich", "widening"])
def test_mean_costs_are_those_of_what_is_drawn(kind: str) -> None:
    walk = SubnetSchedule(SPACE, seed=3, samples=1)
    sampler = {"published": walk, "sandwich": Sandwich(walk), "widening": widening()}[kind]
    many = range(STEPS) if kind == "widening" else range(len(SPACE.entries[:-1]))
    found = fmean(sum(COSTS[size] for size in sampler(step)) for step in many)
    mean = fmean(sampler.mean(COSTS, step) for step in many)
    assert mean == pytest.approx(found, rel=0.05 if kind == "widening" else 1e-9)


def test_costs_order_sizes() -> None:
    assert by_cost(Size(64, (8,))) < by_cost(Size(128, (4,))) < by_cost(Size(128, (5,)))
