"""What a step reads back from the device: a GPU stands still meanwhile, and so does the process that feeds it."""

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tiny
from poa.config import resolve
from poa.config.pretraining import Config
from poa.data.augment import augment
from poa.data.index import open_index
from poa.pretraining import build, step
from poa.pretraining.build import Parts, assemble
from poa.pretraining.step import step_batches
from poa.training.optimizer import clip_gradients

WAIT = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal", "aten._unique")
"""Operators whose results, or their shapes, depend on values."""


class Waits(TorchDispatchMode):
    """Counts the operators that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func)
        chosen = args[1] if name.startswith(("aten.index.", "aten.index_put", "aten._index_put")) else ()
        by_value = any(each is not None and each.dtype == torch.bool for each in chosen)
        if by_value or name.startswith(WAIT):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def update(parts: Parts, views: Any, step: int) -> None:
    """All of a step but its measurements, which are read at once."""
    sizes = parts.subnets(step, rank=0)
    weights = parts.method.weights(sizes, num_locals=parts.views.num_locals)
    losses = parts.method(views, sizes, temperature=0.05)
    torch.stack([weights[name] * loss for name, loss in losses.items()]).sum().backward()
    clip_gradients([parts.method.student.backbone, parts.method.student.heads], max_norm=parts.clip)
    parts.optimizer.step()
    parts.method.update_teacher(0.9)


@pytest.mark.parametrize(
    "given",
    [{}, {"losses": {"kind": "coding-rate"}}, {"losses": {"ibot": 0.0}, "views": {"drop_patches": 0.5}}],
    ids=["prototypes", "coding rate", "dropped patches"],
)
def test_an_update_waits_for_nothing(given: dict[str, Any]) -> None:
    config = tiny.config(same_sizes_on_all_ranks=True, **given)
    index = open_index(config.data, limit=config.limit)
    parts = assemble(config, index, device=torch.device("cpu"))
    [raw] = next(step_batches(parts, index, batch_size=16, start_step=2, num_steps=1))
    views = augment(raw, augmentation=parts.views, device="cpu")
    assert views.masks.any() or given
    update(parts, views, 2)  # makes the skeleton of the size
    with Waits() as waits:
        update(parts, views, 2)
    assert not waits.found
    with Waits() as waits:
        update(parts, views._replace(hidden=None), 2)
    assert waits.found or not views.masks.any(), "nothing would be noticed"


class FakeGPU(TorchDispatchMode):
    """Stands in for a GPU: makes shapes alone, so what asks for a value fails, and so does a copy that would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.made = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(
        self, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        given = [each for each in tree_leaves((args, named)) if isinstance(each, Tensor)]
        with self.made if is_there(named.get("device")) or any(map(is_there, given)) else nullcontext():
            made = func(*args, **named)
        if str(func).startswith(("aten._to_copy", "aten.copy_")):
            ends = {each.device.type for each in (*given, made)} - {"meta"}
            assert len(ends) < 2 or named.get("non_blocking"), f"{func} waits for the GPU"
        return made

    def take(self, module: nn.Module) -> nn.Module:
        """Move a module there, in place of ``Module.to``."""
        with self.made:
            for each in module.modules():
                for name, value in each.named_parameters(recurse=False):
                    there = torch.empty(value.shape, dtype=value.dtype, device="cuda")
                    setattr(each, name, nn.Parameter(there, requires_grad=value.requires_grad))
                for name, value in each.named_buffers(recurse=False):
                    setattr(each, name, torch.empty(value.shape, dtype=value.dtype, device="cuda"))
        return module


def is_there(what: Any) -> bool:
    """Whether a tensor or a device is of the GPU."""
    device = what.device if isinstance(what, Tensor) else what
    return device is not None and torch.device(device).type == "cuda"


def slim() -> Config:
    sizes = {"width_min": 8, "width_max": 16, "width_step": 8, "depth_min": [1, 1, 1, 1], "depth_max": [1, 1, 1, 1]}
    views, machine = {"global_size": 32, "blur_kernel": 3}, {"data": "digits", "precision": "fp32", "workers": 0}
    given = {**machine, "limit": 16, "batch_size": 4, "model": sizes, "views": views, "slim": {"queue": 16}}
    return resolve.resolve(given, recipe="slimclr-mocov2")


@pytest.mark.parametrize("config_of", [tiny.config, slim], ids=["poa", "slimclr-mocov2"])
def test_a_gpu_gets_a_step_without_being_waited_for(
    monkeypatch: pytest.MonkeyPatch, config_of: Callable[[], Config]
) -> None:
    """All but the backward pass, which torch cannot do on a fake one; what is measured is read later."""
    config, gpu = config_of(), FakeGPU()
    index = open_index(config.data, limit=config.limit)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(build, "check_memory", lambda *_: None)
    monkeypatch.setattr(nn.Module, "to", lambda module, *_: gpu.take(module))
    monkeypatch.setattr(step, "_fetched", lambda row: row.tolist)
    parts = assemble(config, index, device=torch.device("cuda"))
    here = replace(parts, device=torch.device("cpu"))
    [batch] = step_batches(here, index, batch_size=config.batch_size, start_step=3, num_steps=1)

    def backward(_: Tensor) -> None:
        for parameter in parts.method.student.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

    monkeypatch.setattr(Tensor, "backward", backward)
    with gpu:
        measured = step.begin_step(parts, 3, batch)
        with pytest.raises(DataDependentOutputException):
            measured.numbers()
        with pytest.raises(AssertionError, match="waits for the GPU"):
            torch.zeros(1).to("cuda")
