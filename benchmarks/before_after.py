"""CPU time and peak memory of whole training steps in this checkout, against those of an older commit.

The older commit is checked out into a git worktree for as long as this runs. Each side takes its steps in a process of
its own, in turns; the first step of a process does not count. Memory is the highest resident memory less that after the
imports. Crops are prepared before.

    python benchmarks/before_after.py --before 3301d41 [--cases heads-bf16 losses] [--rounds 3]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

MIB = 2**20
ROOT = Path(__file__).resolve().parents[1]
CASES: dict[str, dict[str, Any]] = {
    "heads-fp32": {"recipe": "poa-vit-l", "precision": "fp32", "batch_size": 8},
    "heads-bf16": {"recipe": "poa-vit-l", "precision": "bf16", "batch_size": 8},
    "losses": {"recipe": "poa-vit-l", "precision": "fp32", "batch_size": 50},
    "resnet50-fp32": {"recipe": "poa-resnet152", "precision": "fp32", "batch_size": 4},
    "resnet50-bf16": {"recipe": "poa-resnet152", "precision": "bf16", "batch_size": 4},
    "onegroup-fp32": {"recipe": "resnet-small-data", "precision": "fp32"},
    "slimclr-fp32": {"recipe": "slimclr-small-data", "precision": "fp32"},
    "convnext-fp32": {"recipe": "convnext-96", "precision": "fp32", "batch_size": 8},
    "stored-1": {"recipe": "poa-vit-l", "precision": "fp32", "batch_size": 8},
    "recomputed-1": {"recipe": "poa-vit-l", "precision": "fp32", "batch_size": 8, "checkpointing": True},
    "recomputed-4": {
        **{"recipe": "poa-vit-l", "precision": "fp32", "batch_size": 8},
        **{"checkpointing": True, "elastic_samples": 4},
    },
}
"""What is trained, by name; steps take one sub-network where nothing else is said."""
MODELS: dict[str, dict[str, Any]] = {
    "heads": {"width_min": 192, "width_max": 384, "depth_min": 12, "depth_max": 12, "drop_path": 0.0},
    "losses": {"width_min": 64, "width_max": 128, "depth_min": 1, "depth_max": 1, "drop_path": 0.0},
    "resnet50": {"width_min": 64, "width_max": 64, "depths": [3, 4, 6, 3], "depth_min": [2, 3], "depth_max": [4, 6]},
    "stored": {"width_min": 192, "width_max": 384, "depth_min": 6, "depth_max": 12, "drop_path": 0.0},
}
MODELS["recomputed"] = MODELS["stored"]
"""By the first word of a case, where not the recipe's: `losses` has hardly a network, but all published prototypes."""
HEADS: dict[str, dict[str, Any]] = {
    "losses": {"hidden": 32},
    "resnet50": {"prototypes": [2048, 4096]},
    "convnext": {"prototypes": [2048, 4096]},
    "stored": {"prototypes": [2048, 4096]},
    "recomputed": {"prototypes": [2048, 4096]},
}


class Figures(NamedTuple):
    """Of one process."""

    seconds: float
    """CPU time of a step."""
    mebibytes: float
    loss: float


def main() -> None:
    """Measure and print."""
    arguments = parse()
    if arguments.case:
        print(json.dumps(steps(arguments.case)))
        return
    print(described(arguments))
    print(f"{'':14}  {'CPU time of a step':>28}  {'peak memory':>34}  first loss")
    with checked_out(arguments.before) as before:
        for case in arguments.cases:
            pairs = [(apart(case, before), apart(case, ROOT)) for _ in range(arguments.rounds)]
            print(row(case, pairs), flush=True)


def parse() -> argparse.Namespace:
    """What to compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="HEAD~1", help="the older commit")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)  # what a process of one side does
    return parser.parse_args()


def described(arguments: argparse.Namespace) -> str:
    """Machine and commits."""
    import torch

    from measure import machine

    torch.set_num_threads(1)
    commits = [git("rev-parse", "--short", commit) for commit in (arguments.before, "HEAD")]
    return f"{machine(torch.device('cpu'))}\n{' against '.join(commits[::-1])}; median of {arguments.rounds} rounds"


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A worktree of a commit."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "before"
        git("worktree", "add", "--detach", str(place), commit)
        try:
            yield place
        finally:
            git("worktree", "remove", "--force", str(place))


def git(*arguments: str) -> str:
    """What git answers."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def apart(case: str, checkout: Path) -> Figures:
    """Run a case with the library of a checkout, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--case", case]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return Figures(*json.loads(done.stdout.splitlines()[-1]))


def steps(case: str) -> Figures:
    """Two steps on the same prepared crops."""
    import torch

    from poa.config import resolve
    from poa.data.index import open_index
    from poa.pretraining.build import assemble
    from poa.pretraining.step import step_batches, train_step
    from poa.training.progress import memory_in_use

    torch.set_num_threads(1)
    device, kind = torch.device("cpu"), case.split("-")[0]
    given = {"data": "digits", "epochs": 10_000, "elastic_samples": 1, "accumulate": 1, **CASES[case]}
    given |= {"model": MODELS.get(kind, {}), "heads": HEADS.get(kind, {})}
    config = resolve.resolve(given, recipe=given.pop("recipe"))
    before = memory_in_use(device)
    index = open_index(config.data)
    parts = assemble(config, index, device=device)
    start = parts.ibot_start + 1  # with masks, as most of a run
    (batch,) = step_batches(parts, index, batch_size=config.batch_size, start_step=start, num_steps=1)
    first = train_step(parts, start, batch)
    began = time.process_time()
    train_step(parts, start, batch)
    return Figures(time.process_time() - began, (memory_in_use(device) - before) / MIB, first.metrics["loss"])


def row(case: str, pairs: list[tuple[Figures, Figures]]) -> str:
    """One line of the table: medians, and the medians of the ratios of the rounds."""
    cells = [f"{case:14}"]
    for column, unit in ((0, "s"), (1, "MiB")):
        old, new = (statistics.median(pair[side][column] for pair in pairs) for side in (0, 1))
        ratio = statistics.median(pair[1][column] / pair[0][column] for pair in pairs)
        cells.append(f"{old:9,.2f} {unit} {new:9,.2f} {unit} {ratio:5.3f}")
    before, after = pairs[0]
    return "  ".join([*cells, f"{before.loss:.6f} {after.loss:.6f}"])


if __name__ == "__main__":
    main()
