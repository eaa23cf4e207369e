"""What the benchmarks share: the line that says where they ran, timing in turns, and files that are whole."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path

import torch

from poa.files import whole_file


def machine(device: torch.device) -> str:
    """Date, hardware and versions, in one line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return (
        f"{date.today().isoformat()}, {_processor()}, {os.cpu_count()} cores ({torch.get_num_threads()} threads used), "
        f"{memory:.0f} GiB RAM{gpu}, {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def in_turns(
    works: Mapping[str, Callable[[int], object]],
    *,
    rounds: int,
    device: torch.device,
    between: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time several pieces of work side by side, so that what else the machine does falls on all alike.

    Args:
        works: Called with the number of the round.
        rounds: How often each is timed. A round before the first warms up and does not count.
        device: Waited for before the clock is read.
        between: Called before each piece of work, not timed.
        clock: Read before and after.

    Returns:
        Seconds of each piece of work in each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(-1, rounds):
        for name, work in works.items():
            between()
            wait(device)
            began = clock()
            work(max(number, 0))
            wait(device)
            if number >= 0:
                seconds[name].append(clock() - began)
    return seconds


def ratio(over: list[float], under: list[float]) -> float:
    """Median of the ratios of the rounds: each compares what ran right after one another."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def write(file: Path, text: str) -> None:
    """Write a text that is there whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")
