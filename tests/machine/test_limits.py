"""The memory and the cores that a container or a scheduler allows count, not only those of the machine."""

import os
from pathlib import Path

import pytest

from poa.machine import limits as limits_of
from poa.machine.limits import memory_of_machine, usable_cores


def write(files: dict[Path, str]) -> None:
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("own", "limits", "allowed"),
    [
        ("0::/", {"memory.max": "4000"}, 4000),  # in a container
        ("0::/slurm/job7", {"slurm/memory.max": "5000", "slurm/job7/memory.max": "max"}, 5000),
        ("0::/slurm/job7", {"slurm/memory.max": "5000", "slurm/job7/memory.max": "3000"}, 3000),
        ("0::/of/the/host", {"memory.max": "4000"}, 4000),  # whose folders a container does not see
        ("4:cpu,memory:/job7\n3:pids:/", {"memory/job7/memory.limit_in_bytes": "6000"}, 6000),
        ("4:memory:/", {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, None),
        ("3:pids:/", {"memory.max": "4000"}, None),
        ("0::/", {}, None),
    ],
)
def test_the_least_of_all_groups_is_allowed(
    own: str, limits: dict[str, str], allowed: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, own_groups = tmp_path / "groups", tmp_path / "own"
    write({own_groups: own, **{groups / name: text for name, text in limits.items()}})
    monkeypatch.setattr(limits_of, "GROUPS", tmp_path / "none")
    monkeypatch.setattr(limits_of, "OWN_GROUPS", own_groups)
    whole = memory_of_machine()
    assert whole is not None
    assert whole > 10**9
    monkeypatch.setattr(limits_of, "GROUPS", groups)
    assert memory_of_machine() == (whole if allowed is None else allowed)


def test_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_of, "OWN_GROUPS", tmp_path / "none")
    monkeypatch.setattr(os, "sysconf_names", {})
    assert memory_of_machine() is None


@pytest.mark.parametrize(
    ("own", "limits", "cores"),
    [
        ("0::/", {"cpu.max": "200000 100000"}, 2),  # in a container
        ("0::/", {"cpu.max": "250000 100000"}, 3),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "1600000 100000"}, 8),
        ("0::/slurm/job7", {"slurm/cpu.max": "300000 100000", "slurm/job7/cpu.max": "max 100000"}, 3),
        ("4:cpu,cpuacct:/pod", {"cpu/pod/cpu.cfs_quota_us": "400000", "cpu/pod/cpu.cfs_period_us": "100000"}, 4),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("3:pids:/", {"cpu.max": "200000 100000"}, 8),
        ("0::/", {}, 8),
    ],
)
def test_cores_of_a_quota(
    own: str, limits: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write({tmp_path / "own": own, **{tmp_path / "groups" / name: text for name, text in limits.items()}})
    monkeypatch.setattr(limits_of, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(limits_of, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert usable_cores() == cores


def test_cores_that_are_given_to_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert usable_cores() <= 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert usable_cores() == 1
