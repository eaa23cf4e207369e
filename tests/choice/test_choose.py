"""The choice among many sizes: measured by a machine that is not there, scored by a function."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from choice.clocks import Machine
from choice.sizes import WEIGHTS, sizes_of
from poa.choice import measure as measuring
from poa.choice import scores as scoring
from poa.choice import timing
from poa.choice.budget import keeps_to
from poa.choice.choose import AT_ONCE, CHECKS, SPREAD, Choice, choose
from poa.choice.measured import Measured, Measurement, save
from poa.choice.runtimes import Runnable
from poa.choice.scores import Labelled
from poa.config.choice import Limits, MeasureSettings
from poa.elastic.space import Size
from poa.errors import UserError
from poa.evaluation.results import Results
from poa.models.source import ModelSource

FEW = {"model": {"width_min": 32, "width_max": 80, "depth_max": 4}}
MANY = {"model": {"width_min": 32, "width_max": 192, "depth_min": 1, "depth_max": 10}}
NOISE = np.random.default_rng(0).normal(scale=0.2, size=10_000)


def score_of(name: str) -> float:
    size = Size.parse(name)
    growth = 8 * log2(size.width / 32) + 5 * log2(size.depths[0]) - log2(size.width / 32) ** 2
    return 40 + growth + float(NOISE[size.width * 16 + size.depths[0]])


def seconds_of(name: str) -> float:
    """Wide and shallow sizes are faster than deep ones with as many parameters."""
    size = Size.parse(name)
    return 1e-4 * size.depths[0] * (1 + size.width / 64)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Runs sizes in the time of ``seconds_of``, busy with other work every now and then."""
    sizes = [f"{width}x{depth}" for width in range(16, 272, 16) for depth in range(1, 11)]
    machine = Machine({name: seconds_of(name) for name in sizes}, is_busy=lambda number: number % 7 == 0)

    def made(network: measuring.Network, *_: Any) -> Any:
        size = Size.parse(network.name)
        parameters = 12 * size.width**2 * size.depths[0]
        ready = Runnable(lambda: machine.run(network.name), 4 * parameters + 1000, 5 * parameters)
        return measuring._Made(ready, parameters, 20 * parameters)

    timed = timing.times_of
    monkeypatch.setattr(measuring, "_made", made)
    monkeypatch.setattr(measuring, "_bytes_of", lambda *_: 0)
    monkeypatch.setattr(
        measuring, "times_of", lambda *each, **given: timed(*each, **given, interruptions=machine.interruptions)
    )
    return machine


def write_scores(source: ModelSource, names: Sequence[str], *, weights: str = WEIGHTS, half: float = 1.0) -> None:
    """As a sweep of k-NN does, which leaves those that are there."""
    path = source.out / "knn" / "knn.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    results = Results.read(path) if path.exists() else Results("knn", {"weights": weights})
    for name in names:
        value = score_of(name)
        results.scores[name] = {"top1@10": value / 2, "top1@20": value}
        results.intervals[name] = {"top1@20": (value - half, value + half)}
    path.write_text(json.dumps(asdict(results)), encoding="utf-8")


def measured_before(source: ModelSource) -> None:
    """As if all sizes were measured on this machine."""
    found = {}
    for name in source.names:
        size, ms = Size.parse(name), 1000 * seconds_of(name)
        parameters = 12 * size.width**2 * size.depths[0]
        found[name] = Measurement(ms, ms, 90, 1000 / ms, None, 4 * parameters, parameters, None, "2026-01-02")
    save(source, Measured(measuring.setup_of(source, MeasureSettings()), found))


def chosen(source: ModelSource, machine: Machine, images: Labelled | None = None, **limits: float) -> Choice:
    return choose(source, Limits(**limits), images=images, clock=machine.clock)


def test_the_answer_is_that_of_a_loop_over_the_true_times(tmp_path: Path, machine: Machine) -> None:
    source = sizes_of(tmp_path, **FEW)
    write_scores(source, source.names)
    for max_ms in (0.42, 0.56, 0.75, 0.85):
        within = [name for name in source.names if 1000 * seconds_of(name) <= max_ms]
        expected = max(within, key=score_of)
        found = chosen(source, machine, max_ms=max_ms)
        assert found.chosen.name == expected
        assert found.chosen.measurement.ms == pytest.approx(1000 * seconds_of(expected), rel=0.03)
        assert found.score == "top1@20"
        assert found.notes() == []


def test_sizes_are_measured_once_and_together(tmp_path: Path, machine: Machine) -> None:
    source = sizes_of(tmp_path, **FEW)
    write_scores(source, source.names)
    first = chosen(source, machine, max_ms=0.5)
    runs = len(machine.ran)
    assert runs > 0
    assert chosen(source, machine, max_ms=0.5).chosen == first.chosen
    assert len(machine.ran) == runs
    alone = replace(first.chosen.measurement, ms=99.0, date="2026-01-02")
    save(source, Measured(first.setup, {first.chosen.name: alone}))
    assert chosen(source, machine, max_ms=0.5).chosen.name == first.chosen.name, (
        "measured at another time than the others"
    )
    assert len(machine.ran) > runs


def test_the_sentence_names_sizes_that_may_be_as_good(tmp_path: Path, machine: Machine) -> None:
    source = sizes_of(tmp_path, **FEW)
    write_scores(source, source.names, half=8)
    found = chosen(source, machine, max_mb=0.2)
    sentence, ms = str(found), [each.measurement.ms for each in found.alike]
    assert sentence.startswith(f"{found.chosen.name}: {found.chosen.score:.1f} ± 8.0 %, ")
    assert " MB; " in sentence
    assert ms == sorted(ms)
    faster = sum(each < found.chosen.measurement.ms for each in ms)
    assert faster == 2
    assert f"; {found.alike[0].name} ({found.alike[0].score:.1f} %, " in sentence
    assert sentence.endswith(" ms) is within its interval and faster, as is 1 other.")
    slowest = replace(found.chosen, measurement=replace(found.chosen.measurement, ms=99.0))
    assert str(replace(found, alike=(*found.alike, slowest))) == sentence, "a slower one counts as faster"
    assert str(replace(found, alike=(slowest,))).endswith("is within its interval and slower.")
    assert str(replace(found, alike=())).endswith(" MB.")


def test_without_labels_it_is_the_largest_within_the_limits(tmp_path: Path, machine: Machine) -> None:
    source = sizes_of(tmp_path, **FEW)
    found = choose(source, Limits(max_ms=0.75), score="parameters", clock=machine.clock)
    within = [Size.parse(name) for name in source.names if 1000 * seconds_of(name) <= 0.75]
    largest = max(within, key=lambda size: size.width**2 * size.depths[0])
    assert found.chosen.name == str(largest)
    assert found.notes() == []
    assert str(found).startswith(f"{largest}: 0.2 M parameters, 0.")
    for limits, images in ((Limits(min_score=50), None), (Limits(), Labelled("test"))):
        with pytest.raises(UserError, match=r"^--score parameters chooses without labels"):
            choose(source, limits, score="parameters", images=images, clock=machine.clock)


def scored_by_function(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let a function score the sizes; which are asked for."""
    asked = list[str]()

    def evaluate(source: ModelSource, *_: Any, options: Any, **__: Any) -> None:
        asked.extend(options.sizes)
        write_scores(source, options.sizes)

    monkeypatch.setattr(scoring, "evaluate", evaluate)
    return asked


@pytest.mark.parametrize("limits", [{"max_ms": 2.5}, {"max_ms": 2.5, "max_mb": 5.0}, {"min_score": 62.0}])
def test_of_many_sizes_a_spread_is_scored_and_then_those_that_may_be_best(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, limits: dict[str, float]
) -> None:
    source, asked = sizes_of(tmp_path, **MANY), scored_by_function(monkeypatch)
    measured_before(source)
    assert len(source.names) > 100
    found = chosen(source, machine, Labelled("test", "train"), **limits)
    assert len(set(asked)) <= SPREAD + AT_ONCE * CHECKS < len(source.names)
    assert found.chosen.name in asked
    within = [each for each in found.candidates if keeps_to(each.measurement, Limits(**limits))]
    if "min_score" in limits:
        reaching = [each for each in within if score_of(each.name) >= limits["min_score"]]
        fastest = min(each.measurement.ms for each in reaching)
        assert found.chosen.measurement.ms <= 1.1 * fastest
    else:
        assert found.chosen.score > max(score_of(each.name) for each in within) - 0.5
    assert found.estimates is not None
    assert found.estimates.error < 1
    off = [each.score - score_of(each.name) for each in found.candidates if each.is_estimate]
    assert np.sqrt(np.mean(np.square(off))) < 2 * found.estimates.error
    told = " ".join(found.notes())
    assert f"{len(set(asked))} of the {len(found.candidates)} sizes considered are scored." in told
    assert f"an error of {found.estimates.error:.1f} points" in told


def test_few_sizes_without_a_score_are_all_scored(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, asked = sizes_of(tmp_path, **FEW), scored_by_function(monkeypatch)
    write_scores(source, source.names[:2])
    found = chosen(source, machine, Labelled("test", "train"), max_ms=0.5)
    assert set(asked) == {name for name in source.names if 1000 * seconds_of(name) <= 0.5}
    assert {each.name for each in found.candidates} == set(asked) | set(source.names[:2])
    assert found.left_out == ()


def test_sizes_without_a_score_or_an_estimate_are_counted(tmp_path: Path, machine: Machine) -> None:
    source = sizes_of(tmp_path, **FEW)
    write_scores(source, source.names[:2])
    found = chosen(source, machine)
    assert found.chosen.name == max(source.names[:2], key=score_of)
    assert found.left_out == source.names[2:]
    assert found.notes() == ["10 sizes without a score could not be considered."]


def test_without_images_a_size_that_may_be_better_is_named(tmp_path: Path, machine: Machine) -> None:
    source = sizes_of(tmp_path, **MANY)
    measured_before(source)
    largest = source.names[-1]
    write_scores(source, [name for name in source.names[::3] if name != largest])
    found = chosen(source, machine)
    assert not found.chosen.is_estimate
    assert found.promising
    assert f"{found.promising[0].name} is not scored and may be better: about" in " ".join(found.notes())


def test_what_cannot_be_chosen_from_is_told(tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sizes_of(tmp_path, **FEW)

    def refused(**limits: Any) -> str:
        with pytest.raises(UserError) as caught:
            chosen(source, machine, **limits)
        return str(caught.value)

    assert refused() == (
        f"{source.name} has no scores called 'knn'. Give labelled images with --train and --test, or run "
        f"`poa evaluate knn {source.name}` first. Without labels, --score parameters takes the largest size within the "
        "limits."
    )
    assert machine.ran == []
    write_scores(source, source.names[-1:])
    assert refused(max_ms=0.05).startswith(
        f"No size of {source.name} keeps to --max-ms 0.05: the fastest, 32x2, takes 0.3 ms."
    )
    assert refused(max_ms=0.31).startswith(f"No size of {source.name} within the limits is scored.")
    assert refused(min_score=99).startswith(f"No size of {source.name} reaches --min-score 99: the highest score is ")
    (source.out / "knn" / "knn.json").unlink()
    write_scores(source, source.names, weights="teacher at step 4")
    assert f"holds scores of other weights (teacher at step 4; now {WEIGHTS})" in refused()
    with pytest.raises(UserError, match=r"has no scores called 'linear'\. It has knn \(--score\)\."):
        choose(source, Limits(), score="linear", clock=machine.clock)
    (source.out / "knn" / "knn.json").unlink()
    with pytest.raises(UserError, match=r"^--train and --test are for --score knn, .*, got 'finetune'\."):
        choose(source, Limits(), score="finetune", images=Labelled("test"), clock=machine.clock)
