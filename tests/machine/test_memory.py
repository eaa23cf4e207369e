"""The memory that a container or a scheduler allows counts, not only that of the machine."""

import os
from pathlib import Path

import pytest

from poa.machine import memory
from poa.machine.memory import memory_of_machine


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
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "none")
    monkeypatch.setattr(memory, "OWN_GROUPS", own_groups)
    whole = memory_of_machine()
    assert whole is not None
    assert whole > 10**9
    monkeypatch.setattr(memory, "GROUPS", groups)
    assert memory_of_machine() == (whole if allowed is None else allowed)


def test_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "none")
    monkeypatch.setattr(os, "sysconf_names", {})
    assert memory_of_machine() is None
