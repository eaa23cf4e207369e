"""Train on one process for each device: this one, or several that it starts."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from poa import distributed
from poa.config import resolve
from poa.config.pretraining import Config
from poa.errors import UserError, reason
from poa.machine import devices, launchers
from poa.machine.limits import usable_cores
from poa.models import opening, registry
from poa.models import run as runs
from poa.models.run import Run
from poa.pretraining import process as this_process
from poa.pretraining.observers import NO_CALLBACKS, Callbacks
from poa.pretraining.process import PLAN
from poa.text import make_printable, shown_warnings, unicode_text
from poa.training.interrupt import SIGNALS, StopSignal

GRACE_SECONDS = 10.0
"""Time for the other processes to end by themselves once one has failed."""
POLL_SECONDS = 0.05
INTERRUPTED = 128 + signal.SIGINT


class Failure(NamedTuple):
    """A process that failed."""

    rank: int
    status: int
    """Exit status; minus the number of the signal if one ended it."""


def train(
    config: Config,
    *,
    resume: bool = False,
    asked: StopSignal | None = None,
    plan: str = "",
    callbacks: Callbacks = NO_CALLBACKS,
) -> Run:
    """Pre-train, on one process for each device; ``asked`` tells afterwards whether the run was stopped.

    The text of a plan is written to a new run.

    Raises:
        UserError: A setting, the images or the folder are invalid, on this process or another.
        RuntimeError: Another process failed by a defect; the text ends with its traceback.
    """
    asked, config = asked or StopSignal(), placed(config)
    if config.processes == 1 or launchers.place() is not None:
        return this_process.train(config, resume=resume, asked=asked, plan=plan, callbacks=callbacks)
    if callbacks != NO_CALLBACKS:
        raise UserError(
            f"on_step and on_score cannot reach this program from the {config.processes} processes that --devices "
            "starts. Start the program with torchrun, leave them out, or set devices=1."
        )
    _check(config)
    config = registry.explicit(config)
    opening.check(config, resume=resume)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, PLAN).write_text(plan, encoding="utf-8")
        _run_processes(config, Path(folder), resume=resume, asked=asked)
    return runs.load(config.out)


def goes_on(config: Config, *, resume: bool, again: bool) -> bool:
    """Whether a run is resumed: as asked for, or where the command may be started ``again``, since it has begun."""
    return resume or (again and bool(config.out) and opening.is_begun(Path(config.out)))


def placed(config: Config) -> Config:
    """The settings with the processes that the run has: those of the launcher, or as asked for, or one for each GPU."""
    place = launchers.place()
    if place is not None:
        return config.model_copy(update={"devices": place.local_processes, "num_nodes": place.num_machines})
    return config if config.devices is not None else config.model_copy(update={"devices": _processes_here(config)})


def _processes_here(config: Config) -> int:
    parts = config.accumulate * config.num_nodes
    here, batch = devices.found(), config.batch_size
    return devices.processes_here(config.devices, config.device, here, batch_size=batch, parts=parts)


def _check(config: Config) -> None:
    if config.num_nodes > 1:
        raise UserError(
            f"A run on {config.num_nodes} machines is started by srun, or with torchrun, once on each: "
            f"torchrun --nnodes {config.num_nodes} --nproc-per-node {config.devices} --rdzv-backend c10d "
            "--rdzv-endpoint HOST:PORT -m poa pretrain ... On this machine alone, set --num-nodes 1."
        )
    _processes_here(config)  # refuses what is not there


def _run_processes(config: Config, folder: Path, *, resume: bool, asked: StopSignal) -> None:
    (folder / "config.yaml").write_text(resolve.to_yaml(config), encoding="utf-8")
    command = [sys.executable, "-m", "poa.pretraining.launch", str(folder), "resume" if resume else "start", *sys.argv]
    number = config.processes
    shared = {"OMP_NUM_THREADS": str(max(1, usable_cores() // number)), **os.environ}
    processes = []
    try:
        for own in distributed.group_on_this_machine(number, folder):
            processes.append(subprocess.Popen(command, env=shared | own))
        with _forwarded_signals(processes, asked):
            failure = first_failed(processes, grace_seconds=GRACE_SECONDS)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if failure:
        raise _error(failure, folder)
    asked.stopped = any(process.returncode == launchers.STOPPED for process in processes)


def main() -> None:
    """Train in a launched process. Arguments: a folder, ``resume`` or ``start``, and what the user typed."""
    make_printable()
    folder, how = Path(sys.argv[1]), sys.argv[2]
    sys.argv = sys.argv[3:]
    rank, asked = os.environ["RANK"], StopSignal()
    try:
        with shown_warnings():
            plan = (folder / PLAN).read_text(encoding="utf-8") if (folder / PLAN).exists() else ""
            config = resolve.of_run(folder / "config.yaml")
            this_process.train(config, resume=how == "resume", asked=asked, plan=plan)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (UserError, OSError) as error:
        (folder / f"{rank}.message").write_text(unicode_text(reason(error)), encoding="utf-8")
        sys.exit(2)
    except Exception:  # reported by the process that waits for this one: it knows which of several came first
        (folder / f"{rank}.traceback").write_text(unicode_text(traceback.format_exc()), encoding="utf-8")
        sys.exit(1)
    sys.exit(asked.status)


def first_failed(processes: Sequence["subprocess.Popen[bytes]"], *, grace_seconds: float) -> Failure | None:
    """Wait until all processes end, or for the seconds of grace once one has failed; returns the first that failed."""
    failure, deadline = None, float("inf")
    while time.monotonic() < deadline:
        statuses = [process.poll() for process in processes]
        failed = [Failure(rank, each) for rank, each in enumerate(statuses) if each not in (None, 0, launchers.STOPPED)]
        if failure is None and failed:
            failure = min(failed, key=lambda each: each.status)  # one that was killed; the others fail because of it
            deadline = time.monotonic() + grace_seconds
        if None not in statuses:
            break
        time.sleep(POLL_SECONDS)
    return failure


def _error(failure: Failure, folder: Path) -> BaseException:
    """The error to raise here for a process that failed."""
    if failure.status in (-signal.SIGINT, INTERRUPTED):
        return KeyboardInterrupt()
    messages = sorted(folder.glob("*.message"))
    if messages:  # other processes may have failed before this was written, because it was gone
        return UserError(messages[0].read_text(encoding="utf-8"))
    if failure.status < 0:
        how = signal.Signals(-failure.status).name
        return UserError(
            f"Process {failure.rank} was killed ({how}), perhaps by the system because memory ran out. Fix the "
            "cause and resume with --resume."
        )
    tracebacks = sorted(folder.glob("*.traceback"), key=lambda path: path.stat().st_mtime_ns)
    text = tracebacks[0].read_text(encoding="utf-8") if tracebacks else ""
    return RuntimeError(f"process {failure.rank} failed:\n{text}")


@contextmanager
def _forwarded_signals(processes: Sequence["subprocess.Popen[bytes]"], asked: StopSignal) -> Iterator[None]:
    """Forward requests to stop to the processes, which save and end."""

    def forward(number: int, _frame: FrameType | None) -> None:
        asked.seen.add(signal.Signals(number).name)
        for process in processes:
            process.send_signal(number)

    main_thread = threading.current_thread() is threading.main_thread()  # only there can signals be handled
    old = {number: signal.signal(number, forward) for number in SIGNALS if main_thread}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
