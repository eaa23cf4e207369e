"""Peak memory of training by batch size, with and without recomputation of the students' blocks (--checkpointing).

Each batch size is a process of its own that takes two whole steps with the largest elastic student there is. On a CPU
the figure is the highest resident memory less what was resident after the imports; on CUDA it is what torch allocated
for tensors. The time is that of the second step.

    python benchmarks/memory.py [--recipe vit-small-data] [--batches 32 64 128]
"""

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import torch

from measure import machine, wait
from poa.config import resolve
from poa.data.index import ImageIndex, open_index
from poa.elastic.space import Size
from poa.pretraining.build import Parts, assemble
from poa.pretraining.step import step_batches, train_step
from poa.training.progress import memory_in_use

MIB = 2**20


class Task(NamedTuple):
    """What one process does."""

    recipe: str | None
    file: str | None
    data: str
    device: str
    threads: int
    batch_size: int
    checkpointing: bool


class Use(NamedTuple):
    """What it needed."""

    memory_bytes: int
    seconds: float


def main() -> None:
    """Measure and print a table."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    print(machine(torch.device(arguments.device)))
    print(f"{arguments.config or arguments.recipe}, {arguments.device}; peak memory, time of a step")
    print(f"{'batch':>5}  {'stored':>20}  {'recomputed':>20}  {'memory':>7}")
    for batch_size in arguments.batches:
        stored, recomputed = (
            in_new_process(
                Task(
                    recipe=None if arguments.config else arguments.recipe,
                    file=arguments.config,
                    data=arguments.data,
                    device=arguments.device,
                    threads=arguments.threads,
                    batch_size=batch_size,
                    checkpointing=checkpointing,
                )
            )
            for checkpointing in (False, True)
        )
        shown = "  ".join(f"{use.memory_bytes / MIB:8,.0f} MiB {use.seconds:5.2f} s" for use in (stored, recomputed))
        print(f"{batch_size:5}  {shown}  {recomputed.memory_bytes / stored.memory_bytes:7.2f}", flush=True)


def parse() -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="vit-small-data")
    parser.add_argument("--config", help="YAML file of settings instead of a recipe")
    parser.add_argument("--data", default="digits", help="at least as many images as the largest batch has")
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    return parser.parse_args()


def in_new_process(task: Task) -> Use:
    """Run a task where nothing else has used memory before."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=fresh) as pool:
        return pool.submit(use_of_task, task).result()


def use_of_task(task: Task) -> Use:
    """Memory beyond that of the imports, and time, of training with the settings of a task."""
    torch.set_num_threads(task.threads)
    device = torch.device(task.device)
    before = memory_in_use(device)
    given = {"data": task.data, "batch_size": task.batch_size, "checkpointing": task.checkpointing, "epochs": 10_000}
    config = resolve.resolve(given, recipe=task.recipe, file=task.file)
    index = open_index(config.data)
    parts = assemble(config, index, device=device)
    use = use_of(parts, index, batch_size=config.batch_size, micro_batches=config.accumulate)
    return use._replace(memory_bytes=use.memory_bytes - before)


def use_of(parts: Parts, index: ImageIndex, *, batch_size: int, micro_batches: int = 1) -> Use:
    """The most memory in use during two steps, on CUDA that of all tensors, and the time of the second step."""
    if parts.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(parts.device)
    step = steps_by_size(parts)[-1]
    loader = step_batches(
        parts,
        index,
        batch_size=batch_size,
        start_step=step,
        num_steps=2,
        micro_batches=micro_batches,
    )
    for batch in loader:
        wait(parts.device)
        began = time.perf_counter()
        train_step(parts, step, batch)
        wait(parts.device)
    return Use(memory_in_use(parts.device), time.perf_counter() - began)


def steps_by_size(parts: Parts) -> list[int]:
    """Steps with masks, in the order of the largest sub-network that they take."""

    def volume(size: Size) -> int:
        return size.width**2 * sum(size.depths)

    one_pass = range(parts.ibot_start, parts.ibot_start + len(parts.family.space.entries))
    return sorted(one_pass, key=lambda step: max(map(volume, parts.subnets(step))))


if __name__ == "__main__":
    main()
