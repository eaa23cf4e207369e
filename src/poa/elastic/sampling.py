"""Other ways to choose the sizes of a step than the published one, like it pure functions of (seed, step, rank)."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from poa.elastic.space import Size, SubnetSchedule

OPENING = 0.5
"""Share of a run in which a widening space opens."""


def by_cost(size: Size) -> tuple[int, int]:
    """Orders sizes by the weights of their elastic blocks, or nearly so; equal ones by width."""
    return size.width**2 * sum(size.depths), size.width


@dataclass(frozen=True)
class Sandwich:
    """The smallest size at every step, and others in the published order (BigNAS, arXiv 2003.11142; Scala, 2412.04786).

    Sizes come in descending order, so that each can learn from the one before it.

    Attributes:
        walk: The published order of the others.
    """

    walk: SubnetSchedule

    def __call__(self, step: int, *, rank: int = 0) -> tuple[Size, ...]:
        """Sizes that a process trains at a step (from 0); one that is drawn twice is trained once."""
        return tuple(sorted({*self.walk(step, rank=rank), self._smallest}, key=by_cost, reverse=True))

    @property
    def _smallest(self) -> Size:
        return min(self.walk.space.sizes, key=by_cost)

    def mean(self, costs: Mapping[Size, float], step: int) -> float:  # noqa: ARG002  # the same at every step
        """Cost of the elastic students of a step, on average over what may be drawn; few draws hit a size twice."""
        drawn = self.walk.space.entries[:-1]
        others = fmean(costs[size] * (size != self._smallest) for size in drawn)
        return costs[self._smallest] + self.walk.samples * others


@dataclass(frozen=True)
class Widening:
    """First only sizes next to the intact one, then ever smaller ones too, until half of the run has passed.

    For runs that start from weights of a network that was trained alone (EA-ViT, arXiv 2507.19360, widens its space in
    the course of training).

    Attributes:
        walk: The search space, the seed, and how many sizes are drawn for whom; its order plays no part.
        num_steps: Length of the run.
    """

    walk: SubnetSchedule
    num_steps: int

    @cached_property
    def _entries(self) -> tuple[Size, ...]:
        """The weighted list without the intact size, the largest first."""
        return tuple(sorted(self.walk.space.entries[:-1], key=by_cost, reverse=True))

    def _open(self, step: int) -> tuple[Size, ...]:
        share = min(1.0, (step + 1) / max(1, round(OPENING * self.num_steps)))
        return self._entries[: max(1, round(share * len(self._entries)))]

    def __call__(self, step: int, *, rank: int = 0) -> tuple[Size, ...]:
        """Sizes that a process trains at a step (from 0), drawn from those that are open by then."""
        generator = random.Random(f"widening {self.walk.seed} {step} {0 if self.walk.shared else rank}")
        return tuple(generator.choices(self._open(step), k=self.walk.samples))

    def mean(self, costs: Mapping[Size, float], step: int) -> float:
        """Cost of the elastic students of a step, on average over what may be drawn."""
        return self.walk.samples * fmean(costs[size] for size in self._open(step))
