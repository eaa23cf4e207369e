"""One training step, and the images of steps."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from poa import distributed
from poa.data.augment import augment
from poa.data.index import ImageIndex
from poa.data.loader import batches
from poa.data.views import RawViews, Views
from poa.elastic.space import Size
from poa.pretraining.build import Parts
from poa.training.health import check_finite
from poa.training.optimizer import clip_gradients, set_schedule


def step_batches(
    parts: Parts,
    index: ImageIndex,
    *,
    batch_size: int,
    start_step: int,
    num_steps: int,
    rank: int = 0,
    world_size: int = 1,
    micro_batches: int = 1,
    workers: int = 0,
) -> Iterator[list[RawViews]]:
    """The micro-batches of this process for each of some steps, cropped and masked as in the run; see ``batches``."""
    return batches(
        index,
        crops=parts.crops,
        batch_size=batch_size,
        seed=parts.seed,
        start_step=start_step,
        num_steps=num_steps,
        rank=rank,
        world_size=world_size,
        micro_batches=micro_batches,
        workers=workers,
        pin_memory=parts.device.type == "cuda",
    )


def views_of(parts: Parts, raw: RawViews) -> Views:
    """A batch as the networks learn from it."""
    family = parts.family
    return augment(raw, augmentation=parts.views, device=parts.device, memory_format=family.memory_format)


class StepResult(NamedTuple):
    """What a step has measured."""

    metrics: dict[str, float]
    """Unweighted terms by name, their weighted sum ``loss`` and gradient norms, as means over processes."""
    sizes: tuple[Size, ...]
    """Sub-networks that this process has trained."""
    lr: float
    stop: bool
    """Whether any process has been asked to stop."""


@dataclass(frozen=True)
class Measured:
    """What a step has measured, which its device may still be making.

    Attributes:
        step: From 1.
        names: Of the numbers.
        numbers: Waits for them; whether any process has been asked to stop comes last.
        by_width: Norms of gradients, where they are measured.
        sizes: Sub-networks that this process has trained.
        lr: Learning rate.
    """

    step: int
    names: Sequence[str]
    numbers: Callable[[], list[float]]
    by_width: Mapping[str, float]
    sizes: tuple[Size, ...]
    lr: float

    def read(self, parts: Parts, *, is_updated: bool) -> StepResult:
        """Wait for the device, and look at the numbers.

        Raises:
            NonFiniteLoss: A loss or gradient is NaN or infinite; says whether the weights have been updated with it.
        """
        *mean, stops = self.numbers()
        metrics = dict(zip(self.names, mean, strict=True))
        in_losses_only = parts.scaler.is_enabled()  # fp16 gradients overflow now and then; the scaler skips those steps
        checked = {name: x for name, x in metrics.items() if not (in_losses_only and name.startswith("grad_norm"))}
        check_finite(checked, step=self.step, is_updated=is_updated)
        return StepResult({**metrics, **self.by_width}, self.sizes, self.lr, stops > 0)


def train_step(parts: Parts, step: int, batch: Sequence[RawViews], *, stop: bool = False) -> StepResult:
    """Train on one global batch.

    Args:
        parts: Of the run.
        step: From 0.
        batch: This process's micro-batches.
        stop: Whether this process has been asked to stop.

    Raises:
        NonFiniteLoss: A loss or gradient is NaN or infinite. Nothing has been updated then.
    """
    result = _measure(parts, step, batch, stop=stop).read(parts, is_updated=False)
    _update(parts, step)
    return result


def begin_step(parts: Parts, step: int, batch: Sequence[RawViews], *, stop: bool = False) -> Measured:
    """Give a device all work of a step without waiting for any: what it has measured is to be read later."""
    measured = _measure(parts, step, batch, stop=stop)
    _update(parts, step)
    return measured


def _measure(parts: Parts, step: int, batch: Sequence[RawViews], *, stop: bool) -> Measured:
    values = parts.schedules.at(step)
    set_schedule(parts.optimizer, values)
    sizes = parts.subnets(step, rank=distributed.rank())
    weights = parts.method.weights(sizes, num_locals=parts.views.num_locals, frozen=values.frozen)
    torch.manual_seed(_step_seed(parts.seed, step))  # drop path: nothing random outlives a step
    terms: dict[str, Tensor] = {}
    for number, raw in enumerate(batch):
        if step < parts.ibot_start:
            raw = raw._replace(masks=torch.zeros_like(raw.masks))
        views = views_of(parts, raw)
        with distributed.one_pass(parts.wrapped, is_last=number == len(batch) - 1):
            with torch.autocast(parts.device.type, dtype=parts.dtype, enabled=parts.dtype != torch.float32):
                losses = parts.wrapped(views, sizes, temperature=values.temperature)
            total = sum((weights[name] * loss for name, loss in losses.items()), torch.zeros(()))
            parts.scaler.scale(total / len(batch)).backward()
        for name, loss in {"loss": total, **losses}.items():
            terms[name] = terms.get(name, 0.0) + loss.detach() / len(batch)
    parts.scaler.unscale_(parts.optimizer)
    student = parts.method.student
    by_width = parts.gradients.measure(student, step) if parts.gradients else {}
    norms = clip_gradients([student.backbone, student.heads], max_norm=parts.clip)
    terms |= dict(zip(("grad_norm/backbone", "grad_norm/heads"), norms, strict=True))
    numbers = _fetched(_mean_over_processes([*terms.values()], stop=stop))
    return Measured(step + 1, tuple(terms), numbers, by_width, sizes, values.lr)


def _update(parts: Parts, step: int) -> None:
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    parts.optimizer.zero_grad(set_to_none=True)
    parts.method.update_teacher(parts.schedules.at(step).momentum)


def _step_seed(seed: int, step: int) -> int:
    digest = hashlib.blake2b(f"{seed} {step} {distributed.rank()}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def _mean_over_processes(tensors: Sequence[Tensor], *, stop: bool) -> Float[Tensor, " numbers"]:
    """All numbers of a step, and the share of processes that are to stop, in one message."""
    stacked = torch.stack([tensor.float() for tensor in tensors])
    row = torch.cat([stacked, stacked.new_full((1,), float(stop))])
    return distributed.sum_over_ranks(row) / distributed.world_size()


def _fetched(row: Float[Tensor, " numbers"]) -> Callable[[], list[float]]:
    """Begin to copy numbers from their device. What is returned waits for them, and on CUDA for nothing after them."""
    if row.device.type != "cuda":
        return row.tolist
    numbers = torch.empty(row.shape, dtype=row.dtype, pin_memory=True)
    numbers.copy_(row, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # untyped in torch
    copied.record(torch.cuda.current_stream(row.device))

    def read() -> list[float]:
        copied.synchronize()
        return numbers.tolist()

    return read
