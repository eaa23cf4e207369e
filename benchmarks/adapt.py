"""From a network trained alone to all sizes: what each part of the recipes `adapt-...` adds.

The largest network of a recipe is trained alone. Then runs of equal length go on from it: with all parts that
`adapt-small-data` adds to `vit-small-data`, with each of them switched off, and one from scratch. k-NN of the smallest,
the middle and the largest size, beside those cut out of the original without training.

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
from poa.config.resolve import IN_EPOCHS, flat, nested, of_epochs, read_recipe
from poa.errors import UserError
from poa.models.run import Run

WHOLE, BASE = "adapt-small-data", "vit-small-data"
"""The recipe whose parts are tried, and the one that it starts from."""
OFF: Mapping[str, tuple[str, Any]] = {
    "without the frozen teacher": ("distill.teacher", ""),
    "without widening": ("sampling", "published"),
    "without the backbone's warm-up": ("optimizer.backbone_warmup_epochs", 0.0),
    "at the full rate": ("optimizer.base_lr", read_recipe(BASE)["optimizer"]["base_lr"]),
}
"""How each part is switched off."""
Flat = dict[str, Any]
"""Settings by dotted name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, score and print; returns the exit status."""
    given = parse(arguments)
    one_thread()
    out, common = Path(given.out), {"data": given.train, **ALONE}
    sizes = [str(size) for size in sizes_of(given.recipe).values()]
    rows: list[list[str]] = []

    def scored(name: str, run: Run, minutes: float, branch: str = "teacher") -> None:
        own = [str(run.space.intact)] if len(run.space.sizes) == 1 else sizes
        options: dict[str, Any] = {"sizes": ",".join(own), "branch": branch, "ks": (20,), "workers": 0}
        found = poa.evaluate_knn(run, train=given.train, test=given.test, **options)
        spent = "" if branch == "initial" else f"{minutes:.1f}"
        rows.append([name, spent, *(f"{found[size]['top1@20']:.1f}" if size in own else "" for size in sizes)])
        write(out / "adapt.md", table(rows, sizes))

    try:
        alone = {"method": "single", "out": str(out / "original")}
        original, spent = pretrain_for(given.original_epochs, recipe=given.recipe, given={**common, **alone})
        scored("original, trained alone", original, spent.minutes)
        for name, over in variants(given.epochs).items():
            folder = {"out": str(out / name.replace(" ", "-").replace("'", ""))}
            begins = {} if name == "from scratch" else {"init": str(out / "original")}
            settings = {**common, **folder, **begins, **nested(over)}
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
    parser.add_argument("--original-epochs", type=int, default=45, help="of the network trained alone")
    parser.add_argument("--epochs", type=int, default=10, help="of each of the other runs")
    return parser.parse_args(arguments)


def parts(epochs: int) -> Flat:
    """What the recipe adds to the one it starts from, with what it counts in epochs for runs of another length."""
    whole, base = (flat(read_recipe(name)) for name in (WHOLE, BASE))
    before = whole.pop("epochs")
    own = {name: value for name, value in whole.items() if base.get(name) != value}
    in_epochs = {name: of_epochs(name, own[name], before=before, now=epochs) for name in own.keys() & set(IN_EPOCHS)}
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
