"""How `faults.py` starts commands, looks at their processes, and disturbs their files and clocks."""

import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from poa import cli
from poa.experiments import demo
from poa.pretraining import launch
from poa.tasks import evaluate

PRELOADED = (demo, evaluate, launch)
"""What commands import: one that starts as a fork of this process takes no seconds for that."""

PARTS = {"rank": "poa.pretraining.launch", "worker": "multiprocessing.forkserver"}
"""What can be killed besides the main process, and a part of its command line."""
MOST_SECONDS = 600
"""For a command to end; more is a fault."""
SLOW_SECONDS, CLOCK_STEP = 0.1, 100_000.0
"""Before each thing done to a file of a slow disk; of the clock, forwards and backwards."""
LEFT_SECONDS = 30
"""For processes to end whose parent was killed: on a busy machine they first end their imports."""


class Disturbance(NamedTuple):
    """What goes wrong in a process, and before which of the things that it does to files."""

    kind: str = "nothing"
    """Or a kill, a full disk, a slow disk, a step of the clock."""
    at: int = 0


UNDISTURBED = Disturbance()


class Watch:
    """Counts what a command does to files in its folder, and disturbs it."""

    def __init__(self, disturbance: Disturbance) -> None:
        self.count, self._disturbance = 0, disturbance
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            return
        path, mode, flags = (*arguments, None, None)[:3]
        if event == "open" and not (set(mode) & set("wxa+") if mode else flags & (os.O_WRONLY | os.O_RDWR)):
            return
        if not isinstance(path, str | os.PathLike) or not Path(path).absolute().is_relative_to(Path.cwd()):
            return
        self.count += 1
        kind, at = self._disturbance
        if kind == "kill" and self.count == at:
            print(f"killed before: {event} {path}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "full disk" and self.count >= at and event in ("open", "os.mkdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        elif kind == "slow disk":
            time.sleep(SLOW_SECONDS)
        elif kind == "clock step" and self.count == at:
            step_clock(CLOCK_STEP if at % 2 else -CLOCK_STEP)


def step_clock(seconds: float) -> None:
    """Let Python's clock of this process be ahead or behind from now on."""
    right = time.time
    time.time = lambda: right() + seconds


def start(words: Sequence[str], folder: Path, disturbance: Disturbance = UNDISTURBED) -> int:
    """Start a command in a process and a session of its own; its output goes to ``log_of``."""
    pid = os.fork()
    if pid:
        log_of(folder, pid).touch()  # it may be killed before it writes
        return pid
    os.setsid()
    os.chdir(folder)
    status, watch = 1, Watch(disturbance)
    try:
        output = os.open(log_of(folder, os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["poa", *words]
        print(f"{time.strftime('%H:%M:%S')} {sys.argv}", flush=True)
        cli.main(list(words))
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        print(f"\nfiles {watch.count}", flush=True)
        os._exit(status)


def log_of(folder: Path, pid: int) -> Path:
    """Where the output of a command goes."""
    return folder.with_name(f"{folder.name}.{pid}.log")


def wait(pid: int, seen: dict[str, float] | None = None) -> int | None:
    """Exit status of a started command, minus the number of a signal; None if it does not end.

    ``seen`` gets the seconds after which each of its parts first lived.
    """
    began = time.monotonic()
    while time.monotonic() < began + MOST_SECONDS:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if seen is not None:
            here = [part for part in PARTS if part not in seen and parts_of(pid, part)]
            seen.update(dict.fromkeys(here, time.monotonic() - began))
        time.sleep(0.01)
    for each in members(pid):
        os.kill(each, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def members(session: int) -> dict[int, str]:
    """Living processes of a session, and their command lines."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile
            state, _, _, of = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text()
    return found


def parts_of(session: int, part: str) -> list[int]:
    """Living ranks or workers of a command."""
    return [pid for pid, line in members(session).items() if part in PARTS and PARTS[part] in line]


def wait_for_part(session: int, part: str) -> None:
    """Wait until a command has ranks or workers, or ends."""
    while part in PARTS and not parts_of(session, part) and session in members(session):
        time.sleep(0.01)
