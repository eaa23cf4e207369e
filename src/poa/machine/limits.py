"""How much memory and how many cores the processes of this machine may use: a container or a scheduler may limit both.

Imports no torch.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows its control groups."""
OWN_GROUPS = Path("/proc/self/cgroup")
"""Where it shows which of them a process is in, each as ``id:controllers:path``."""


def memory_of_machine() -> int | None:
    """Bytes of memory, or fewer where fewer are allowed; None where the system does not tell."""
    names = getattr(os, "sysconf_names", {})
    limits = [int(limit) for limit in _limits("memory", "memory.max", ["memory.limit_in_bytes"]) if limit.isdigit()]
    if {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(names):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=None)


def usable_cores() -> int:
    """Cores that this process may use, or whose time it has: fewer than there are where a limit says so."""
    cores = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for limit in _limits("cpu", "cpu.max", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        quota, _, period = limit.partition(" ")
        if quota.isdigit() and period.isdigit():  # or "max", or -1
            cores.append(max(1, math.ceil(int(quota) / int(period))))
    return min(cores)


def _limits(controller: str, name: str, old_names: list[str]) -> Iterator[str]:
    """What the control groups of this process and all above them say, in both versions (cgroups(7)).

    ``name`` is that of the file of the second version, in the place of which the first has perhaps several.
    """
    for line in _text(OWN_GROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, names = GROUPS, [name]
        elif controller in controllers.split(","):
            root, names = GROUPS / controller, old_names
        else:
            continue
        parts = Path(path.strip("/")).parts
        for length in range(len(parts) + 1):
            yield " ".join(_text(root.joinpath(*parts[:length], each)).strip() for each in names)


def _text(file: Path) -> str:
    """Nothing where a system has no such file, or does not show it."""
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
