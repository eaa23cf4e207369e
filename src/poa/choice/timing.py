"""Times of several networks on a machine that may be busy with other work: all are timed in turn, round after round."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

Pass = Callable[[], object]
"""Runs a network once; the work is done when it returns."""
WARM_UP, PASSES = 3, 3
"""Passes of each network before the first round; timed passes of a network in a round, after one that is not timed."""
LONG = 0.1
"""Seconds of a pass that is long: then one is enough before the first round, and a round has one timed pass alone."""
ROUNDS, LEAST_ROUNDS = 30, 3
"""As many as there is time for, but at least some."""
LEAST_CALM = 5
"""Passes that nothing interrupted, from which the others do not count for the median."""


class Times(NamedTuple):
    """Seconds that the passes of one network took.

    Attributes:
        median: Of passes that no other process interrupted, if there are some; else of all.
        p95: What 95 % of all passes stay below.
        passes: How many there were.
        interrupted: How many of them another process interrupted.
    """

    median: float
    p95: float
    passes: int
    interrupted: int


def interruptions() -> int:
    """How often another process has taken the processor from this one; always 0 on Windows, which does not tell."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def times_of(
    passes: Mapping[str, Pass],
    *,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    interruptions: Callable[[], int] = interruptions,
    done: Callable[[], object] = lambda: None,
) -> dict[str, Times]:
    """Time networks in rounds, each of which runs all of them, every second one in reverse order.

    What else the machine does then hits all networks alike. Where it takes the processor away in the middle of a pass,
    which happens the more often the longer passes are, the pass does not count for the median. The pass before the
    timed ones of a round brings the weights back into the cache.

    Args:
        passes: A pass through each network, by name.
        seconds: No round begins after so many, warm-up included, but for the ``LEAST_ROUNDS``.
        clock: Gives seconds.
        interruptions: Counts how often another process took the processor.
        done: Called after each round.
    """
    end, found = clock() + seconds, {name: list[tuple[float, bool]]() for name in passes}
    is_long = {name: _warmed_up(run, clock) for name, run in passes.items()}
    for number in range(ROUNDS):
        if number >= LEAST_ROUNDS and clock() >= end:
            break
        for name in list(passes)[:: -1 if number % 2 else 1]:
            run, number_timed = passes[name], 1 if is_long[name] else PASSES
            if not is_long[name]:
                run()
            for _ in range(number_timed):
                before, start = interruptions(), clock()
                run()
                found[name].append((clock() - start, interruptions() > before))
        done()
    return {name: _summary(each) for name, each in found.items()}


def _warmed_up(run: Pass, clock: Callable[[], float]) -> bool:
    """Make the first passes; whether they are long."""
    start = clock()
    run()
    if clock() - start > LONG:
        return True
    for _ in range(WARM_UP - 1):
        run()
    return False


def _summary(passes: list[tuple[float, bool]]) -> Times:
    every = [seconds for seconds, _ in passes]
    calm = [seconds for seconds, is_interrupted in passes if not is_interrupted]
    counted = calm if len(calm) >= LEAST_CALM else every
    return Times(float(np.median(counted)), float(np.quantile(every, 0.95)), len(every), len(every) - len(calm))
