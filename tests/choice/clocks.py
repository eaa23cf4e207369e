"""A machine that takes as long as it is told, for tests without a real clock."""

import itertools
from collections.abc import Callable, Mapping, Sequence

from poa.choice.timing import Pass


class Machine:
    """Time passes when a network runs, and is lost in the passes in which another process takes over."""

    def __init__(
        self, seconds: Mapping[str, float], *, is_busy: Callable[[int], bool] = lambda _: False, slows_down: float = 0.0
    ) -> None:
        self.now, self.taken, self.ran = 0.0, 0, list[str]()
        self._seconds, self._is_busy, self._slows_down = seconds, is_busy, slows_down
        self._jitter = itertools.cycle((1.0, 1.02, 0.98, 1.01, 0.99))

    def clock(self) -> float:
        return self.now

    def interruptions(self) -> int:
        return self.taken

    def run(self, name: str) -> None:
        self.ran.append(name)
        self.now += self._seconds[name] * next(self._jitter) * (1 + self._slows_down * self.now)
        if self._is_busy(len(self.ran)):
            self.taken += 1
            self.now += 1.0

    def passes(self, names: Sequence[str]) -> dict[str, Pass]:
        return {name: lambda name=name: self.run(name) for name in names}  # type: ignore[misc]  # its default is its name
