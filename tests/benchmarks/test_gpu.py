"""The script for a GPU runs through on a CPU, and its works do not stop one another."""

import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("stages")


def test_all_stages_run_through_and_a_second_start_has_nothing_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    gpu = importlib.import_module("gpu")
    command = ["--tiny", "--out", str(tmp_path / "out")]
    status = gpu.main(command)
    lines = (tmp_path / "out" / "figures.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert status == 0, [row for row in rows if row["state"] == "failed"]
    assert {row["stage"] for row in rows if row["state"] == "done"} == set(gpu.NAMES)
    assert {row["state"] for row in rows} == {"begun", "figures", "done", "skipped"}
    holds = [row["holds"] for row in rows if "holds" in row]
    assert holds == [True] * 4
    found = {row["stage"]: row for row in rows if row["state"] == "figures"}  # the last of each
    assert found["speed"]["TFLOP a step"] > 0
    assert found["memory"]["MiB"] > 0
    assert found["loader"]["enough"] in (True, False)
    assert found["training"]["steps"] == "2 of 2"
    assert 0 <= found["training"]["k-NN (20)"] <= 100
    assert "needs CUDA" in (tmp_path / "out" / "summary.md").read_text()
    assert gpu.main(command) == 0
    assert (tmp_path / "out" / "figures.jsonl").read_text().splitlines() == lines


def test_a_work_that_fails_or_takes_too_long_does_not_stop_the_others(stages: Any, tmp_path: Path) -> None:
    def fails(_: float) -> Iterator[dict[str, float]]:
        yield {"first": 1.0}
        raise ValueError("no\nsecond line")

    def waits(_: float) -> Iterator[dict[str, float]]:
        time.sleep(10)
        yield {}

    def lost(_: float) -> Iterator[dict[str, float]]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
        yield {}

    def works(_: float) -> Iterator[dict[str, bool]]:
        yield {"holds": False}

    record = stages.Record(tmp_path, title="a machine")
    first = stages.Stage("one", 1.0, [stages.Work("fails", fails)])
    second = stages.Stage("two", 1.0, [stages.Work("works", works), stages.Work("on CUDA", works, needs_cuda="so")])
    stages.run_stages([first, second], record, seconds=60, device=CPU)
    stages.run_work(stages.Work("waits", waits), "one", record, deadline=time.monotonic() + 0.05, device=CPU)
    expected = {"fails": "failed", "waits": "no time", "works": "done", "on CUDA": "skipped"}
    assert {work: state for (_, work), state in stages.latest(record.rows).items()} == expected
    assert record.failures == 2  # with the check that does not hold
    assert [row["first"] for row in record.figures("one")] == [1.0]
    text = (tmp_path / "summary.md").read_text()
    assert "- fails: failed. ValueError: no\n" in text
    assert "| works | NO |" in text
    with pytest.raises(stages.DeviceLostError):
        stages.run_stages([stages.Stage("three", 1.0, [stages.Work("lost", lost)])], record, seconds=60, device=CPU)


def test_a_second_start_goes_on_after_an_interruption(stages: Any, tmp_path: Path) -> None:
    run: list[str] = []

    def work(name: str, *, resumes: bool = False) -> Any:
        def of_name(_: float) -> Iterator[dict[str, str]]:
            run.append(name)
            yield {"name": name}
            if name in stopped:
                raise KeyboardInterrupt

        return stages.Work(name, of_name, resumes=resumes)

    def start(**options: bool) -> list[str]:
        run.clear()
        works = [work("done"), work("interrupted"), work("long", resumes=True), work("last")]
        record = stages.Record(tmp_path, title="a machine")
        stages.run_stages([stages.Stage("stage", 1.0, works)], record, seconds=60, device=CPU, **options)
        return list(run)

    stopped = {"interrupted"}
    with pytest.raises(KeyboardInterrupt):
        start()
    with (tmp_path / "figures.jsonl").open("a") as file:
        file.write('{"stage": "stage", "wor')  # cut off
    stopped = {"long"}
    with pytest.raises(KeyboardInterrupt):
        start()
    assert run == ["long"]
    stopped = set()
    assert start() == ["long", "last"]
    assert start() == []
    assert start(again=True) == ["interrupted"]
