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

import torch

from poa import distributed
from poa.config import resolve
from poa.config.pretraining import Config
from poa.errors import UserError, reason
from poa.models import registry
from poa.models import run as runs
from poa.models.run import Run
from poa.pretraining import loop
from poa.text import make_printable, shown_warnings, unicode_text

GRACE_SECONDS = 10.0
"""Time for the other processes to end by themselves once one has failed."""
POLL_SECONDS = 0.05
INTERRUPTED = 128 + signal.SIGINT


class Failure(NamedTuple):
    """A process that failed."""

    rank: int
    status: int
    """Exit status; minus the number of the signal if one ended it."""


def train(config: Config, *, resume: bool = False) -> Run:
    """Pre-train, on one process for each device.

    Raises:
        UserError: A setting, the images or the folder are invalid, on this process or another.
        RuntimeError: Another process failed by a defect; the text ends with its traceback.
    """
    several = config.devices > 1 or config.num_nodes > 1
    if not several or "LOCAL_RANK" in os.environ:  # torchrun has started this process
        return loop.train(config, resume=resume)
    _check(config)
    config = registry.explicit(config)
    runs.check(config, resume=resume)
    with tempfile.TemporaryDirectory() as folder:
        _run_processes(config, Path(folder), resume=resume)
    return runs.load(config.out)


def _check(config: Config) -> None:
    if config.num_nodes > 1:
        raise UserError(
            f"A run on {config.num_nodes} machines is started with torchrun, once on each: "
            f"torchrun --nnodes {config.num_nodes} --nproc-per-node {config.devices} --rdzv-backend c10d "
            "--rdzv-endpoint HOST:PORT -m poa pretrain ..."
        )
    available = torch.cuda.device_count()
    if distributed.this_device(config.device).type == "cuda" and available < config.devices:
        raise UserError(
            f"--devices {config.devices} is more than the number of GPUs here, {available}. Lower it to {available}."
        )


def _run_processes(config: Config, folder: Path, *, resume: bool) -> None:
    (folder / "config.yaml").write_text(resolve.to_yaml(config), encoding="utf-8")
    command = [sys.executable, "-m", "poa.pretraining.launch", str(folder), "resume" if resume else "start", *sys.argv]
    shared = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // config.devices)), **os.environ}
    processes = []
    try:
        for own in distributed.group_on_this_machine(config.devices, folder):
            processes.append(subprocess.Popen(command, env=shared | own))
        with _forwarded_signals(processes):
            failure = first_failed(processes, grace_seconds=GRACE_SECONDS)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if failure:
        raise _error(failure, folder)


def main() -> None:
    """Train in a launched process. Arguments: a folder, ``resume`` or ``start``, and what the user typed."""
    make_printable()
    folder, how = Path(sys.argv[1]), sys.argv[2]
    sys.argv = sys.argv[3:]
    rank = os.environ["RANK"]
    try:
        with shown_warnings():
            loop.train(resolve.resolve(file=folder / "config.yaml"), resume=how == "resume")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except (UserError, OSError) as error:
        (folder / f"{rank}.message").write_text(unicode_text(reason(error)), encoding="utf-8")
        sys.exit(2)
    except Exception:  # reported by the process that waits for this one: it knows which of several came first
        (folder / f"{rank}.traceback").write_text(unicode_text(traceback.format_exc()), encoding="utf-8")
        sys.exit(1)


def first_failed(processes: Sequence["subprocess.Popen[bytes]"], *, grace_seconds: float) -> Failure | None:
    """Wait until all processes end, or for the seconds of grace once one has failed; returns the first that failed."""
    failure, deadline = None, float("inf")
    while time.monotonic() < deadline:
        statuses = [process.poll() for process in processes]
        if failure is None and any(statuses):
            failed = [Failure(rank, status) for rank, status in enumerate(statuses) if status]
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
def _forwarded_signals(processes: Sequence["subprocess.Popen[bytes]"]) -> Iterator[None]:
    """Forward requests to stop to the processes, which save and end."""

    def forward(number: int, _frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(number)

    main_thread = threading.current_thread() is threading.main_thread()  # only there can signals be handled
    old = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT) if main_thread}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
