"""All use of ``torch.distributed``. Every function is a no-op, or the identity, on one process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from poa.errors import UserError


def is_launched() -> bool:
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process among all, 0 on one process."""
    return dist.get_rank() if is_launched() else 0


def world_size() -> int:
    """Number of processes, 1 if not launched."""
    return dist.get_world_size() if is_launched() else 1


def is_main() -> bool:
    """Whether this process writes files and talks to the user."""
    return rank() == 0


def barrier() -> None:
    """Wait for all processes."""
    if is_launched():
        dist.barrier()


def this_device(kind: Literal["auto", "cpu", "cuda"] = "auto") -> torch.device:
    """The device of this process: its GPU where there is one, unless another kind is asked for.

    Raises:
        UserError: A GPU is asked for and there is none, or none for this process.
    """
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU here. Use --device cpu, or install a CUDA build of torch.")
    if kind == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    place, available = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if place >= available:
        raise UserError(f"There are more processes than GPUs ({available}). Start at most {available} on this machine.")
    return torch.device("cuda", place)


@torch.no_grad()
def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum of a tensor over all processes, as a new tensor without gradient."""
    if not is_launched():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


@torch.no_grad()
def max_over_ranks(tensor: Tensor) -> Tensor:
    """Elementwise maximum of a tensor over all processes, as a new tensor without gradient."""
    if not is_launched():
        return tensor
    highest = tensor.clone()
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    return highest


class _GatherRows(torch.autograd.Function):
    """Concatenate rows over processes; the backward pass hands every process the summed gradient of its own rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.num_rows = rows.shape[0]
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        start = rank() * ctx.num_rows
        return total[start : start + ctx.num_rows]


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all processes in rank order, differentiable. Every process must bring the same number of rows."""
    if not is_launched():
        return rows
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered


class _SumOverRanks(torch.autograd.Function):
    """Sum over processes; the backward pass sums the gradients that the processes have of it."""

    @staticmethod
    def forward(_: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def differentiable_sum(tensor: Tensor) -> Tensor:
    """Sum of a tensor over all processes, differentiable."""
    if not is_launched():
        return tensor
    total: Tensor = _SumOverRanks.apply(tensor)
    return total


def data_parallel(module: nn.Module, *, device: torch.device, find_unused: bool = False) -> nn.Module:
    """Wrap a module so that gradients are averaged over processes; on one process, the module itself.

    ``find_unused`` is needed where some parameters have no gradient in some steps.
    """
    if not is_launched():
        return module
    # buffers (centres, queues) are filled with what all processes have gathered, hence equal without being sent round
    return DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        broadcast_buffers=False,
        find_unused_parameters=find_unused,
    )


@contextmanager
def process_group(*, device: torch.device, timeout: timedelta = timedelta(minutes=30)) -> Iterator[None]:
    """Join the group described by torchrun's environment variables; nothing if there are none."""
    if "WORLD_SIZE" not in os.environ or is_launched():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()
