"""Ablations: what each part of a run of all sizes adds, in equal CPU time.

All runs learn from the same images on one thread, each for as many epochs as come nearest to the same CPU minutes,
which are measured once for each variant. Variants of the recipe:

- `teacher`: taught by the largest size alone, trained on all images (its minutes are printed below and do not
  count), with the crops of `distill-small-data`;
- `sandwich`: every step trains the smallest size and a drawn one, each taught by the next larger one;
- `prototypes`: the published loss instead of the coding rate;
- `48 pixels`: crops of 48 pixels instead of 32;
- `teacher, sandwich`: both.

Printed are k-NN (20) of the smallest, the middle and the largest size, the mean over seeds with half of its 95 %
interval, and differences from the recipe, seed by seed.

    python benchmarks/ablations.py --train cifar10.zip/train --test cifar10.zip/test --out runs/ablations

The same command goes on after a stop.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import poa
from budget import affordable, one_thread, pretrain_for, sizes_of
from measure import machine, write
from poa import distributed
from poa.errors import UserError
from poa.experiments.runs import OverSeeds

RECIPE, TAUGHT = "convnext-small-data", "distill-small-data"


class Variant(NamedTuple):
    """A way to train."""

    recipe: str
    over: Mapping[str, Any]
    """What is laid over it."""
    is_taught: bool = False


VARIANTS: Mapping[str, Variant] = {
    "the recipe": Variant(RECIPE, {}),
    "teacher": Variant(TAUGHT, {}, is_taught=True),
    "sandwich": Variant(RECIPE, {"sampling": "sandwich"}),
    "prototypes": Variant(RECIPE, {"losses": {"kind": "prototypes"}}),
    "48 pixels": Variant(RECIPE, {"views": {"global_size": 48}}),
    "teacher, sandwich": Variant(TAUGHT, {"sampling": "sandwich"}, is_taught=True),
}


class Row(NamedTuple):
    """What came out of the runs of a variant."""

    epochs: int
    minutes: Sequence[float]
    """Of CPU time, by seed."""
    scores: Mapping[str, Sequence[float]]
    """k-NN in percent by size, then by seed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, score and print; returns the exit status."""
    given = parse(arguments)
    one_thread()
    out, rows = Path(given.out), dict[str, Row]()
    try:
        teacher = taught_from_all(given)
        for name in given.variants:
            rows[name] = row(VARIANTS[name], out / name.replace(", ", "-").replace(" ", "-"), given)
            write(out / "ablations.md", table(rows, teacher))
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{machine(distributed.this_device('cpu'))}\n\n{table(rows, teacher)}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What is trained for how long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="labelled images; training does not look at labels")
    parser.add_argument("--test", required=True, help="labelled images")
    parser.add_argument("--out", required=True, help="folder of runs and of the table")
    parser.add_argument("--images", type=int, default=10_000, help="of the training images, also those that vote")
    parser.add_argument("--minutes", type=float, default=4.5, help="CPU time of a run")
    parser.add_argument("--teacher-images", type=int, help="of the teacher; all by default")
    parser.add_argument("--teacher-epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3, help="how many runs of each")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    return parser.parse_args(arguments)


def taught_from_all(given: argparse.Namespace) -> float | None:
    """Train the teacher, if a variant has one; returns its CPU minutes."""
    if not any(VARIANTS[name].is_taught for name in given.variants):
        return None
    settings = {"method": "single", "data": given.train, "limit": given.teacher_images, "precision": "fp32"}
    _, spent = pretrain_for(given.teacher_epochs, recipe=RECIPE, given={**settings, "out": str(teacher_of(given))})
    return spent.minutes


def teacher_of(given: argparse.Namespace) -> Path:
    """Its folder."""
    return Path(given.out, "the-teacher")


def row(variant: Variant, folder: Path, given: argparse.Namespace) -> Row:
    """Train and score a variant with all seeds, or go on with it."""
    common = {"data": given.train, "limit": given.images, "precision": "fp32", **variant.over}
    if variant.is_taught:
        common["distill"] = {"teacher": str(teacher_of(given))}
    decided = folder / "epochs.txt"
    if not decided.exists():
        write(decided, str(affordable(given.minutes, recipe=variant.recipe, given={**common, "out": str(folder)})))
    epochs, minutes = int(decided.read_text(encoding="utf-8")), []
    scores: dict[str, list[float]] = {str(size): [] for size in sizes_of(RECIPE).values()}
    for seed in range(given.seeds):
        settings = {**common, "seed": seed, "out": str(folder / f"seed{seed}")}
        run, spent = pretrain_for(epochs, recipe=variant.recipe, given=settings)
        options: dict[str, Any] = {"sizes": list(scores), "limit": given.images, "ks": (20,), "workers": 0}
        found = poa.evaluate_knn(run, train=given.train, test=given.test, **options)
        minutes.append(spent.minutes)
        for size, of_seeds in scores.items():
            of_seeds.append(found[size]["top1@20"])
    return Row(epochs, minutes, scores)


# ---- table -----------------------------------------------------------------------------------------------------------


def table(rows: Mapping[str, Row], teacher: float | None) -> str:
    """A line for each variant, in Markdown; differences are taken seed by seed."""
    first = next(iter(rows.values()))
    sizes = list(first.scores)
    heading = ["run", "epochs", "CPU minutes", *sizes, *(f"{size}, difference" for size in sizes)]
    lines = [heading, ["---"] * len(heading)]
    for name, found in rows.items():
        cells = [over_seeds(found.scores[size]) for size in sizes]
        differences = [
            ""
            if found is first
            else over_seeds([a - b for a, b in zip(found.scores[size], first.scores[size], strict=True)], sign="+")
            for size in sizes
        ]
        lines.append([name, str(found.epochs), f"{sum(found.minutes) / len(found.minutes):.1f}", *cells, *differences])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return text if teacher is None else f"{text}\n\nThe teacher took {teacher:.1f} CPU minutes."


def over_seeds(values: Sequence[float], *, sign: str = "") -> str:
    """The mean and half of its 95 % interval."""
    mean, _, low, _ = OverSeeds.of(values)
    return f"{mean:{sign}.1f}" if low is None else f"{mean:{sign}.1f} ±{mean - low:.1f}"


if __name__ == "__main__":
    sys.exit(main())
