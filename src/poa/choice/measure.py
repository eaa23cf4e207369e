"""Measure networks: times of all in turn, and what they take in files, in memory and in operations."""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import nn

from poa.choice.measured import Measured, Measurement, Setup, load, machine_of, save
from poa.choice.runtimes import Runnable, check_runtime, runnable, threads_of, version_of
from poa.choice.timing import ROUNDS, Times, times_of
from poa.config.choice import MeasureSettings
from poa.evaluation.cost import costs, known_flops, parameters
from poa.machine.limits import memory_of_machine
from poa.models.source import ModelSource
from poa.text import plain_console
from poa.training.progress import Bars

_SHARE = 0.25
"""Of the memory, for networks that are timed in turn."""
_USUAL_MEMORY = 8 * 2**30
"""Bytes, where the system does not tell."""
_BYTES_PER_PARAMETER = 4
_LEAST_RANKED = 3


class Network(NamedTuple):
    """One of the networks of a source."""

    source: ModelSource
    name: str


class Sitting(NamedTuple):
    """What was measured of a source now, and before by the same setup."""

    source: ModelSource
    before: Measured
    now: Mapping[str, Measurement]

    @property
    def rank_correlation(self) -> float | None:
        """Of the times now and before; None where fewer than three networks have both."""
        names = [name for name in self.now if name in self.before.networks]
        if len(names) < _LEAST_RANKED:
            return None
        return rank_correlation(
            [self.before.networks[name].ms for name in names], [self.now[name].ms for name in names]
        )


def measure_sources(
    sources: Sequence[ModelSource],
    how: MeasureSettings,
    *,
    sizes: str | Sequence[str] = "all",
    console: Console | None = None,
) -> list[Sitting]:
    """Measure networks of several sources in turn; ``sizes`` are those of runs.

    Raises:
        UserError: As of ``measure``; or there is no such size.
    """
    chosen = [source.names if source.family is None else source.choose(sizes) for source in sources]
    before = [known(source, how) for source in sources]
    networks = [Network(source, name) for source, names in zip(sources, chosen, strict=True) for name in names]
    found = iter(measure(networks, how, console=console))
    now = [dict(zip(names, found, strict=False)) for names in chosen]
    return [Sitting(*each) for each in zip(sources, before, now, strict=True)]


def measure(
    networks: Sequence[Network],
    how: MeasureSettings,
    *,
    console: Console | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Measurement]:
    """Measure networks, of one or of several sources, and keep the results beside the scores of these.

    What is measured is the timm model of each, without a classifier. All that fit into a quarter of the memory are
    timed in turn; if not all do, they are divided into groups of like sizes, which share the time.

    Args:
        networks: Which ones.
        how: Device, runtime, threads, batch and time.
        console: Where to show progress; standard error by default.
        clock: Gives seconds.

    Returns:
        A measurement of each network, in their order.

    Raises:
        UserError: The device or the runtime is not there, or a network cannot be exported for it.
    """
    check_runtime(how)
    found, date = dict[int, Measurement](), datetime.now(UTC).isoformat(timespec="seconds")
    with Bars(console or plain_console(stderr=True)) as bars, threads_of(how):
        groups = _groups(networks, how)
        prepared, rounds = bars.add("networks prepared", len(networks)), bars.add("rounds", ROUNDS * len(groups))
        for group in groups:
            made = {str(place): _made(networks[place], how, prepared) for place in group}
            times = times_of(
                {place: each.ready.run for place, each in made.items()},
                seconds=how.seconds * len(group) / len(networks),
                clock=clock,
                done=rounds,
            )
            found |= {int(place): _measurement(each, times[place], how, date) for place, each in made.items()}
    _keep(networks, how, found)
    return [found[place] for place in range(len(networks))]


class _Made(NamedTuple):
    """A network that is ready to run, and what does not depend on the machine."""

    ready: Runnable
    parameters: int
    macs: int | None


def _made(network: Network, how: MeasureSettings, done: Callable[[], Any]) -> _Made:
    source, name = network
    own = source.preprocessing
    whole: Any = source.network(name)
    model: nn.Module = whole.model
    operations = known_flops(model, own.image_size, channels=own.values.number)
    made = _Made(
        runnable(model, how, own, name=name),
        parameters(model),
        None if operations is None else operations // 2,
    )
    done()
    return made


def _measurement(made: _Made, times: Times, how: MeasureSettings, date: str) -> Measurement:
    return Measurement(
        ms=1000 * times.median,
        ms_p95=1000 * times.p95,
        passes=times.passes,
        interrupted=times.interrupted,
        images_per_second=how.batch / times.median,
        memory_bytes=made.ready.memory_bytes,
        file_bytes=made.ready.file_bytes,
        parameters=made.parameters,
        macs=made.macs,
        date=date,
    )


def setup_of(source: ModelSource, how: MeasureSettings) -> Setup:
    """What measurements of a source on this machine depend on."""
    return Setup(
        machine=machine_of(how.device),
        device=how.device,
        runtime=how.runtime,
        version=version_of(how.runtime),
        threads=how.threads,
        batch=how.batch,
        image_size=source.preprocessing.image_size,
    )


def known(source: ModelSource, how: MeasureSettings) -> Measured:
    """The measurements of that kind that a source has from this machine."""
    setup = setup_of(source, how)
    return next((each for each in load(source) if each.setup == setup), Measured(setup))


def _keep(networks: Sequence[Network], how: MeasureSettings, found: Mapping[int, Measurement]) -> None:
    for source, places in _by_source(networks):
        save(source, Measured(setup_of(source, how), {networks[place].name: found[place] for place in places}))


def _groups(networks: Sequence[Network], how: MeasureSettings) -> list[range]:
    """Places of networks that are held in memory at the same time; each group has sizes of all kinds."""
    needed = sum(
        _bytes_of(source, [networks[place].name for place in places]) for source, places in _by_source(networks)
    )
    there = torch.cuda.mem_get_info()[1] if how.device == "cuda" else memory_of_machine() or _USUAL_MEMORY
    number = min(len(networks), max(1, ceil(needed / (_SHARE * there))))
    return [range(start, len(networks), number) for start in range(number)]


def _bytes_of(source: ModelSource, names: Sequence[str]) -> int:
    """Of networks that have to be made; a single one is in memory already."""
    if source.family is None:
        return 0
    sizes = [source.family.space.find(name) for name in names]
    own = source.preprocessing
    counted = costs(source.family.build, sizes, image_size=own.image_size, channels=own.values.number)
    return sum(_BYTES_PER_PARAMETER * cost.parameters for cost in counted.values())


def _by_source(networks: Sequence[Network]) -> list[tuple[ModelSource, list[int]]]:
    """Each source with the places of its networks."""
    sources = {id(network.source): network.source for network in networks}
    return [
        (source, [place for place, network in enumerate(networks) if network.source is source])
        for source in sources.values()
    ]


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's, of values without ties."""
    one, other = (np.argsort(np.argsort(values)) for values in (first, second))
    return float(np.corrcoef(one, other)[0, 1])
