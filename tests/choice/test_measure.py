"""Networks that are measured in earnest, however long they take."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from choice.sizes import sizes_of
from poa.choice import measure as measuring
from poa.choice import timing
from poa.choice.measure import Network, Sitting, known, measure, measure_sources, rank_correlation
from poa.choice.measured import Measured
from poa.choice.timing import LEAST_ROUNDS, PASSES
from poa.config.choice import MeasureSettings
from poa.errors import UserError
from poa.evaluation.cost import costs

FOUR = {"model": {"head_dim": 32}}
"""Of these widths and depths there are four sizes."""
QUICK = MeasureSettings(seconds=1e-9, batch=2)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Sitting:
    source, threads = sizes_of(tmp_path_factory.mktemp("run"), **FOUR), torch.get_num_threads()
    assert known(source, QUICK).networks == {}
    (found,) = measure_sources([source], QUICK)
    assert torch.get_num_threads() == threads
    return found


def test_sizes_are_measured_and_kept(measured: Sitting) -> None:
    source = measured.source
    assert list(measured.now) == list(source.names)
    assert measured.rank_correlation is None
    assert known(source, QUICK).networks == measured.now
    assert known(source, QUICK.changed(batch=1)).networks == {}
    assert source.family is not None
    counted = costs(source.family.build, source.family.space.sizes, image_size=16)
    for size, cost in counted.items():
        each = measured.now[str(size)]
        assert (each.parameters, each.macs) == (cost.parameters, cost.flops // 2)
        assert each.passes == LEAST_ROUNDS * PASSES
        assert each.images_per_second == pytest.approx(2000 / each.ms)
        assert each.memory_bytes is not None
        assert each.memory_bytes > 4 * cost.parameters
        assert each.file_bytes > 4 * cost.parameters


def test_times_are_compared_with_those_before(measured: Sitting) -> None:
    before = Measured(measured.before.setup, measured.now)
    same = measured._replace(before=before)
    assert same.rank_correlation == pytest.approx(1)
    reversed_order = {name: replace(each, ms=-each.ms) for name, each in measured.now.items()}
    assert same._replace(now=reversed_order).rank_correlation == pytest.approx(-1)


def test_several_sources_take_turns_and_keep_their_own(tmp_path: Path) -> None:
    sources = [sizes_of(tmp_path / "first"), sizes_of(tmp_path / "second", model={"depth_max": 4})]
    networks = [Network(sources[1], "64x4"), Network(sources[0], "32x2")]
    large, small = measure(networks, QUICK)
    assert large.parameters > small.parameters
    assert known(sources[0], QUICK).networks == {"32x2": small}
    assert known(sources[1], QUICK).networks == {"64x4": large}
    (again,) = measure_sources(sources[:1], QUICK, sizes=["64x3"])
    assert again.before.networks == {"32x2": small}
    assert known(sources[0], QUICK).networks == {"32x2": small, **again.now}


def test_networks_that_do_not_fit_into_memory_at_once_are_measured_in_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, groups = sizes_of(tmp_path, **FOUR), list[list[str]]()
    timed = timing.times_of
    monkeypatch.setattr(measuring, "memory_of_machine", lambda: 4 * 4 * 60_000)

    def recorded(passes: Mapping[str, timing.Pass], **given: Any) -> dict[str, timing.Times]:
        groups.append([*passes])
        return timed(passes, **given)

    monkeypatch.setattr(measuring, "times_of", recorded)
    (found,) = measure_sources([source], QUICK)
    assert 1 < len(groups) <= len(source.names)
    assert sorted(place for group in groups for place in group) == list(map(str, range(len(source.names))))
    assert list(found.now) == list(source.names)


def test_a_device_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"^--device cuda needs a GPU that PyTorch can use, and there is none\."):
        measure_sources([sizes_of(tmp_path)], MeasureSettings(device="cuda"))


def test_more_threads_than_cores_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poa.choice.runtimes.usable_cores", lambda: 2)
    with pytest.raises(
        UserError, match="--threads must be at most the number of cores that this process may use, 2, got 3"
    ):
        measure([Network(sizes_of(tmp_path), "32x2")], MeasureSettings(threads=3))


def test_networks_run_by_onnx_runtime_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how, source = QUICK.changed(runtime="onnx"), sizes_of(tmp_path)
    (found,) = measure([Network(source, "32x2")], how)
    assert 0 < found.ms <= found.ms_p95 or found.interrupted
    assert found.file_bytes > 4 * found.parameters
    assert found.memory_bytes is None
    assert known(source, how).networks == {"32x2": found}
    assert known(source, QUICK).networks == {}
    monkeypatch.setattr("poa.export.onnx.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"^--runtime onnx needs the package onnx, which is not installed\. Install it"):
        measure_sources([source], how)
    with pytest.raises(UserError, match=r"^--runtime onnx runs on the CPU\."):
        MeasureSettings(runtime="onnx", device="cuda")


def test_rank_correlation_by_hand() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
