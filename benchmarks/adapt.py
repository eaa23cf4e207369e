"""From a network trained alone to all sizes: what each part of the recipes `adapt-...` adds.

The largest network of a recipe is trained alone. Then runs of equal length go on from it, with the losses of that
recipe: with all parts of `adapt-small-data` that are for trained weights, with each of them switched off, with
`--sampling widening`, and one from scratch. k-NN of the smallest, the middle and the largest size, beside those cut out
of the original without training.

    python benchmarks/adapt.py --train digits/train --test digits/test --out runs/adapt

The same command goes on after a stop: trainings from their last checkpoint, scores that are there are kept.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import poa
from budget import ALONE, one_thread, pretrain_for, sizes_of
from measure import machine, write
from poa import distributed
from poa.config.nested import flat, nested
from poa.config.resolve import IN_EPOCHS, of_epochs, read_recipe
from poa.errors import UserError
from poa.models.run import Run

WHOLE: Mapping[str, Any] = flat(read_recipe("adapt-small-data"))
"""The recipe whose parts are tried."""
PARTS = (
    "distill.teacher",
    *("optimizer.base_lr", "optimizer.warmup_epochs", "optimizer.backbone_warmup_epochs"),
    *("optimizer.teacher_momentum", "optimizer.freeze_last_layer_epochs"),
)
"""Its settings that are for trained weights."""
OFF: Mapping[str, tuple[str, Any]] = {
    "without the frozen teacher": ("distill.teacher", ""),
    "with widening": ("sampling", "widening"),
    "without the backbone's warm-up": ("optimizer.backbone_warmup_epochs", 0.0),
    "at twice the rate": ("optimizer.base_lr", 2 * WHOLE["optimizer.base_lr"]),
}
"""How parts are switched off, and what is no part of the recipe on."""
RUNS = ("adapted", "from scratch", *OFF)
"""By their names in the table."""
Flat = dict[str, Any]
"""Settings by dotted name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, score and print; returns the exit status."""
    given = parse(arguments)
    one_thread()
    out, common = Path(given.out), {"data": given.train, "limit": given.images, **ALONE}
    sizes = [str(size) for size in sizes_of(given.recipe).values()]
    rows: list[list[str]] = []

    def scored(name: str, run: Run, minutes: float, branch: str = "teacher") -> None:
        own = [str(run.space.intact)] if len(run.space.sizes) == 1 else sizes
        options: dict[str, Any] = {"sizes": ",".join(own), "branch": branch, "ks": (20,), "workers": 0}
        found = poa.evaluate_knn(run, train=given.train, test=given.test, limit=given.images, **options)
        spent = "" if branch == "initial" else f"{minutes:.1f}"
        rows.append([name, spent, *(f"{found[size]['top1@20']:.1f}" if size in own else "" for size in sizes)])
        write(out / "adapt.md", table(rows, sizes))

    try:
        alone = {"method": "single", "out": str(out / "original")}
        original, spent = pretrain_for(given.original_epochs, recipe=given.recipe, given={**common, **alone})
        scored("original, trained alone", original, spent.minutes)
        settings_of = variants(given.epochs)
        for name in given.runs:
            folder = {"out": str(out / name.replace(" ", "-").replace("'", ""))}
            begins = {} if name == "from scratch" else {"init": str(out / "original")}
            settings = {**common, **folder, **begins, **nested(settings_of[name])}
            run, spent = pretrain_for(given.epochs, recipe=given.recipe, given=settings)
            if name == "adapted":
                scored("cut only", run, 0.0, "initial")
            scored(name, run, spent.minutes)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{machine(distributed.this_device('cpu'))}\n\n{table(rows, sizes)}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What is trained for how long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="labelled images; training does not look at labels")
    parser.add_argument("--test", required=True, help="labelled images")
    parser.add_argument("--out", required=True, help="folder of runs and of the table")
    parser.add_argument("--recipe", default="demo", help="of the original and of the run from scratch")
    parser.add_argument("--original-epochs", type=int, default=30, help="of the network trained alone")
    parser.add_argument("--epochs", type=int, default=10, help="of each of the other runs")
    parser.add_argument("--images", type=int, help="of the training images, to train on and for k-NN; all by default")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS, help="which of the other runs")
    return parser.parse_args(arguments)


def parts(epochs: int) -> Flat:
    """The parts, with what is counted in epochs for runs of another length."""
    own = {name: WHOLE[name] for name in PARTS}
    counted = own.keys() & set(IN_EPOCHS)
    in_epochs = {name: of_epochs(name, own[name], before=WHOLE["epochs"], now=epochs) for name in counted}
    return own | in_epochs


def variants(epochs: int) -> dict[str, Flat]:
    """Settings of each run by its name in the table."""
    whole = parts(epochs)
    off = {name: whole | {path: value} for name, (path, value) in OFF.items()}
    return {"adapted": whole, "from scratch": {}, **off}


# ---- table ---------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Sequence[str]], sizes: Sequence[str]) -> str:
    """A line for each row, in Markdown."""
    heading = ["run", "CPU minutes", *sizes]
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
