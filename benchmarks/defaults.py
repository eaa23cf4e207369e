"""What `poa pretrain --data X --out Y --hours H` and nothing else comes to, on five data sets; and whether plans hold.

Each data set is trained as planned, then every size is scored beside the same network untrained: by k-NN where there
are labels, by segmentation with a linear head where there are masks (CamVid), by the agreement of neighbours of two
views where there is neither (coco128). Then three recipes are planned and trained for some steps, and images/s and
memory of plan and run are compared, as they are for the five runs. The same command again goes on where it stopped.

    python benchmarks/defaults.py --data FOLDER_OF_ZIPS --out runs/defaults [--hours 0.1] [--only digits coco128]

The folder holds cifar10.zip, caltech101.zip (with train.txt and test.txt), camvid.zip and coco128.zip; what is not
there is left out. OUT/defaults.md has the tables.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from measure import machine

RECIPES = {
    "vit-small-data": ("cifar10.zip/train", "60"),
    "resnet-small-data": ("cifar10.zip/train", "60"),
    "vit-96": ("caltech101.zip", "40"),
}
"""Recipes whose plans are compared with runs: their images and number of steps."""
CAMVID = "--ignore 11 --image-size 96 --resize 120 --epochs 2"


@dataclass(frozen=True)
class Case:
    """A data set: what it is trained on, and how its sizes are scored.

    Attributes:
        train: Flags that name the images; ``DATA`` stands for the folder of the archives, ``OUT`` for that of the runs.
        score: The words after ``poa evaluate`` without the run.
        file: Name of the results of this protocol.
        key: What the name of the score begins with.
    """

    train: str
    score: str
    file: str = "knn"
    key: str = "top1@20"

    def needs(self) -> str:
        """The archive that it is in."""
        return next((word.split("/")[1] for word in self.train.split() if word.startswith("DATA/")), "")


CASES = {
    "digits": Case("--data digits/train", "knn RUN --train digits/train --test digits/test"),
    "CIFAR-10": Case(
        "--data DATA/cifar10.zip/train --limit 10000",
        "knn RUN --train DATA/cifar10.zip/train --limit 5000 --test DATA/cifar10.zip/test",
    ),
    "Caltech-101": Case(
        "--data DATA/caltech101.zip",
        "knn RUN --train OUT/caltech101/train.txt --test OUT/caltech101/test.txt",
    ),
    "CamVid": Case(
        "--data DATA/camvid.zip/train",
        "segmentation RUN --train DATA/camvid.zip/train --train-masks DATA/camvid.zip/trainannot "
        f"--test DATA/camvid.zip/val --test-masks DATA/camvid.zip/valannot {CAMVID}",
        file="segmentation",
        key="miou",
    ),
    "coco128": Case(
        "--data DATA/coco128.zip/train2017", "quality RUN --data DATA/coco128.zip/val2017", file="quality", key="views@"
    ),
}


def main() -> None:
    """Train, score, compare, and write the tables after each data set."""
    arguments = parse()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    there = {name: case for name, case in CASES.items() if name in (arguments.only or CASES)}
    there = {name: case for name, case in there.items() if (arguments.data / case.needs()).exists()}
    if "Caltech-101" in there and not (out / "caltech101").exists():
        with zipfile.ZipFile(arguments.data / "caltech101.zip") as archive:
            archive.extractall(out / "unfinished")
        for file in (out / "unfinished").glob("*.txt"):  # one line of the lists names no image
            lines = file.read_text(encoding="utf-8").splitlines()
            file.write_text("".join(f"{line}\n" for line in lines if (file.parent / line).exists()), encoding="utf-8")
        (out / "unfinished").rename(out / "caltech101")
    parts = [f"# Runs with --data, --out and --hours {arguments.hours:g} alone", machine(torch.device("cpu"))]
    compared = []
    for name, case in there.items():
        run = out / name
        words = f"{case.train} --hours {arguments.hours:g}"
        log = trained(run, filled(words, arguments, run))
        scores = [scored(run, case, branch, arguments) for branch in ("teacher", "untrained")]
        parts += [f"## {name}", "\n".join(chosen(run)), score_table(*scores)]
        compared.append((name, *forecast_of((run / "plan.txt").read_text(encoding="utf-8")), *real(log)))
        write(out, parts, compared)
    if not arguments.only:
        for recipe, (images, steps) in RECIPES.items():
            run, flags = out / f"plan-{recipe}", ["--data", str(arguments.data / images), "--recipe", recipe]
            if not (arguments.data / images.split("/")[0]).exists():
                continue
            log = trained(run, [*flags, "--steps", steps, "--limit", "640"])
            compared.append((recipe, *forecast_of((run / "plan.txt").read_text(encoding="utf-8")), *real(log)))
            write(out, parts, compared)
    print((out / "defaults.md").read_text(encoding="utf-8"))


def parse() -> argparse.Namespace:
    """What to train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the archives")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--hours", type=float, default=0.1)
    parser.add_argument("--only", nargs="+", choices=list(CASES), help="data sets; without the recipes' plans")
    return parser.parse_args()


def filled(words: str, arguments: argparse.Namespace, run: Path) -> list[str]:
    """Words of a command with the folders that they stand for."""
    for name, place in (("DATA/", f"{arguments.data}/"), ("OUT/", f"{arguments.out}/")):
        words = words.replace(name, place)
    return [str(run) if word == "RUN" else word for word in words.split()]


def trained(run: Path, words: Sequence[str]) -> str:
    """Train a run, or resume it; what it has written. One that was resumed is compared by its last part."""
    log = run.with_suffix(".log")
    if log.exists() and "run finished" in log.read_text(encoding="utf-8"):
        return log.read_text(encoding="utf-8")
    begun = any((run / "checkpoints").glob("*.pt")) if run.exists() else False
    call(["pretrain", *(["--out", str(run), "--resume"] if begun else [*words, "--out", str(run)])], log)
    return log.read_text(encoding="utf-8")


def scored(run: Path, case: Case, branch: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Scores by size; those that are there are not made again."""
    call(
        ["evaluate", *filled(case.score, arguments, run), "--branch", branch, "--name", branch],
        run.with_suffix(".scores"),
    )
    content: dict[str, Any] = json.loads((run / "eval" / branch / f"{case.file}.json").read_text(encoding="utf-8"))
    found = {}
    for size, scores in content["scores"].items():
        score = next(value for name, value in scores.items() if name.startswith(case.key))
        found[size] = 100 * score if case.file == "quality" else score
    return found


def call(words: Sequence[str], log: Path) -> None:
    """Run the command; a failure ends this program with what the command said."""
    print("poa", *words, flush=True)
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run(
            [sys.executable, "-m", "poa", *words], stdout=file, stderr=file, env=os.environ, check=False
        )
    if done.returncode:
        sys.exit("\n".join(log.read_text(encoding="utf-8").splitlines()[-5:]))


def chosen(run: Path) -> list[str]:
    """The lines of a plan on what was chosen."""
    lines = (run / "plan.txt").read_text(encoding="utf-8").splitlines()
    kept = ("images:", "machine:", "recipe:", "--", "time:", "note:")
    return [
        f"- `{name}`: {what}" for name, _, what in (line.partition(": ") for line in lines if line.startswith(kept))
    ]


def score_table(trained_scores: Mapping[str, float], untrained: Mapping[str, float]) -> str:
    """Trained beside untrained."""
    rows = ["| size | trained | untrained | gain |", "|---|---|---|---|"]
    for size, score in trained_scores.items():
        rows.append(f"| {size} | {score:.1f} | {untrained[size]:.1f} | {score - untrained[size]:+.1f} |")
    better = sum(score > untrained[size] for size, score in trained_scores.items())
    return "\n".join([*rows, "", f"{better} of {len(trained_scores)} sizes are better than untrained."])


def forecast_of(plan: str) -> tuple[float, float]:
    """Images/s and GB of memory of a plan."""
    speed = re.search(r"^speed: ([\d.,e+]+) images/s", plan, re.MULTILINE)
    memory = re.search(r"^memory: ([\d.]+) GB", plan, re.MULTILINE)
    assert speed is not None
    assert memory is not None
    return float(speed[1].replace(",", "")), float(memory[1])


def real(log: str) -> tuple[float, float]:
    """Images/s while loading and training, and GB of memory, of a run."""
    end = log[log.rindex("run finished") :]
    speed, memory = re.search(r"([\d.,]+) images/s", end), re.search(r"memory +([\d.]+) GB", end)
    data, training = re.search(r"data (\d+)%", end), re.search(r"training (\d+)%", end)
    assert speed is not None
    assert memory is not None
    assert data is not None
    assert training is not None
    share = (int(data[1]) + int(training[1])) / 100
    return float(speed[1].replace(",", "")) / share, float(memory[1])


def write(out: Path, parts: Sequence[str], compared: Sequence[tuple[str, float, float, float, float]]) -> None:
    """Write the tables so far."""
    rows = ["| run | images/s planned | real | ratio | GB planned | real | ratio |", "|---|---|---|---|---|---|---|"]
    for name, speed, memory, real_speed, real_memory in compared:
        speeds = f"{speed:.0f} | {real_speed:.0f} | {speed / real_speed:.2f}"
        rows.append(f"| {name} | {speeds} | {memory:.1f} | {real_memory:.1f} | {memory / real_memory:.2f} |")
    text = "\n\n".join([*parts, "## Plans and runs", "\n".join(rows)])
    (out / "defaults.md").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
