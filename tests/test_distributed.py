"""How processes of one training meet and end. What they do together is tested where it is used."""

import ctypes
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from poa import distributed
from poa.errors import UserError


def test_a_process_ends_with_the_one_that_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, statuses = threading.Event(), []

    def end(status: int) -> None:
        statuses.append(status)
        ended.set()

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(distributed, "_POLL_SECONDS", 0.01)
    distributed.end_with(os.getppid())
    assert not ended.wait(0.05)
    monkeypatch.setattr(os, "getppid", lambda: 1)  # what orphans see
    assert ended.wait(10)
    assert statuses == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such signal")
def test_linux_kills_a_process_whose_parent_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", lambda _: None)
    number, call = ctypes.c_int(), ctypes.CDLL(None).prctl
    distributed.end_with(os.getppid())
    call(2, ctypes.byref(number))  # PR_GET_PDEATHSIG
    call(1, 0)
    assert number.value == signal.SIGKILL


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """No variables of a group; returns whom the process would end with."""
    ends_with: list[int] = []
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "POA_STORE", "POA_LAUNCHER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distributed, "end_with", ends_with.append)
    return ends_with


def test_processes_meet_in_a_file_and_talk_inside_this_machine(
    tmp_path: Path, alone: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    [given] = distributed.group_on_this_machine(1, tmp_path)
    assert given["GLOO_SOCKET_IFNAME"] == given["NCCL_SOCKET_IFNAME"] in ("lo", "lo0")
    assert not {name for name in given if name.startswith("MASTER")}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with distributed.process_group(device=torch.device("cpu")):
        assert (distributed.rank(), distributed.world_size(), distributed.is_launched()) == (0, 1, True)
        distributed.barrier()
    assert alone == [os.getpid()]
    assert list(tmp_path.iterdir()) in ([], [tmp_path / "store"])


@pytest.mark.parametrize(("given", "parents"), [({}, []), ({"TORCHELASTIC_RUN_ID": "none"}, [os.getppid()])])
def test_only_torchrun_is_known_to_outlive_its_processes(
    alone: list[int], monkeypatch: pytest.MonkeyPatch, given: dict[str, str], parents: list[int]
) -> None:
    joined: list[dict[str, Any]] = []
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **options: joined.append(options))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    for name, value in ({"WORLD_SIZE": "2", "RANK": "1"} | given).items():
        monkeypatch.setenv(name, value)
    with distributed.process_group(device=torch.device("cpu")):
        assert [set(options) for options in joined] == [{"timeout", "rank", "world_size"}]
    assert alone == parents


def test_the_main_process_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.from_main(lambda: 3) == 3
    sent: list[Any] = []
    monkeypatch.setattr(distributed, "is_launched", lambda: True)
    monkeypatch.setattr(distributed, "is_main", lambda: not sent)
    monkeypatch.setattr(dist, "broadcast_object_list", lambda found, src: sent.append(found[0]))
    assert distributed.from_main(lambda: 3) == 3
    assert sent == [3]

    def received(found: list[Any], src: int) -> None:
        found[0] = UserError("of the main process")

    monkeypatch.setattr(dist, "broadcast_object_list", received)
    with pytest.raises(UserError, match="of the main process"):
        distributed.from_main(lambda: pytest.fail("another process decides too"))
    sent.clear()
    with pytest.raises(UserError, match="of the main process"):
        distributed.from_main(lambda: 3)


def test_what_the_main_process_makes_alone_waits_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "broadcast_object_list", lambda *_, **__: None)
    assert distributed.from_main(distributed.world_size) == 1, "it would wrap a network, and wait for ever"
    with pytest.raises(UserError, match="wrong"):
        distributed.from_main(fail)
    assert distributed.world_size() == 2


def fail() -> None:
    raise UserError("wrong")
