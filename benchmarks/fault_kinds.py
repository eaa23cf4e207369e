"""What `faults.py` does to a command: which faults, when, and how they are done from outside."""

import os
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from fault_processes import MAIN, POLL_SECONDS, TRACKER, WORKER, Inner, cpu_of, members, network_of
from fault_runs import WRITTEN_AT

ENDING = ("kill", "full disk", "corrupt shard", "vanished data")
"""After these a command may end, with a sentence where it is still there."""
PASSING = ("pause", "slow disk", "clock step", "slow network", "network outage")
"""These it should not notice."""
KINDS = (*ENDING, *PASSING)
INNER = ("full disk", "slow disk", "clock step")
"""These come from within a process, see ``Watch``; kills may."""
OF_DATA = ("corrupt shard", "vanished data")
OF_NETWORK = ("slow network", "network outage")
_MAY_END: dict[str, tuple[int, ...]] = {"kill": (-signal.SIGKILL, 2), "full disk": (2,)}
_MAY_END |= dict.fromkeys(OF_DATA, (0, 2)) | dict.fromkeys(PASSING, (0,))


class Outer(NamedTuple):
    """What is done to a command from outside."""

    kind: str
    victim: str
    at: float
    """Seconds of processor time of all its processes."""
    seconds: float
    """How long it lasts, unless it is a kill; infinite: until the command has ended."""


class Command(NamedTuple):
    """What is known of a command that was not disturbed."""

    cpu: float
    files: Mapping[str, int]
    """How many things each process does to files."""
    parts: Sequence[str]
    kinds: Sequence[str]
    """Faults that can hit it."""


class Data:
    """The images of a run, in a folder of files or of tars, and what happens to them."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._away = folder, folder.with_name(f"{folder.name}-away")
        self._whole = {path: path.read_bytes() for path in sorted(folder.iterdir())}

    @property
    def is_disturbed(self) -> bool:
        """Whether they are not as they were."""
        return self._away.exists() or any(
            path.stat().st_mtime != WRITTEN_AT or path.read_bytes() != content for path, content in self._whole.items()
        )

    def vanish(self) -> None:
        """Let the folder not be there."""
        self._folder.rename(self._away)

    def corrupt(self, *, noticeable: bool) -> None:
        """Let a file in the middle be zeros from its first block on, with or without another time of change."""
        path = list(self._whole)[len(self._whole) // 2]
        with path.open("r+b") as file:
            file.seek(512)
            file.write(bytes(len(self._whole[path]) - 512))
        if not noticeable:
            os.utime(path, (WRITTEN_AT, WRITTEN_AT))

    def restore(self) -> None:
        """Let everything be as it was."""
        if self._away.exists():
            self._away.rename(self._folder)
        for path, content in self._whole.items():
            if path.stat().st_mtime != WRITTEN_AT or path.read_bytes() != content:
                path.write_bytes(content)
                os.utime(path, (WRITTEN_AT, WRITTEN_AT))


def may_end(kind: str, what: str) -> tuple[int, ...]:
    """Exit status of a command after a fault and what it hit."""
    return (0,) if what == TRACKER else _MAY_END[kind]


def draw_faults(command: Command, draw: random.Random, *, share: float) -> list[Inner | Outer]:
    """Up to four faults of one start of a command, at most one of which may end it, in its first share."""
    passing = [kind for kind in PASSING if kind in command.kinds]
    ending = [kind for kind in ENDING if kind in command.kinds]
    chosen = draw.sample(passing, k=min(draw.randint(0, 3), len(passing)))
    if ending and (not chosen or draw.random() < 0.95):
        chosen.append(draw.choice([*ending, *["kill"] * 3 * ("kill" in ending)]))
    return [_drawn(kind, command, draw, share=share) for kind in chosen or draw.sample(passing, k=min(1, len(passing)))]


def _drawn(kind: str, command: Command, draw: random.Random, *, share: float) -> Inner | Outer:
    if kind in INNER or (kind == "kill" and draw.random() < 0.4):
        victim = draw.choice([each for each, number in command.files.items() for _ in range(number)])
        return Inner(kind, victim, draw.randint(1, max(1, round(share * command.files[victim]))))
    of = "images" if kind in OF_DATA else "network"
    victim = draw.choice([MAIN, *command.parts, *command.parts]) if kind in ("kill", "pause") else of
    late = 0.5 if victim in (WORKER, TRACKER) else 0.2  # before, there are no workers, and no steps
    seconds = draw.uniform(0.2, 2)
    if kind in OF_DATA and draw.random() < 0.5:
        seconds = float("inf")
    return Outer(kind, victim, draw.uniform(late, 1) * share * command.cpu, seconds)


def strike(fault: Outer, session: int, data: Data, draw: random.Random) -> str | None:
    """Wait for the moment of a fault and do it, with its end; returns what was hit, None if the command has ended."""
    while (spent := cpu_of(session)) is not None and spent < fault.at:
        time.sleep(POLL_SECONDS)
    if spent is None:
        return None
    if fault.kind in ("kill", "pause"):
        return _hit(fault, session, draw)
    begin: dict[str, Callable[[], None]] = {
        "corrupt shard": lambda: data.corrupt(noticeable=draw.random() < 0.5),
        "vanished data": data.vanish,
        "network outage": lambda: network_of(session, "down"),
    }
    begin.get(fault.kind, lambda: None)()
    if fault.seconds < float("inf"):
        time.sleep(fault.seconds)
        if fault.kind in OF_DATA:
            data.restore()
        elif fault.kind == "network outage":
            network_of(session, "up")
    return fault.victim


def _hit(fault: Outer, session: int, draw: random.Random) -> str | None:
    here = members(session)
    living = [pid for pid, what in here.items() if what == fault.victim]
    pid = draw.choice(living) if living else session
    with suppress(ProcessLookupError):
        if fault.kind == "kill":
            os.kill(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(fault.seconds)
            os.kill(pid, signal.SIGCONT)
        return here.get(pid, MAIN)  # a list of /proc may leave the command out while others come and go
    return None
