"""What a GPU makes of the library, in a quarter of an hour: correctness, speed, memory, images, and a run.

Stages share the minutes, and each ends by itself. Every figure is written at once to OUT/figures.jsonl and
OUT/summary.md; after an interruption the same command goes on with what is left.

    python benchmarks/gpu.py --minutes 14 --out runs/gpu --data cifar10.zip

Exit status: 0 if all went well, 1 if a work failed or a check does not hold, 3 if there was no time for some works.
"""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import gpu_checks
import gpu_speed
import gpu_train
from measure import machine
from poa import distributed
from stages import DeviceLostError, Record, Stage, latest, run_stages

NAMES = ("checks", "speed", "memory", "loader", "training")
SHARES = {"checks": 0.2, "speed": 0.24, "memory": 0.12, "loader": 0.08, "training": 0.36}
FULL = gpu_speed.Scale(
    recipe="poa-vit-l",
    networks={
        "ViT-S": {"width_min": 192, "width_max": 384, "depth_min": 6, "depth_max": 12},
        "ViT-B": {"width_max": 768, "depth_max": 12},
        "ViT-L": {"width_max": 1024, "depth_max": 24},
    },
    batch=64,
    rounds=(3, 20),
    seconds=3.0,
    batches=(32, 64, 96, 128, 192, 256),
    photos=256,
    workers=tuple(sorted({1, 4, max(1, (os.cpu_count() or 1) - 1)})),
)
TINY = gpu_speed.Scale(
    recipe="demo",
    networks={"ViT": {"widths": [32, 64], "depth_min": 1, "depth_max": 2}},
    batch=4,
    rounds=(1, 1),
    seconds=0.0,
    batches=(4,),
    photos=4,
    workers=(0,),
)
SMALL: Mapping[str, Any] = {
    "model": TINY.networks["ViT"],
    "heads": {"hidden": 32},
    "limit": 32,
    "batch_size": 16,
    "monitor": {"num_images": 32},
}
"""Of the tiny checks and the tiny run."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is left; returns the exit status."""
    given = parse(arguments)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before CUDA starts; deterministic products need it
    device = distributed.this_device("auto")
    if device.type == "cpu" and not given.tiny:
        print("PyTorch finds no GPU here. To try the script on a CPU, add --tiny.", file=sys.stderr)
        return 2
    began, folder = time.monotonic(), Path(given.out)
    record = Record(folder, title=machine(device))
    stages = [stage for stage in stages_of(given, record, device) if stage.name in given.stages]
    try:
        run_stages(stages, record, seconds=60 * given.minutes, device=device, again=given.again)
    except DeviceLostError:
        left = given.minutes - (time.monotonic() - began) / 60
        kept = [each for each in sys.argv if each != "--again"]  # or it would be lost again and again
        command = [sys.executable, *kept, "--minutes", f"{left:.2f}"]
        print(f"The GPU is lost to this process; going on in a new one: {shlex.join(command)}", flush=True)
        os.execv(sys.executable, command)
    print(f"{folder / 'summary.md'}")
    if record.failures:
        return 1
    return 3 if "no time" in latest(record.rows).values() else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What to run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=14, help="for all stages together")
    parser.add_argument("--out", required=True, help="folder of the figures and of the run")
    parser.add_argument("--data", help="images to train on, with the parts train and test, such as cifar10.zip")
    parser.add_argument("--recipe", default="vit-small-data", help="of the training")
    parser.add_argument("--batch", type=int, default=512, help="images a step of the training")
    parser.add_argument("--stages", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--peak-tflops", type=float, help="of the card in bf16, where it is not in the table")
    parser.add_argument("--again", action="store_true", help="repeat works that failed or were interrupted")
    parser.add_argument("--tiny", action="store_true", help="seconds on a CPU, to see that the script runs through")
    return parser.parse_args(arguments)


def stages_of(given: argparse.Namespace, record: Record, device: torch.device) -> list[Stage]:
    """All stages."""
    folder, tiny = Path(given.out), given.tiny
    scale, small = (TINY, SMALL) if tiny else (FULL, {})
    data = given.data or ("digits" if tiny else None)
    training = gpu_train.Scale(
        data=data or "",
        recipe="demo" if tiny else given.recipe,
        given=SMALL if tiny else {"batch_size": given.batch},
        most_epochs=1 if tiny else 200,
        **({"warm": 1, "timed": 1} if tiny else {}),
    )
    works = {
        "checks": gpu_checks.works(folder, device, small=small, tiny=tiny),
        "speed": gpu_speed.speed_works(scale, device, given.peak_tflops),
        "memory": gpu_speed.memory_works(scale, device),
        "loader": gpu_speed.loader_works(scale, device, folder, record),
        "training": gpu_train.works(training, device, folder) if data else [],
    }
    if not data:
        print("No --data, so there is no training.", flush=True)
    return [Stage(name, SHARES[name], works[name]) for name in NAMES]


if __name__ == "__main__":
    sys.exit(main())
