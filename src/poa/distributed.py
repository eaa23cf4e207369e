"""All use of ``torch.distributed``. Every function is a no-op, or the identity, on one process."""

import ctypes
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from poa.errors import UserError
from poa.machine import devices, launchers

T = TypeVar("T")
_STORE, _LAUNCHER = "POA_STORE", "POA_LAUNCHER"
"""Environment variables: the file in which processes meet, and the one that has started them."""
_POLL_SECONDS = 0.2
_PR_SET_PDEATHSIG = 1
"""Number of a call of Linux: which signal this process gets when its parent ends."""
_WORKS_ALONE = ContextVar("works alone", default=False)
"""Whether the others wait for what this process makes: it must not wait for them meanwhile."""


def is_launched() -> bool:
    """Whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized() and not _WORKS_ALONE.get()


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


def from_main(make: Callable[[], T]) -> T:
    """What the main process makes alone, on all processes; a mistake that it finds is raised on all.

    Raises:
        UserError: As ``make`` raises it.
    """
    if not is_launched():
        return make()
    found: list[Any] = [None]
    if is_main():
        token = _WORKS_ALONE.set(True)
        try:
            found = [make()]
        except UserError as error:
            found = [error]
        finally:
            _WORKS_ALONE.reset(token)
    dist.broadcast_object_list(found, src=0)
    if isinstance(found[0], UserError):
        raise found[0]
    made: T = found[0]
    return made


def this_device(kind: devices.Kind = "auto", *, float64: bool = True) -> torch.device:
    """The device of this process, which all commands ask here; see ``devices.device_of``. Fits PyTorch's threads."""
    devices.fit_threads()
    return devices.device_of(kind, devices.found(), launchers.place(), float64=float64)


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of broadcast_buffers, whose substitute torch does not have yet
        # buffers (centres, queues) hold what all processes have gathered, hence are equal without being sent round
        return DistributedDataParallel(
            module,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            find_unused_parameters=find_unused,
        )


def shard(network: nn.Module, blocks: Iterable[nn.Module], *, device: torch.device) -> None:
    """Leave a part of each parameter, gradient and state of an optimizer on each process; on one process, all of it.

    Where the network runs, its parameters are gathered block by block. One that learns keeps them until its gradients
    are made (``one_pass``), for the sizes that are cut out of it meanwhile; another gives them back block by block.
    """
    if not is_launched():
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    # views that blocks return are changed in place nowhere
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    learns = any(parameter.requires_grad for parameter in network.parameters())
    mesh = init_device_mesh(device.type, (world_size(),))
    for part in (*blocks, network):
        fully_shard(part, mesh=mesh, reshard_after_forward=not learns)
        assert isinstance(part, FSDPModule)
        part.set_reshard_after_backward(not learns, recurse=False)
        part.set_force_sum_reduction_for_comms(dist.get_backend() == "gloo")  # which has no mean


@contextmanager
def one_pass(wrapped: nn.Module, *, is_last: bool) -> Iterator[None]:
    """A forward and backward pass; gradients are averaged over processes once a step, in its last pass."""
    if isinstance(wrapped, DistributedDataParallel):
        with nullcontext() if is_last else wrapped.no_sync():
            yield
        return
    parts = _sharded_parts(wrapped)
    for part in parts:
        part.set_requires_gradient_sync(is_last, recurse=False)
    yield
    for part in parts if is_last else ():
        part.reshard()


def _sharded_parts(module: nn.Module) -> list[Any]:
    if not is_launched():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may have a part. All processes must ask."""
    if not is_launched():
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor


def whole_state(state: Any) -> Any:
    """A state dict as it is now, whole and on the CPU: later changes do not reach it. All processes must ask.

    Processes other than the main one get what they have, and in place of a tensor of which each has a part its largest
    absolute value, to save memory: it is finite where the tensor is.
    """
    kinds: tuple[type[Tensor], ...] = ()
    if world_size() > 1:
        from torch.distributed.tensor import DTensor

        kinds = (DTensor,)

    def kept(value: Tensor) -> Tensor:
        tensor, is_part = whole(value), isinstance(value, kinds)
        if is_main():
            return tensor.detach().to("cpu", copy=not is_part)  # what was gathered is a copy
        return tensor.abs().max() if is_part else tensor

    return tree_map_only(Tensor, kept, state)


def as_parts(value: Any, like: Any) -> Any:
    """This process's part of a whole tensor, where ``like`` is a part of one of its shape; otherwise the value."""
    if not is_launched() or not isinstance(value, Tensor) or not isinstance(like, Tensor) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def group_on_this_machine(num_processes: int, folder: Path) -> list[dict[str, str]]:
    """Environment variables by which processes that this one starts find one another, in rank order.

    They meet in a file of the folder and talk over the loopback interface: nothing can be reached from other machines.
    """
    shared = {
        **_loopback(),
        _STORE: str(folder / "store"),
        _LAUNCHER: str(os.getpid()),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
    }
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_processes)]


def _loopback() -> dict[str, str]:
    """Environment variables by which processes talk within this machine."""
    name = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
    return dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), name) if name else {}


def end_with(parent: int) -> None:
    """End this process when the one that started it has ended, in whatever way: on Linux at once, elsewhere soon."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os._exit(1)


@contextmanager
def process_group(*, device: torch.device, timeout: timedelta = timedelta(minutes=30)) -> Iterator[None]:
    """Join the group described by environment variables, torchrun's, srun's or our own; nothing if there are none.

    A process that torchrun or we have started ends with it, lest it train on beside a run that is resumed.
    """
    place = launchers.place()
    if place is None or is_launched():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if _LAUNCHER in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        end_with(int(os.environ.get(_LAUNCHER, os.getppid())))
    group: dict[str, Any] = {"rank": place.rank, "world_size": place.num_processes}
    if _STORE in os.environ:
        group["store"] = dist.FileStore(os.environ[_STORE], place.num_processes)  # type: ignore[attr-defined]  # not in a stub
    elif place.by_srun:
        group["init_method"] = launchers.meeting_point(place)
        if place.num_machines == 1:
            for name, value in _loopback().items():
                os.environ.setdefault(name, value)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout, **group)
    try:
        yield
    finally:
        dist.destroy_process_group()
