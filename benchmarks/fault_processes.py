"""How `faults.py` starts commands, looks at their processes, and disturbs them from within: their files and clocks."""

import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch.distributed.fsdp

from poa import cli
from poa.experiments import demo
from poa.pretraining import launch
from poa.tasks import evaluate

PRELOADED = (demo, evaluate, launch, torch.distributed.fsdp)
"""What commands import: one that starts as a fork of this process takes no seconds for that."""

MAIN, RANK, WORKER, TRACKER = "main process", "rank", "worker", "resource tracker"
"""The last is Python's, and removes what processes leave in shared memory; a new one is started where it is gone."""
MOST_SECONDS = 1800
"""For a command to end; more is a fault."""
SLOW_SECONDS, CLOCK_STEP = 0.05, 100_000.0
"""Before each thing done to a file of a slow disk; of the clock, forwards and backwards."""
SLOW_NETWORK = "tbf rate 50mbit burst 70kb limit 70kb"
"""Of the network between ranks: packets wait, and where several wait about every fourth is lost."""
OWN, SLOW = "own", "slow"
"""Networks that a command can have to itself."""
LEFT_SECONDS = 60
"""For processes to end whose parent was killed: on a busy machine they first end their imports."""
POLL_SECONDS = 0.02
_TICKS = os.sysconf("SC_CLK_TCK")
_PR_SET_NAME, _CLONE_NEWNET = 15, 0x40000000


class Inner(NamedTuple):
    """What goes wrong in a process, before which of the things that it does to files."""

    kind: str
    victim: str
    """The main process or a rank, as ``Watch`` names it."""
    at: int


class Watch:
    """Counts what a process does to files in the folder of its command, and disturbs it."""

    def __init__(self, faults: Sequence[Inner]) -> None:
        self.name, self.count, self._faults = MAIN, 0, faults
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            return
        path, mode, flags = (*arguments, None, None)[:3]
        if event == "open" and not (set(mode) & set("wxa+") if mode else flags & (os.O_WRONLY | os.O_RDWR)):
            return
        if not isinstance(path, str | os.PathLike) or not Path(path).absolute().is_relative_to(Path.cwd()):
            return
        count = self.count = self.count + 1  # of this call: checkpoints are written in a thread of their own
        for kind, victim, at in self._faults:
            if victim == self.name and count >= at:
                self._disturb(kind, event, str(path), count, is_first=count == at)

    def _disturb(self, kind: str, event: str, path: str, count: int, *, is_first: bool) -> None:
        if is_first:
            print(f"\ndisturbed: {kind} before {event} {path}", flush=True)
        if kind == "kill" and is_first:  # not by another thread before it is said
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == "full disk" and event in ("open", "os.mkdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        elif kind == "slow disk":
            time.sleep(SLOW_SECONDS)
        elif kind == "clock step" and is_first:
            right = time.time
            time.time = lambda: right() + (CLOCK_STEP if count % 2 else -CLOCK_STEP)


class ForkedRank:
    """A rank that is a fork of its launcher, as ``subprocess.Popen`` is to it."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], *, watch: Watch) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        os.environ.update(env)
        watch.name, watch.count = f"{RANK} {env['RANK']}", 0
        ctypes.CDLL(None).prctl(_PR_SET_NAME, f"poa-{watch.name}".encode())
        sys.argv = list(command[2:])  # from the module's name on
        _end(lambda: launch.main(), watch)

    def poll(self) -> int | None:
        """Exit status, None while it runs."""
        if self.returncode is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if found else None
        return self.returncode

    def wait(self) -> int:
        """Exit status, once it has ended."""
        while self.poll() is None:
            time.sleep(0.005)
        return self.returncode or 0

    def send_signal(self, number: int) -> None:
        """As to a process that may have ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


def start(
    words: Sequence[str], folder: Path, faults: Sequence[Inner] = (), *, forked: bool = True, network: str = ""
) -> int:
    """Start a command in a process and a session of its own; its output goes to ``log_of``."""
    pid = os.fork()
    if pid:
        log_of(folder, pid).touch()  # it may be killed before it writes
        return pid
    os.setsid()
    os.chdir(folder)
    output = os.open(log_of(folder, os.getpid()), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["poa", *words]
    print(f"{time.strftime('%H:%M:%S')} {sys.argv}", flush=True)
    if network:
        own_network(network)
    watch = Watch(faults)
    if forked:
        vars(launch)["subprocess"] = SimpleNamespace(Popen=lambda command, env: ForkedRank(command, env, watch=watch))
    _end(lambda: cli.main(list(words)), watch)
    raise AssertionError


def _end(work: Any, watch: Watch) -> None:
    """Do the work of a forked process, and end it as Python does."""
    status = 1
    try:
        torch.set_num_threads(1)  # makes the pool of threads that did not come along, before several threads do
        work()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        print(f"\nfiles of {watch.name}: {watch.count}", flush=True)
        os._exit(status)


def network_refused() -> str | None:
    """Why commands cannot have a network of their own, None if they can."""
    pid = os.fork()
    if not pid:
        status = 1
        with suppress(Exception):
            own_network(SLOW)
            status = 0
        os._exit(status)
    if os.waitpid(pid, 0)[1] == 0:
        return None
    return "a network namespace, ip or tc with tbf is not there or not allowed (root, iproute2)"


def own_network(kind: str) -> None:
    """Let this process and those that it starts have a loopback interface of their own."""
    if ctypes.CDLL(None).unshare(_CLONE_NEWNET):
        raise PermissionError
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    if kind == SLOW:
        subprocess.run(["tc", "qdisc", "add", "dev", "lo", "root", *SLOW_NETWORK.split()], check=True)


def network_of(session: int, state: str) -> None:
    """Let the loopback interface of a command be ``down`` or ``up``."""
    words = ["nsenter", f"--net=/proc/{session}/ns/net", "ip", "link", "set", "lo", state]
    subprocess.run(words, check=False, capture_output=True)  # the command may have ended


def log_of(folder: Path, pid: int) -> Path:
    """Where the output of a command goes."""
    return folder.with_name(f"{folder.name}.{pid}.log")


def wait(pid: int) -> int | None:
    """Exit status of a started command, minus the number of a signal; None if it does not end."""
    began = time.monotonic()
    while time.monotonic() < began + MOST_SECONDS:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL_SECONDS)
    for each in members(pid):
        os.kill(each, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def members(session: int) -> dict[int, str]:
    """Living processes of a session, and what they are."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile
            state, _, _, of = _fields(int(folder.name))[:4]
            if int(of) == session and state != "Z":
                line = (folder / "cmdline").read_text() + (folder / "comm").read_text()
                is_rank = "poa.pretraining.launch" in line or f"poa-{RANK}" in line
                is_worker = "multiprocessing.forkserver" in line
                other = TRACKER if "multiprocessing.resource_tracker" in line else MAIN
                found[int(folder.name)] = RANK if is_rank else WORKER if is_worker else other
    return found


def cpu_of(pid: int) -> float | None:
    """Seconds of processor time of a process and its children so far; None once it has ended."""
    try:
        fields = _fields(pid)
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    own = sum(map(int, fields[11:13])) / _TICKS
    return None if fields[0] == "Z" else own + sum(cpu_of(int(child)) or 0 for child in children)


def _fields(pid: int) -> list[str]:
    """Of a process, from its state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
