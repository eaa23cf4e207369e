"""What the loop asks of a method, whichever it is."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from poa.data.views import Views
from poa.elastic.network import SubNetworks, state
from poa.elastic.recompute import recompute
from poa.elastic.space import Size
from poa.elastic.switchable import SwitchableNetworks
from poa.families.base import Backbone

T = TypeVar("T")


class Branch(nn.Module):
    """A backbone, and heads that only the losses need."""

    backbone: Backbone
    heads: nn.Module

    def prepare(self, *, checkpointing: bool, compile_blocks: bool) -> Self:
        """Compile the blocks, in place; with checkpointing each block and each head keeps its inputs alone."""
        for block in self.backbone.blocks:
            if checkpointing:
                recompute(block, compiled=compile_blocks)
            elif compile_blocks:
                block.compile()
        for head in self.heads if isinstance(self.heads, nn.ModuleList) else [self.heads]:
            if checkpointing:
                recompute(head)
        return self


class Method(nn.Module, ABC):
    """One module that holds all networks of a way of pre-training, to be wrapped whole for data parallelism.

    One from outside of this package is made of a family and the settings of the run, a ``Config``.

    Attributes:
        student: The branch that learns by gradients; each of its parameters gets one in every step.
    """

    shown: ClassVar[str] = "global"
    """Name, after the slash, of the terms to show while training."""
    student: Branch

    @abstractmethod
    def forward(self, views: Views, sizes: Sequence[Size], *, temperature: float) -> dict[str, Tensor]:
        """Unweighted losses by name; what stands before a slash is the branch.

        Args:
            views: This process's part of the batch.
            sizes: Sub-networks of this step; may be empty.
            temperature: The teacher's temperature.
        """

    @abstractmethod
    def weights(self, sizes: Sequence[Size], *, num_locals: int, frozen: float = 1.0) -> dict[str, float]:
        """Weight of each named term of the total loss; without local crops there are no local terms.

        ``frozen`` is the scheduled weight of a frozen teacher beside a moving one.
        """

    @property
    def exported(self) -> Branch:
        """The branch whose backbone is scored and exported, as ``Config.exported_branch`` names it."""
        return self.student

    @property
    def log_prototypes(self) -> float:
        """Where the terms that are shown stay once a student has collapsed; infinite if none can."""
        return math.inf

    @abstractmethod
    def update_teacher(self, momentum: float) -> None:
        """Follow the optimiser's step; ``momentum`` is the share of the old teacher that is kept."""

    def headlines(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The terms to show, by branch."""
        shown = f"/{self.shown}"
        return {name.removesuffix(shown): value for name, value in metrics.items() if name.endswith(shown)}


def named(branch: str, terms: Mapping[str, T]) -> dict[str, T]:
    """Terms of a branch by their full names."""
    return {f"{branch}/{name}": value for name, value in terms.items()}


def of_branch(branch: str, terms: Mapping[str, T]) -> dict[str, T]:
    """Terms of a branch by their names in it."""
    return {name.removeprefix(f"{branch}/"): value for name, value in terms.items() if name.startswith(f"{branch}/")}


def elastic_students(
    sub_networks: SubNetworks | SwitchableNetworks, student: Branch, sizes: Sequence[Size], *, device: torch.device
) -> Iterator[Callable[..., Any]]:
    """The sub-network of each size as a function, cut out of the student in the precision of autocast."""
    tensors = state(student)
    dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    for size in sizes:
        yield sub_networks.bind(size, tensors, training=student.training, dtype=dtype)
