"""How processes of a run are started, and what one makes of its arguments. Real ones run in tests/cli/test_cli.py."""

import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import tiny
from command import poa, tiny_file
from poa.config import resolve
from poa.errors import UserError
from poa.machine.devices import Found
from poa.pretraining import launch
from poa.training.interrupt import StopSignal


class Process:
    """Stands in for a process that ends well at once."""

    started: list[tuple[list[str], dict[str, str]]]
    returncode = 0

    def __init__(self, command: list[str], *, env: dict[str, str]) -> None:
        self.started.append((command, env))

    def poll(self) -> int:
        return 0

    def kill(self) -> None:
        pass

    def wait(self) -> int:
        return 0


@pytest.mark.parametrize("resume", [False, True])
def test_processes_are_told_all_they_need(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, resume: bool) -> None:
    Process.started = []
    monkeypatch.setattr(launch.subprocess, "Popen", Process)
    monkeypatch.setattr(launch, "usable_cores", lambda: 9)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    config = tiny.config(devices=3, out="runs/mine")
    launch._run_processes(config, tmp_path, resume=resume, asked=StopSignal())
    assert [environment["RANK"] for _, environment in Process.started] == ["0", "1", "2"]
    for command, environment in Process.started:
        assert command[2:5] == ["poa.pretraining.launch", str(tmp_path), "resume" if resume else "start"]
        assert environment["OMP_NUM_THREADS"] == "3"
    assert resolve.resolve(file=tmp_path / "config.yaml") == config
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    launch._run_processes(config, tmp_path, resume=resume, asked=StopSignal())
    assert Process.started[-1][1]["OMP_NUM_THREADS"] == "1", "the user's own number"


@pytest.mark.parametrize(("word", "resume"), [("start", False), ("resume", True)])
def test_a_process_does_as_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, word: str, resume: bool) -> None:
    config = tiny.config(devices=2, out="runs/mine")
    (tmp_path / "config.yaml").write_text(resolve.to_yaml(config))
    seen: list[tuple[Any, bool]] = []
    monkeypatch.setattr(launch.this_process, "train", lambda given, *, resume, **_: seen.append((given, resume)))
    monkeypatch.setattr(launch, "make_printable", lambda: None)
    monkeypatch.setattr(sys, "argv", ["launch", str(tmp_path), word, "poa", "pretrain"])
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as ended:
        launch.main()
    assert ended.value.code == 0
    assert seen == [(config, resume)]
    assert sys.argv == ["poa", "pretrain"]


@pytest.mark.parametrize(
    ("given", "environment", "number", "machines"),
    [
        ({}, {}, 4, 1),  # of 4 GPUs
        ({"batch_size": 18}, {}, 3, 1),
        ({"accumulate": 8}, {}, 2, 1),
        ({"device": "cpu"}, {}, 1, 1),
        ({"devices": 2, "num_nodes": 2}, {}, 2, 2),
        ({"devices": 9}, {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, 2, 2),
    ],
)
def test_processes_of_a_run(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], environment: dict[str, str], number: int, machines: int
) -> None:
    monkeypatch.setattr(launch.devices, "found", lambda: Found(4, has_mps=False))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = launch.placed(tiny.config(**{"device": "auto", **given}))
    assert (config.devices, config.num_nodes, config.processes) == (number, machines, number * machines)


def test_a_command_that_may_be_started_again(tmp_path: Path) -> None:
    fresh, begun = (tiny.config(out=str(tmp_path / name)) for name in ("fresh", "begun"))
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/config.yaml").write_text(resolve.to_yaml(begun))
    assert launch.goes_on(begun, resume=False, again=True)
    assert launch.goes_on(fresh, resume=True, again=False)
    assert not launch.goes_on(fresh, resume=False, again=True)
    assert not launch.goes_on(begun, resume=False, again=False), "nothing goes on unasked"
    assert not launch.goes_on(tiny.config(out=""), resume=False, again=True)


def refused(command: list[str], *, env: dict[str, str]) -> Mock:
    """In place of a process of a run: its program, in this process, where the settings are refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["launch", *command[3:]])
        patch.setenv("RANK", env["RANK"])
        patch.setattr(launch.this_process, "train", Mock(side_effect=UserError("Use a multiple of 6.")))
        with pytest.raises(SystemExit) as ended:
            launch.main()
    return Mock(poll=lambda: ended.value.code, returncode=ended.value.code)


def test_failing_processes_are_heard_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch.subprocess, "Popen", refused)
    assert poa("pretrain", "--config", tiny_file(tmp_path), "--out", tmp_path / "run", "--devices", "2") == 2
    assert capsys.readouterr().err == "poa: Use a multiple of 6.\n"
    assert not (tmp_path / "run").exists()
