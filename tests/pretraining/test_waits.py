"""What a step reads back from the device: a GPU stands still meanwhile, and so does the process that feeds it."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from poa.data.augment import augment
from poa.data.index import open_index
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
