"""Which device a process computes on, and how many processes a machine can have: one rule for all commands."""

import os
from typing import Literal, NamedTuple

import torch

from poa.errors import UserError
from poa.machine.launchers import Place
from poa.machine.limits import usable_cores

Kind = Literal["auto", "cpu", "cuda", "mps"]


class Found(NamedTuple):
    """What torch reports of this machine."""

    gpus: int
    """That CUDA (or ROCm) may use; ``CUDA_VISIBLE_DEVICES`` can hide some."""
    has_mps: bool
    """Whether it is a Mac whose GPU torch can use."""


def found() -> Found:
    """What is here."""
    return Found(torch.cuda.device_count() if torch.cuda.is_available() else 0, torch.backends.mps.is_available())


def device_of(kind: Kind, here: Found, place: Place | None, *, float64: bool) -> torch.device:
    """The device of a process: a GPU of its own where there is one, unless another kind is asked for.

    Args:
        kind: What is asked for.
        here: What there is.
        place: Of the process among those that a launcher has started, if one has.
        float64: Whether it must compute in float64, which MPS cannot.

    Raises:
        UserError: The kind is not there, or there is no GPU for this process.
    """
    if kind == "cuda" and not here.gpus:
        raise UserError("--device cuda: PyTorch finds no GPU here. Use --device cpu, or install a CUDA build of torch.")
    if kind == "mps" and not here.has_mps:
        raise UserError("--device mps: PyTorch finds no GPU of a Mac here. Use --device cpu or leave --device out.")
    if kind in ("auto", "cuda") and here.gpus:
        return torch.device("cuda", _gpu_of(place, here.gpus))
    if kind == "mps" or (kind == "auto" and here.has_mps and not float64):
        if place is not None and place.num_processes > 1:
            raise UserError(f"MPS trains in one process, got {place.num_processes}. Start one, or use --device cpu.")
        return torch.device("mps")
    return torch.device("cpu")


def fit_threads() -> None:
    """Let PyTorch take no more threads than this process has cores, unless ``OMP_NUM_THREADS`` says how many.

    PyTorch counts the cores of a machine also in a container that has the time of a few, where more threads only wait
    for one another.
    """
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > (cores := usable_cores()):
        torch.set_num_threads(cores)


def _gpu_of(place: Place | None, gpus: int) -> int:
    if place is None:
        return 0
    if place.local_rank < gpus >= place.local_processes:
        return place.local_rank
    if place.by_srun and gpus == 1:
        return 0  # Slurm shows each task its own GPU alone (--gpus-per-task); where it is one for all, NCCL refuses
    raise UserError(f"There are more processes than GPUs ({gpus}). Start at most {gpus} on this machine.")


def processes_here(asked: int | None, kind: Kind, here: Found, *, batch_size: int, parts: int = 1) -> int:
    """How many processes to start on this machine: as asked for, else one for each GPU.

    Where the batch cannot be divided over all GPUs and the parts of each, fewer are taken: as many as it can be.

    Raises:
        UserError: More are asked for than there are GPUs, or more than one on a Mac's.
    """
    device = device_of(kind, here, None, float64=False).type
    if asked is not None and device == "cuda" and asked > here.gpus:
        there = here.gpus
        raise UserError(f"--devices {asked} is more than the number of GPUs here, {there}. Lower it to {there}.")
    if asked is not None and device == "mps" and asked > 1:
        raise UserError(f"--devices {asked}: MPS trains in one process. Leave --devices out, or use --device cpu.")
    if asked is not None or device != "cuda":
        return asked or 1
    return next((number for number in range(here.gpus, 1, -1) if batch_size % (number * parts) == 0), 1)


def told(device: str, name: str, here: Found, *, local: int, processes: int, batch_size: int) -> str | None:
    """A sentence on the devices of a training; None for one process on a CPU.

    Args:
        device: Its type.
        name: Of the GPU.
        here: What there is on this machine.
        local: Processes on this machine.
        processes: On all machines.
        batch_size: Images of a step.
    """
    if device == "cpu" and processes == 1:
        return None
    where = f" of {-(-processes // local)} machines" if processes > local else ""
    what = {
        "cuda": f"on {processes} GPU{'s' if processes > 1 else ''} ({name}){where}",
        "mps": "on the GPU of this Mac (MPS)",
        "cpu": f"in {processes} processes on the CPU{where}",
    }[device]
    share = f", one process each: {batch_size // processes:,} of the {batch_size:,} images of a step on each"
    idle = here.gpus - local if device == "cuda" else 0
    unused = f" {idle} of the {here.gpus} GPUs of this machine {'is' if idle == 1 else 'are'} not used."
    each = share.removeprefix(", one process each") if device == "cpu" else share
    return f"Training {what}{each if processes > 1 else ''}.{unused if idle > 0 else ''}"
