"""What a change of precision does to training: an older commit and this checkout in bf16, and this one in fp32.

All runs of a seed have the settings of the first one, which the older commit makes from the recipe and the flags that
are left over, so that a recipe that has changed since does not matter. Printed are means and standard deviations over
seeds: the loss in the first, middle and last epoch, and k-NN (20 neighbours) of the smallest, middle and largest size,
all evaluated by this checkout. What is done in --out is kept.

    python benchmarks/curves.py --before 3301d41 --recipe demo --epochs 6 --out runs/curves
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

import poa
from before_after import ROOT, checked_out
from measure import machine

ARMS = {"before": "bf16", "now": "bf16", "now, fp32": "fp32"}
"""Name and precision."""
PROGRAM = """
import json, sys
from poa import cli
for words in json.loads(sys.argv[1]):
    try:
        cli.main(words)
    except SystemExit as end:
        if end.code:
            raise
"""


class Figures(NamedTuple):
    """Of one run."""

    losses: Sequence[float]
    """In each epoch."""
    scores: Mapping[str, float]
    """By size."""


def main() -> None:
    """Train what is not there yet, and print a table."""
    arguments, flags = parse()
    torch.set_num_threads(1)
    with checked_out(arguments.before) as before:
        for arm in ARMS:
            train(arm, before if arm == "before" else ROOT, arguments, flags)
    print(machine(torch.device("cpu")))
    print(table({arm: [figures(run, arguments) for run in runs(arm, arguments)] for arm in ARMS}))


def parse() -> tuple[argparse.Namespace, list[str]]:
    """What to train, and flags of ``poa pretrain``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, help="the older commit")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--train", default="digits/train", help="images to learn from, also those that vote")
    parser.add_argument("--test", default="digits/test")
    parser.add_argument("--limit", type=int, help="so many of the images to learn from")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/curves"))
    return parser.parse_known_args()


def runs(arm: str, arguments: argparse.Namespace) -> list[Path]:
    """Their folders, one for each seed."""
    return [arguments.out / f"{arm} {seed}" for seed in range(arguments.seeds)]


def train(arm: str, checkout: Path, arguments: argparse.Namespace, flags: Sequence[str]) -> None:
    """Train the runs of all seeds, or go on with them, with the library of a checkout and in one process."""
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}
    started = []
    for seed, run in enumerate(runs(arm, arguments)):
        new = [*settings(arm, arguments, flags), "--seed", str(seed), "--precision", ARMS[arm]]
        how = ["--resume"] if (run / "config.yaml").exists() else new
        started.append(["pretrain", "--out", str(run), *how])
    subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(started)], env=environment, check=True)


def settings(arm: str, arguments: argparse.Namespace, flags: Sequence[str]) -> list[str]:
    """Flags of the older commit's runs; the others have the settings of the first of these."""
    if arm != "before":
        return ["--config", str(arguments.out / "before 0/config.yaml")]
    limit = [] if arguments.limit is None else ["--limit", str(arguments.limit)]
    data = ["--data", arguments.train, "--recipe", arguments.recipe, "--epochs", str(arguments.epochs), *limit]
    return [*data, "--device", "cpu", "--workers", "0", "--monitor.every-epochs", str(arguments.epochs), *flags]


def figures(run: Path, arguments: argparse.Namespace) -> Figures:
    """Losses of a finished run, and its scores."""
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = len(losses) // arguments.epochs
    names = poa.load(run).sizes()
    sizes = list(dict.fromkeys((names[0], names[len(names) // 2], names[-1])))
    scores = poa.evaluate_knn(run, train=arguments.train, test=arguments.test, limit=arguments.limit, sizes=sizes)
    return Figures(
        [statistics.fmean(losses[first : first + steps]) for first in range(0, steps * arguments.epochs, steps)],
        {size: scores[size]["top1@20"] for size in sizes},
    )


def table(found: Mapping[str, Sequence[Figures]]) -> str:
    """A row for each arm."""
    lines = []
    for arm, runs in found.items():
        epochs = len(runs[0].losses)
        columns = [[run.losses[epoch] for run in runs] for epoch in (0, epochs // 2, epochs - 1)]
        columns += [[run.scores[size] for run in runs] for size in runs[0].scores]
        cells = [f"{statistics.fmean(column):.2f} ± {spread(column):.2f}" for column in columns]
        lines.append(" | ".join([arm, str(len(runs)), *cells]))
    heading = ["", "seeds", "first loss", "middle", "last", *next(iter(found.values()))[0].scores]
    return "\n".join([" | ".join(heading), *lines])


def spread(values: Sequence[float]) -> float:
    """Standard deviation over seeds."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    main()
