"""Batches that worker processes prepare ahead, and how these processes start and end."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from poa.errors import UserError, first_line

STOP_SIGNALS = {each for each in signal.Signals if each.name in ("SIGINT", "SIGTERM", "SIGUSR1")}
Item = TypeVar("Item")


class Plan(Dataset[Item | UserError]):
    """Items, such as batches, that can be made one by one in any process."""

    def __len__(self) -> int:
        raise NotImplementedError

    def make(self, number: int) -> Item:
        """Make one item."""
        raise NotImplementedError

    def __getitem__(self, number: int) -> Item | UserError:
        try:
            return self.make(number)
        except UserError as error:  # raised by `prepare`: on its way out of a worker its text would become a traceback
            return error


def prepare(plan: Plan[Item], *, workers: int, pin_memory: bool = False) -> Iterator[Item]:
    """The items of a plan in order, made here or by workers; UserError if their number is none."""
    if workers < 0:
        raise UserError(f"--workers must be at least 0, got {workers}.")
    loader: DataLoader[Item | UserError] = DataLoader(
        plan,
        batch_size=None,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        multiprocessing_context=_context() if workers else None,
        worker_init_fn=_on_start,
        generator=torch.Generator(),  # its own, so that loading leaves the global random state alone
    )
    with _explained():
        for item in _started(loader):  # no name keeps it: when this ends, for whatever reason, the workers do
            if isinstance(item, UserError):
                raise item
            yield item


def _unchanged(item: Item) -> Item:
    return item


@contextmanager
def _explained() -> Iterator[None]:
    """Turn the errors by which torch and multiprocessing tell that a worker is gone into a UserError."""
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
            raise  # a defect, here or in a worker
        raise UserError(
            f"A data worker ended unexpectedly, perhaps because memory was full ({first_line(error)}). Run the same "
            "command again (a pre-training with --resume) with fewer --workers, or give the workers more memory (in "
            "containers also --shm-size)."
        ) from error


def _started(loader: "DataLoader[Item]") -> Iterator[Item]:
    with _stop_signals_held_back(), _script_not_run_again():
        return iter(loader)


@contextmanager
def _script_not_run_again() -> Iterator[None]:
    """Processes started meanwhile do not run the user's script once more.

    They would, to find what is defined there, and a script without ``if __name__ == "__main__":`` would then start the
    training again in each; one from standard input is not found at all. Plans hold nothing that is defined there.
    """
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


@contextmanager
def _stop_signals_held_back() -> Iterator[None]:
    """The server of processes, if it is started meanwhile, does not see requests to stop.

    Terminals and schedulers send these to all processes of a run. The one that trains ends in good order, and needs its
    workers for that, and they need the server that started them. Workers hold the signals back themselves.
    """
    if sys.platform != "linux":
        yield
        return
    resource_tracker.ensure_running()  # its own start, which comes first, would let the signals through again
    old = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # the server inherits the mask
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _on_start(_: int) -> None:
    """In a worker: end with the process that trains or at its request, and at no other's."""
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # of each thread that is started from here
    threading.Thread(target=_end_after, args=(trainer,), daemon=True).start()
    if sys.platform == "linux":
        threading.Thread(target=_end_at_request, args=(trainer.pid,), daemon=True).start()


def _end_after(trainer: BaseProcess) -> None:
    """Torch's workers watch their own parent, which here is the server; it lives as long as one of them does."""
    trainer.join()
    os._exit(1)


def _end_at_request(trainer: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        pass
    os._exit(1)


def _context() -> BaseContext:
    """How workers start: forked from a clean server, as forking this process is unsafe once torch runs threads.

    The server imports this package once (about a second); each worker then starts in some hundredths of one.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["poa.data.server"])
    return context
