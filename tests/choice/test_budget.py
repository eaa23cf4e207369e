"""The best size within limits, against loops over all sizes."""

import random
from itertools import product

import pytest

from poa.choice.budget import Candidate, alike, best, front, keeps_to, too_low, unmet
from poa.choice.measured import Measurement
from poa.config.choice import Limits
from poa.errors import UserError

DATE = "2026-01-02T03:04:05+00:00"


def taking(ms: float, mb: float, *, gmacs: float | None = 1.0, memory: int | None = 2_000_000) -> Measurement:
    macs = None if gmacs is None else int(gmacs * 1e9)
    return Measurement(ms, 2 * ms, 90, 1000 / ms, memory, int(mb * 1e6), int(mb * 250_000), macs, DATE)


def size(name: str, score: float, ms: float, mb: float = 1.0, half: float = 1.0) -> Candidate:
    return Candidate(name, score, taking(ms, mb), (score - half, score + half))


SIZES = [size("a", 30, 1, 1), size("b", 50, 2, 2), size("c", 45, 3, 1), size("d", 50, 4, 2), size("e", 60, 5, 3)]


def by_loops(candidates: list[Candidate], limits: Limits) -> Candidate | None:
    found = None
    for each in candidates:
        ms, mb, gmacs = each.measurement.ms, each.measurement.file_bytes / 1e6, (each.measurement.macs or 0) / 1e9
        if limits.max_ms is not None and ms > limits.max_ms:
            continue
        if limits.max_mb is not None and mb > limits.max_mb:
            continue
        if limits.max_gmacs is not None and gmacs > limits.max_gmacs:
            continue
        if limits.min_score is not None and each.score < limits.min_score:
            continue
        only_score = limits == Limits(min_score=limits.min_score)
        if found is None:
            found = each
        elif only_score and limits.min_score is not None:
            if (ms, -each.score) < (found.measurement.ms, -found.score):
                found = each
        elif (-each.score, ms) < (-found.score, found.measurement.ms):
            found = each
    return found


def test_the_best_is_that_of_a_loop_over_all_sizes() -> None:
    draw = random.Random(0)
    candidates = [
        Candidate(str(number), round(draw.uniform(0, 9)), taking(draw.random(), draw.random(), gmacs=draw.random()))
        for number in range(60)
    ]
    nothing_fits = 0
    for ms, mb, gmacs, score in product([None, 0.02, 0.3, 1.0], [None, 0.5], [None, 0.5], [None, 4.0, 9.5]):
        limits = Limits(max_ms=ms, max_mb=mb, max_gmacs=gmacs, min_score=score)
        found = best(candidates, limits)
        assert found == by_loops(candidates, limits)
        nothing_fits += found is None
    assert 0 < nothing_fits < 48


def test_of_equal_scores_the_fastest_is_taken() -> None:
    found = best(SIZES, Limits(max_ms=4.5))
    assert found is not None
    assert found.name == "b"


def test_with_a_least_score_alone_the_fastest_that_reaches_it() -> None:
    found = best(SIZES, Limits(min_score=40))
    assert found is not None
    assert found.name == "b"
    highest = best(SIZES, Limits(min_score=40, max_ms=10))
    assert highest is not None
    assert highest.name == "e"


def test_what_is_not_known_is_not_within_a_limit() -> None:
    unknown = taking(1, 1, gmacs=None, memory=None)
    assert keeps_to(unknown, Limits(max_ms=1, max_mb=1, max_million_parameters=0.25))
    assert not keeps_to(unknown, Limits(max_gmacs=100))
    assert not keeps_to(unknown, Limits(max_memory_mb=100))
    assert not keeps_to(taking(1, 1), Limits(max_memory_mb=1.9))


def test_the_front_has_no_size_that_another_beats() -> None:
    assert [each.name for each in front(SIZES)] == ["a", "b", "e"]
    for each in SIZES:
        is_beaten = any(
            other.score >= each.score and other.measurement.ms <= each.measurement.ms and other != each
            for other in SIZES
        )
        assert (each in front(SIZES)) is not is_beaten


def test_sizes_within_the_interval_of_the_chosen_one() -> None:
    chosen = size("x", 49, 3.5, half=5)
    assert [each.name for each in alike(chosen, [*SIZES, chosen], Limits())] == ["b", "c", "d"]
    assert [each.name for each in alike(chosen, SIZES, Limits(max_ms=2.5))] == ["b"]
    assert [each.name for each in alike(chosen, SIZES, Limits(min_score=46))] == ["b", "d"]
    assert alike(Candidate("y", 49, taking(1, 1)), SIZES, Limits()) == []


MEASURED = {each.name: each.measurement for each in SIZES}


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        (
            Limits(max_ms=0.5, max_mb=10),
            "No size of runs/mine keeps to --max-ms 0.5: the fastest, a, takes 1 ms. Raise it.",
        ),
        (
            Limits(max_ms=9, max_million_parameters=0.2),
            "No size of runs/mine keeps to --max-million-parameters 0.2: the smallest, a, has 0.25 million parameters. "
            "Raise it.",
        ),
        (
            Limits(max_ms=1.5, max_mb=0.9),
            "No size of runs/mine keeps to --max-mb 0.9: the smallest, a, has 1 MB. Raise it.",
        ),
    ],
)
def test_a_limit_that_nobody_meets_is_named_with_the_nearest_size(limits: Limits, sentence: str) -> None:
    assert str(unmet(MEASURED, limits, name="runs/mine")) == sentence


def test_limits_that_nobody_meets_together_are_named() -> None:
    measured = {"fast": taking(1, 9), "small": taking(9, 1)}
    assert unmet(measured, Limits(max_ms=1), name="run") is None
    assert str(unmet(measured, Limits(max_ms=2, max_mb=2), name="run")) == (
        "None of the 2 sizes of run keeps to --max-ms 2 and --max-mb 2 at the same time, though each alone is met. "
        "Raise one of them."
    )


def test_what_a_runtime_does_not_tell_cannot_be_limited() -> None:
    measured = {"a": taking(1, 1, memory=None)}
    assert str(unmet(measured, Limits(max_memory_mb=9), name="run")) == (
        "MB of memory of the sizes of run are not known for this runtime. Leave out --max-memory-mb."
    )


def test_a_score_that_nobody_reaches_is_told_with_the_highest() -> None:
    assert str(too_low(SIZES, Limits(min_score=70), name="run")) == (
        "No size of run reaches --min-score 70: the highest score is 60.0 %, of e. Lower it."
    )
    assert str(too_low(SIZES[:1], Limits(min_score=70, max_ms=1), name="run")) == (
        "No size of run reaches --min-score 70: the highest score within the other limits is 30.0 %, of a. Lower it, "
        "or raise another limit."
    )


@pytest.mark.parametrize("wrong", [{"max_ms": 0}, {"max_mb": -1}, {"min_score": float("nan")}, {"max_seconds": 1}])
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError):
        Limits(**wrong)
