"""Schedules as pure functions of the step (POA, implementation details; official code), and the EMA teacher."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn


def linear_ramp(step: int, *, start: float, end: float, num_steps: int) -> float:
    """A straight line of ``num_steps`` values from ``start`` to ``end``, and ``end`` from then on."""
    if step >= num_steps - 1:
        return end
    return start + (end - start) * step / (num_steps - 1)


def cosine(
    step: int,
    *,
    base: float,
    final: float,
    num_steps: int,
    warmup_steps: int = 0,
    start: float = 0.0,
    stretch: float = 1.0,
) -> float:
    """Linear warm-up, then half a cosine from ``base`` to ``final``.

    Args:
        step: Step of the run, from 0.
        base: Value after the warm-up.
        final: Value at the end of the cosine.
        num_steps: Length of the run in steps.
        warmup_steps: Length of the warm-up; its last step already has the base value.
        start: Value at step 0 if there is a warm-up.
        stretch: Part of the curve that the run covers, at most 1; below 1 the run ends before ``final`` is reached.
    """
    if step < warmup_steps:
        return linear_ramp(step, start=start, end=base, num_steps=warmup_steps)
    length = max(int(num_steps / stretch) - warmup_steps, 1)
    progress = min((step - warmup_steps) / length, 1.0)
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * progress))


def constant(
    step: int,
    *,
    base: float,
    final: float,
    num_steps: int,
    warmup_steps: int = 0,
    start: float = 0.0,
    cooldown_steps: int = 0,
) -> float:
    """Linear warm-up, then ``base``, then a cool-down to ``final`` (Zhai et al. 2022, arXiv 2106.04560, Sec. 3.5).

    Of the way from ``base`` to ``final``, the square root of the cool-down's share that has passed is behind (Hägele et
    al. 2024, arXiv 2405.18392). Nothing before the cool-down depends on ``num_steps``. Arguments as in ``cosine``.
    """
    if step < warmup_steps:
        return linear_ramp(step, start=start, end=base, num_steps=warmup_steps)
    passed = step - (num_steps - cooldown_steps)
    if passed <= 0 or not cooldown_steps:
        return base
    return base + (final - base) * math.sqrt(min(passed / cooldown_steps, 1.0))


def switched(step: int, *, before: Callable[[int], float], after: Callable[[int], float], at: int) -> float:
    """One curve before step ``at``, another one from it on."""
    return (after if step >= at else before)(step)


def scaled_lr(base: float, *, batch_size: int, reference: int = 1024) -> float:
    """Learning rate for a global batch size, by the square-root rule (POA official code)."""
    return base * math.sqrt(batch_size / reference)


class StepValues(NamedTuple):
    """All scheduled values of one step."""

    lr: float
    """Learning rate before layer-wise multipliers."""
    weight_decay: float
    momentum: float
    """Share of the old teacher that an update keeps."""
    temperature: float
    """Of the teacher."""
    last_layer_lr: float
    """Learning rate of the prototypes."""
    frozen: float = 1.0
    """Weight of a frozen teacher beside the moving one."""
    backbone: float = 1.0
    """Factor on the learning rate of a backbone that warms up longer than the heads."""


@dataclass(frozen=True, slots=True)
class Schedules:
    """The curves of a run, each a function of the step; prototypes do not learn in the first ``frozen_steps``."""

    lr: Callable[[int], float]
    weight_decay: Callable[[int], float]
    momentum: Callable[[int], float]
    temperature: Callable[[int], float]
    frozen_steps: int = 0
    frozen: Callable[[int], float] = lambda _: 1.0
    backbone: Callable[[int], float] = lambda _: 1.0

    def at(self, step: int) -> StepValues:
        """Values of a step, counted from 0."""
        lr = self.lr(step)
        return StepValues(
            lr=lr,
            weight_decay=self.weight_decay(step),
            momentum=self.momentum(step),
            temperature=self.temperature(step),
            last_layer_lr=lr if step >= self.frozen_steps else 0.0,
            frozen=self.frozen(step),
            backbone=self.backbone(step),
        )


@torch.no_grad()
def update_ema(teacher: nn.Module, student: nn.Module, *, momentum: float) -> None:
    """``teacher <- momentum * teacher + (1 - momentum) * student`` for all parameters; buffers are copied."""
    ours, theirs = dict(teacher.named_parameters()), dict(student.named_parameters())
    assert ours.keys() == theirs.keys(), f"parameters differ: {sorted(ours.keys() ^ theirs.keys())}"
    torch._foreach_lerp_([*ours.values()], [theirs[name] for name in ours], 1 - momentum)
    buffers = dict(student.named_buffers())
    for name, buffer in teacher.named_buffers():
        buffer.copy_(buffers[name])
