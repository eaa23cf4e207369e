"""Memory and time of a step on several processes of this CPU: all weights on each (ddp), or a part of them (fsdp)."""

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from poa.config.pretraining import Config
from poa.data.index import open_index
from poa.pretraining.build import assemble
from poa.pretraining.step import step_batches, train_step

STEPS = 3


def settings_of(parallel: str, processes: int, size: str) -> Config:
    """Networks with many weights on images of few pixels: what is measured is weights, gradients and optimizer."""
    width, depth = map(int, size.split("x"))
    return Config.model_validate(
        {
            "data": "digits",
            "batch_size": 2 * processes,
            "devices": processes,
            "device": "cpu",
            "parallel": parallel,
            "precision": "fp32",
            "model": {"width_max": width, "depth_max": depth, "width_min": width // 2, "depth_min": depth // 2},
            "heads": {"prototypes": [4096], "hidden": 1024, "bottleneck": 256},
            "views": {"global_size": 32, "num_locals": 0, "blur_kernel": 3},
        }
    )


def train(rank: int, config: Config, folder: str) -> None:
    """Some steps on one process; writes what it has taken in bytes and seconds."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=config.processes)
    index = open_index(config.data)
    before = resident()
    forget_peak()
    parts = assemble(config, index, device=torch.device("cpu"))
    built = resident("VmHWM")
    batches = step_batches(
        parts,
        index,
        batch_size=config.batch_size,
        start_step=0,
        num_steps=STEPS,
        rank=rank,
        world_size=config.processes,
    )
    for step, batch in enumerate(batches):
        if step == STEPS - 1:
            forget_peak()
        began = time.process_time()
        train_step(parts, step, batch)
        seconds = time.process_time() - began
    peak = resident("VmHWM")
    torch.save((built - before, peak - before, resident() - before, seconds), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def forget_peak() -> None:
    """Let the system find the most memory anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def resident(kind: str = "VmRSS") -> int:
    """Bytes of this process in memory, now or at most."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="512x8", help="the intact network (%(default)s)")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4], help="numbers of them")
    given = parser.parse_args()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back to the system, or the peak is of the past
    print(f"{'processes':<11}{'parallel':<10}{'built':>9}{'peak':>9}{'between':>9}{'CPU':>8}")
    for processes in given.processes:
        for parallel in ("ddp", "fsdp"):
            with tempfile.TemporaryDirectory() as folder:
                config = settings_of(parallel, processes, given.size)
                spawn(train, (config, folder), nprocs=processes)  # type: ignore[no-untyped-call]  # torch says no types
                found = [torch.load(f"{folder}/{rank}.pt") for rank in range(processes)]
            built, peak, between, seconds = (max(each) for each in zip(*found, strict=True))
            memory = "".join(f"{each / 1e6:>6.0f} MB" for each in (built, peak, between))
            print(f"{processes:<11}{parallel:<10}{memory}{seconds:>6.1f} s")


if __name__ == "__main__":
    main()
