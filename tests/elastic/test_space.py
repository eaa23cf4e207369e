import random
from collections import Counter
from itertools import pairwise

import pytest

from poa.elastic.space import SearchSpace, Size, SubnetSchedule
from poa.errors import UserError

PUBLISHED = SearchSpace.grid(range(384, 1025, 64), range(12, 25))
SMALL = SearchSpace.grid([64, 96, 128], [2, 3], bias=2.0)
POOL = len(SMALL.entries) - 1


def published_walk(pool: int, seed: int, length: int) -> list[int]:
    """The walk as the official code makes it: take the next; after the last one shuffle the same list again."""
    generator = random.Random(seed)
    order = list(range(pool))
    picks: list[int] = []
    while len(picks) < length:
        generator.shuffle(order)
        picks += order
    return picks[:length]


@pytest.mark.parametrize("text", ["384x12", "64x4-6", "96x2-2-18-2"])
def test_a_size_is_its_name(text: str) -> None:
    assert str(Size.parse(text)) == text


def test_sizes_are_ordered_by_width_then_depth() -> None:
    assert Size(384, (12,)) < Size(384, (13,)) < Size(448, (12,))
    assert Size(64, (4, 6)) < Size(64, (4, 10)) < Size(64, (5, 6))


@pytest.mark.parametrize(
    "text", ["", "384", "384x", "x12", "384X12", "384x12x3", " 384x12", "384x-12", "base", "384x12\n"]
)
def test_other_texts_are_no_sizes(text: str) -> None:
    with pytest.raises(UserError, match=r"is not a size\. A size is WIDTHxDEPTH, such as 384x12"):
        Size.parse(text)


def test_find() -> None:
    assert PUBLISHED.find("448x17") == Size(448, (17,))
    with pytest.raises(UserError, match="is not a size"):
        PUBLISHED.find("small")


@pytest.mark.parametrize(
    ("wrong", "near"), [("1024x25", "1024x24"), ("400x12", "384x12"), ("768x11", "768x12"), ("2000x2-2", "1024x12")]
)
def test_find_names_the_nearest_size(wrong: str, near: str) -> None:
    with pytest.raises(UserError, match=rf"This run has no size '{wrong}'\. Did you mean '{near}'\?"):
        PUBLISHED.find(wrong)


@pytest.mark.parametrize(("wrong", "near"), [("64x4", "64x4-6"), ("96x9-9", "96x5-8"), ("200x4-8", "96x4-8")])
def test_find_names_the_nearest_of_two_depths(wrong: str, near: str) -> None:
    space = SearchSpace.grid([64, 96], [(4, 6), (4, 7), (4, 8), (5, 7), (5, 8)])
    with pytest.raises(UserError, match=rf"This run has no size '{wrong}'\. Did you mean '{near}'\?"):
        space.find(wrong)


def test_published_list() -> None:
    """Numbers of entries from the official code."""
    counts = Counter(PUBLISHED.entries)
    assert len(PUBLISHED.entries) == 573
    assert len(counts) == len(PUBLISHED.sizes) == 143
    assert PUBLISHED.entries[-1] == PUBLISHED.intact == Size(1024, (24,))
    assert counts[PUBLISHED.intact] == 1
    expected = {
        384: [9, 8, 8, 8, 7, 7, 6, 6, 5, 4, 4, 4, 3],
        704: [6, 6, 5, 5, 5, 4, 4, 4, 3, 3, 3, 2, 2],
        1024: [3, 3, 3, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1],
    }
    for width, numbers in expected.items():
        assert [counts[Size(width, (depth,))] for depth in range(12, 25)] == numbers
    assert counts[Size(768, (12,))] == 5


def test_published_list_stands_in_ascending_order() -> None:
    assert all(first <= second for first, second in pairwise(PUBLISHED.entries))


def test_published_walk_of_the_first_process() -> None:
    """First picks of the official code, seeded with the rank."""
    schedule = SubnetSchedule(PUBLISHED)
    picks = [schedule(step)[0] for step in range(5)]
    assert list(map(str, picks)) == ["448x17", "576x12", "576x12", "832x12", "576x16"]
    assert published_walk(572, 0, 5) == [118, 222, 221, 439, 247]


@pytest.mark.parametrize(("seed", "rank"), [(0, 0), (0, 3), (5, 0), (2, 3)])
def test_walks_go_on_as_published(seed: int, rank: int) -> None:
    schedule = SubnetSchedule(SMALL, seed=seed)
    walk = [schedule(step, rank=rank)[0] for step in range(10 * POOL)]
    assert walk == [SMALL.entries[pick] for pick in published_walk(POOL, seed + rank, 10 * POOL)]


def test_a_step_does_not_depend_on_what_was_asked_before() -> None:
    schedule = SubnetSchedule(SMALL, seed=3)
    steps = [7 * POOL, 1, 3 * POOL, 0, 7 * POOL, 2]
    expected = published_walk(POOL, 3, 8 * POOL)
    assert [schedule(step)[0] for step in steps] == [SMALL.entries[expected[step]] for step in steps]


def test_ranks_walk_apart_unless_shared() -> None:
    own = SubnetSchedule(PUBLISHED)
    shared = SubnetSchedule(PUBLISHED, shared=True)
    walks = [[schedule(step, rank=rank) for step in range(20)] for schedule in (own, shared) for rank in (0, 1)]
    assert walks[0] != walks[1]
    assert walks[0] == walks[2] == walks[3]


def test_seeds_walk_apart() -> None:
    walks = [[SubnetSchedule(PUBLISHED, seed=seed)(step) for step in range(20)] for seed in (0, 1)]
    assert walks[0] != walks[1]


@pytest.mark.parametrize("samples", [2, 3, 2 * POOL + 1])
def test_samples_are_consecutive_picks(samples: int) -> None:
    one, many = SubnetSchedule(SMALL), SubnetSchedule(SMALL, samples=samples)
    for step in range(5):
        assert many(step, rank=1) == tuple(
            one(pick, rank=1)[0] for pick in range(step * samples, step * samples + samples)
        )


@pytest.mark.parametrize("cycle", [0, 1, 4])
def test_a_cycle_visits_each_entry_but_the_intact_network_once(cycle: int) -> None:
    schedule = SubnetSchedule(SMALL, seed=1)
    visited = Counter(schedule(step)[0] for step in range(cycle * POOL, (cycle + 1) * POOL))
    assert visited == Counter(SMALL.entries[:-1])


def test_long_runs_with_few_sizes_do_not_get_slower() -> None:
    """20,000 passes through two entries; replaying all shuffles for each would take many minutes."""
    schedule = SubnetSchedule(SearchSpace.grid([64], [1, 2, 3], bias=1.0))
    last = [schedule(step) for step in range(40_000)][-1]
    assert last == schedule(39_999)


def test_one_size_is_no_search_space() -> None:
    with pytest.raises(UserError, match="holds only 64x2, so there are no smaller sizes"):
        SubnetSchedule(SearchSpace.grid([64], [2]))


def test_even_weights() -> None:
    assert set(SearchSpace.grid([64, 128, 192], [1, 2], bias=1.0).weights) == {1}


def test_weights_round_half_to_even() -> None:
    """Width weights 2, 1.5, 1 times depth weights 2, 1: three halves become two."""
    assert SearchSpace.grid([1, 2, 3], [1, 2], bias=2.0).weights == (4, 2, 3, 2, 2, 1)
    assert SearchSpace.grid([1, 2], [1, 2, 3, 4, 5], bias=2.5).weights == (6, 5, 4, 3, 2, 2, 2, 2, 1, 1)
