"""Steps of tiny runs, for tests of what one step does."""

import math
from typing import Any

import torch
from torch import Tensor

from poa import distributed
from poa.config.pretraining import Config
from poa.data.index import open_index
from poa.data.views import FACTORS, RawViews
from poa.pretraining.build import Parts, assemble
from poa.pretraining.step import step_batches
from poa.training.states import state_of as whole_state_of

CPU = torch.device("cpu")
UNCLIPPED = 1000.0  # clipping would hide a wrong factor


def parts_of(config: Config) -> Parts:
    """With features that differ between images from the start, as after some training."""
    parts = assemble(config, open_index(config.data, limit=config.limit), device=CPU)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parts.method.parameters():
            parameter += distributed.as_parts(0.1 * torch.randn(parameter.shape, generator=generator), parameter)
    return parts


def batches_of(
    config: Config, parts: Parts, *, num_steps: int = 1, rank: int = 0, world_size: int = 1
) -> list[list[RawViews]]:
    made = step_batches(
        parts,
        open_index(config.data, limit=config.limit),
        batch_size=config.batch_size,
        start_step=0,
        num_steps=num_steps,
        rank=rank,
        world_size=world_size,
        micro_batches=config.accumulate,
    )
    return list(made)


def keep_gradients(parts: Parts) -> list[dict[str, Tensor]]:
    """Fills with the clipped gradients of each step that is taken."""
    kept: list[dict[str, Tensor]] = []
    named = dict(parts.method.student.named_parameters())

    def keep(*_: Any) -> None:
        kept.append({name: distributed.whole(p.grad).clone() for name, p in named.items() if p.grad is not None})

    parts.optimizer.register_step_pre_hook(keep)
    return kept


def state_of(parts: Parts) -> dict[str, Any]:
    """As it is now, on the main process."""
    state = whole_state_of(parts.method, parts.optimizer)
    return {"method": state["method"], "optimizer": state["optimizer"]["state"]}


def total_of(parts: Parts, losses: dict[str, Tensor]) -> Tensor:
    weights = parts.method.weights((), num_locals=parts.views.num_locals)
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Up to the order of sums: float32 rounds to 6e-8 of the largest summand, and some thousand are summed."""
    assert found.keys() == expected.keys()
    scale = max(x.abs().max().item() for x in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * scale)


def poison_batch(parts: Parts, batch: list[RawViews]) -> list[RawViews]:
    parameters = batch[-1].global_parameters.clone()
    parameters[2, FACTORS] = math.nan
    return [*batch[:-1], batch[-1]._replace(global_parameters=parameters)]
