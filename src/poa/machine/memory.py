"""How much memory there is for the processes of this machine."""

import os
from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows its control groups."""
OWN_GROUPS = Path("/proc/self/cgroup")
"""Where it shows which of them a process is in, each as ``id:controllers:path``."""


def memory_of_machine() -> int | None:
    """Bytes of memory, or fewer where a container or a scheduler allows fewer; None where the system does not tell."""
    names = getattr(os, "sysconf_names", {})
    limits = list(_limits())
    if {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(names):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=None)


def _limits() -> Iterator[int]:
    """Of the control groups of this process and of all above them, in both versions (cgroups(7))."""
    for line in _text(OWN_GROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, name = GROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = GROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        parts = Path(path.strip("/")).parts
        for length in range(len(parts) + 1):
            limit = _text(root.joinpath(*parts[:length], name)).strip()
            if limit.isdigit():  # or "max"
                yield int(limit)


def _text(file: Path) -> str:
    """Nothing where a system has no such file, or does not show it."""
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
