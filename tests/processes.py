"""Run a function in several processes that form a process group."""

import contextlib
import importlib.util
import inspect
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

multiprocessing.set_forkserver_preload(["torch.distributed", "timm", "pytest", "poa.cli", "poa.pretraining.launch"])
"""Imported once in place of in every process, which would take longer than most tests."""


def _worker(rank: int, num_processes: int, file: str, name: str, args: tuple[Any, ...], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_processes)
    # By path, not by module name: test files are no importable modules in a new process.
    spec = importlib.util.spec_from_file_location("worker", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.save(getattr(module, name)(*args), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _command(words: Sequence[str], environment: Mapping[str, str], said: str, asked_at: int | None) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment)
    from poa.cli import main
    from poa.pretraining import loop

    train_step = loop.train_step

    def asked_to_stop(parts: Any, step: int, *args: Any, **options: Any) -> Any:
        result = train_step(parts, step, *args, **options)
        if step == asked_at:
            os.kill(os.getpid(), signal.SIGUSR1)
        return result

    loop.train_step = asked_to_stop
    with Path(said).open("w", buffering=1) as file, contextlib.redirect_stderr(file):
        main(list(words))


def start_command(
    words: Sequence[str], environment: Mapping[str, str], *, said: Path, asked_at: int | None = None
) -> BaseProcess:
    """Start ``poa`` with some words and environment variables; what it says on standard error goes to a file.

    It shares the imports of ``run_processes``, in place of a second for them. ``asked_at`` is the step in which it gets
    SIGUSR1: sent from outside, the signal would come when the machine has time for it.
    """
    process = multiprocessing.get_context("forkserver").Process(
        target=_command, args=(words, environment, str(said), asked_at)
    )
    process.start()
    return process


def run_processes(function: Callable[..., Any], num_processes: int, *args: Any) -> list[Any]:
    """What each process returns, in rank order; an exception in a process is raised here, with its traceback.

    Args:
        function: Defined at the top of a file; it learns its place from ``poa.distributed.rank()``.
        num_processes: How many to start, joined by gloo.
        args: Arguments of the function, the same in every process.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(inspect.getfile(function)).resolve())
        given = (num_processes, file, function.__name__, args, folder)
        mp.start_processes(_worker, given, nprocs=num_processes, start_method="forkserver")
        return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(num_processes)]
