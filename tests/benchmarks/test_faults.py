"""The fault campaign: which process is hit, and what may be said after it."""

import importlib
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
OF_TRACKER = """Traceback (most recent call last):
  File "/usr/lib/python3.11/multiprocessing/resource_tracker.py", line 239, in main
    cache[rtype].remove(name)
KeyError: '/mp-cv9v52ei'
"""
OF_WORK = """Traceback (most recent call last):
  File "poa/evaluation/knn.py", line 5, in votes
KeyError: 'labels'
"""


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("faults")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("python -c from multiprocessing.resource_tracker import main;main(4)", "resource tracker"),
        ("python -c from multiprocessing.forkserver import main;main(4)", "worker"),
        ("python -m poa.pretraining.launch", "rank"),
        ("python -m poa evaluate knn", "main process"),
    ],
)
def test_processes_of_a_command_are_told_apart(faults: Any, name: str, what: str) -> None:
    with subprocess.Popen([name, "60"], executable="/bin/sleep", start_new_session=True) as process:
        try:
            while not Path(f"/proc/{process.pid}/cmdline").read_bytes():  # the system writes it after the start
                time.sleep(0.001)
            assert faults.members(process.pid) == {process.pid: what}
        finally:
            process.kill()


def test_a_kill_of_a_command_that_was_not_listed_counts(faults: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = importlib.import_module("fault_kinds")
    monkeypatch.setattr(kinds, "members", lambda _: {})
    fault = kinds.Outer("kill", "worker", 0.0, 0.0)
    with subprocess.Popen(["/bin/sleep", "60"], start_new_session=True) as process:
        assert kinds.strike(fault, process.pid, None, None) == "main process"
        assert process.wait() == -9


def test_a_kill_is_said_also_where_another_thread_does_something_to_files(
    faults: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    processes, done = importlib.import_module("fault_processes"), []

    class Interrupted(list[Any]):
        """Faults that are looked at by another thread when one has begun to look."""

        def __iter__(self) -> Any:
            if watch.count == 1:
                watch._see("os.mkdir", ("another", None, None))
            return super().__iter__()

    monkeypatch.setattr(processes.sys, "addaudithook", lambda _: None)
    monkeypatch.setattr(processes.os, "kill", lambda *_: done.append(capsys.readouterr().out))
    watch = processes.Watch(Interrupted([processes.Inner("kill", processes.MAIN, 1)]))
    watch._see("os.mkdir", ("one", None, None))
    assert done == ["\ndisturbed: kill before os.mkdir one\n"]


def test_a_command_goes_on_without_python_s_resource_tracker(faults: Any) -> None:
    assert faults.may_end("kill", "resource tracker") == (0,)
    assert faults.may_end("kill", "worker") == (-9, 2)
    assert faults.may_end("pause", "worker") == (0,)


def test_tracebacks_of_the_resource_tracker_are_known(faults: Any) -> None:
    said = f"networks: 1/4\n{OF_TRACKER}{OF_TRACKER}networks: 4/4\n"
    assert faults.OF_TRACKER.sub("", said) == "networks: 1/4\nnetworks: 4/4\n"
    assert faults.OF_TRACKER.sub("", OF_WORK + OF_TRACKER + OF_WORK) == OF_WORK * 2


def test_trackers_are_hit_where_there_are_workers(faults: Any) -> None:
    assert faults.parts_of_command("workers", "pretrain") == ["worker", "resource tracker"]
    assert faults.parts_of_command("vit poa ddp", "pretrain") == ["rank"]
