"""Sizes of a network, the search space they form, and the order in which training visits them."""

import random
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from statistics import fmean

import numpy as np

from poa.errors import UserError


@dataclass(frozen=True, order=True)
class Size:
    """Name of a sub-network: a width and the depths of its elastic stages, e.g. ``384x12`` or ``64x4-6``."""

    width: int
    depths: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.width}x{'-'.join(map(str, self.depths))}"

    @classmethod
    def parse(cls, text: str) -> "Size":
        """Read a size from its name, such as ``384x12``."""
        if not re.fullmatch(r"\d+x\d+(-\d+)*", text):
            raise UserError(
                f"{text!r} is not a size. A size is WIDTHxDEPTH, such as 384x12; `poa sizes RUN` lists all."
            )
        width, depths = text.split("x")
        return cls(int(width), tuple(int(depth) for depth in depths.split("-")))


@dataclass(frozen=True)
class SearchSpace:
    """All sizes of a run and how often each stands in the sampling list.

    Attributes:
        sizes: Distinct sizes in the order of the list; the last is the intact network.
        weights: How many times each size stands in the list.
    """

    sizes: tuple[Size, ...]
    weights: tuple[int, ...]

    @classmethod
    def grid(
        cls,
        widths: Sequence[int],
        depths: Sequence[int] | Sequence[tuple[int, ...]],
        *,
        bias: float = 3.0,
        width_bias: float | None = None,
    ) -> "SearchSpace":
        """Every width with every depth, small sizes drawn more often (POA, Sec. 3; official sampling list).

        The weight of a width falls linearly from ``width_bias`` (smallest) to 1 (largest), that of a depth from
        ``bias``; a size stands in the list as often as their product, rounded half to even.

        Args:
            widths: Ascending widths in channels.
            depths: Ascending numbers of blocks, one for each elastic stage.
            bias: How much more often the smallest depth is drawn than the largest; 1 draws evenly.
            width_bias: The same for widths; ``bias`` if not given.
        """
        width_bias = bias if width_bias is None else width_bias
        width_weights = np.linspace(width_bias, 1.0, len(widths)) if len(widths) > 1 else np.ones(1)
        depth_weights = np.linspace(bias, 1.0, len(depths)) if len(depths) > 1 else np.ones(1)
        stages = [(depth,) if isinstance(depth, int) else depth for depth in depths]
        sizes = tuple(Size(width, depth) for width, depth in product(widths, stages))
        weights = np.round(np.outer(width_weights, depth_weights)).astype(int).ravel()
        return cls(sizes, tuple(int(weight) for weight in weights))

    @property
    def intact(self) -> Size:
        """The largest size, from which all others are cut."""
        return self.sizes[-1]

    @cached_property
    def entries(self) -> tuple[Size, ...]:
        """The weighted sampling list; its last entry is the intact network."""
        return tuple(size for size, weight in zip(self.sizes, self.weights, strict=True) for _ in range(weight))

    def find(self, text: str) -> Size:
        """The size of that name; where it is malformed or not in the space, the nearest one is suggested."""
        size = Size.parse(text)
        if size not in self.sizes:
            near = min(
                self.sizes, key=lambda known: (abs(known.width - size.width), abs(sum(known.depths) - sum(size.depths)))
            )
            raise UserError(f"This run has no size {text!r}. Did you mean {str(near)!r}? `poa sizes RUN` lists all.")
        return size


class _Picks:
    """Picks out of a pool, pass after pass: one generator shuffles the same list again and again, as published.

    Picks are kept once they are made (four bytes each), since shuffles cannot be skipped.
    """

    def __init__(self, pool: int, seed: int) -> None:
        self._generator = random.Random(seed)
        self._order = list(range(pool))
        self._picks = array("I")

    def __getitem__(self, place: int) -> int:
        while place >= len(self._picks):
            self._generator.shuffle(self._order)
            self._picks.extend(self._order)
        return self._picks[place]


_shared_picks = lru_cache(maxsize=8)(_Picks)  # a pure function of pool, seed and place


@dataclass(frozen=True)
class SubnetSchedule:
    """Which sizes the elastic student takes at a step: a pure function of (seed, step, rank).

    The weighted list without its last entry is taken in shuffled order and reshuffled after each pass; process
    ``rank`` has its own order from seed ``seed + rank`` (POA's official training code).

    Attributes:
        space: The search space.
        seed: Seed of the run.
        samples: Elastic students a step.
        shared: Every rank takes the picks of rank 0.
    """

    space: SearchSpace
    seed: int = 0
    samples: int = 1
    shared: bool = False

    def __post_init__(self) -> None:
        if len(self.space.entries) < 2:
            raise UserError(
                f"The search space holds only {self.space.intact}, so there are no smaller sizes to train. Lower "
                "the smallest width or depth (--model.width-min, --model.depth-min)."
            )

    def __call__(self, step: int, *, rank: int = 0) -> tuple[Size, ...]:
        """Sizes that a process trains at a step (from 0), as many as ``samples``."""
        picks = _shared_picks(len(self.space.entries) - 1, self.seed + (0 if self.shared else rank))
        places = range(step * self.samples, (step + 1) * self.samples)
        return tuple(self.space.entries[picks[place]] for place in places)

    def mean(self, costs: Mapping[Size, float], step: int) -> float:  # noqa: ARG002  # the same at every step
        """Cost of the elastic students of a step, on average over what may be drawn."""
        return self.samples * fmean(costs[size] for size in self.space.entries[:-1])
