"""The teacher as a moving average of the student."""

import torch
from torch import nn


@torch.no_grad()
def update_ema(teacher: nn.Module, student: nn.Module, *, momentum: float) -> None:
    """``teacher <- momentum * teacher + (1 - momentum) * student`` for all parameters; buffers are copied.

    Args:
        teacher: Changed in place.
        student: A module with the same parameter and buffer names.
        momentum: Share of the old teacher that stays.
    """
    ours, theirs = dict(teacher.named_parameters()), dict(student.named_parameters())
    assert ours.keys() == theirs.keys(), f"parameters differ: {sorted(ours.keys() ^ theirs.keys())}"
    torch._foreach_lerp_([*ours.values()], [theirs[name] for name in ours], 1 - momentum)
    buffers = dict(student.named_buffers())
    for name, buffer in teacher.named_buffers():
        buffer.copy_(buffers[name])
