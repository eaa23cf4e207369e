"""A race: k-NN of the smallest, middle and largest size against CPU minutes of training.

One run for each entry, budget and seed, on one thread, with a schedule made for the budget: as many epochs as fit by
the measured cost of a step. Training counts with all that it does (loading, augmentation, steps, checkpoints); scoring
does not count. Entries:

- `poa-vit`, `poa-resnet`, `poa-convnext`, `poa-swin`, `slimclr`: recipes for small data, one run for all sizes;
- `simclr`, `mocov2`: our contrastive losses on plain networks, slimmable ResNets of one width with BatchNorm;
- `lightly-simclr`: lightly's loss and head on the same plain networks;
- `lightly-dino`: lightly's loss and head on the three sizes of the recipe `--like`, as plain networks.

Plain networks have as many parameters as the smallest, middle and largest size of the recipe `--like`, as nearly as
their widths allow. They are trained one by one, and **each has the whole budget for itself**, while one run of all
sizes has it once: that favours the rivals. lightly is optional (`pip install lightly`).

    python benchmarks/race.py --train cifar10.zip/train --test cifar10.zip/test --out runs/race

What is there already is not done again: results by result, and our own runs from their last checkpoint. A result
belongs to the settings it was made with, so a recipe that has changed runs anew beside the old result.
"""

import argparse
import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from matplotlib.figure import Figure

import poa
import race_rivals
from budget import ALONE, PLACES, pretrain_within, sizes_of
from measure import machine, write
from poa import distributed
from poa.config.resolve import learned, resolve
from poa.elastic.space import Size
from poa.errors import UserError
from poa.evaluation.cost import parameters
from poa.experiments.runs import OverSeeds
from poa.families.base import Family
from poa.models.registry import family_of, only
from poa.plots.figure import legend, save, style

ELASTIC = {
    "poa-vit": "vit-small-data",
    "poa-resnet": "resnet-small-data",
    "poa-convnext": "convnext-small-data",
    "poa-swin": "swin-small-data",
    "slimclr": "slimclr-small-data",
}
"""Recipes with all sizes in one run."""
CONTRASTIVE = "slimclr-small-data"
"""Recipe of plain networks."""
PLAIN: Mapping[str, Mapping[str, Any]] = {
    "simclr": {"method": "slimclr-simclr"},
    "mocov2": {"method": "slimclr-mocov2", "batch_size": 64},
    "lightly-simclr": {"method": "slimclr-simclr"},
}
ENTRIES = (*ELASTIC, *PLAIN, "lightly-dino")
COLOURS = ("#1f5fa8", "#c2571a", "#5aa469", "#8e5ea2", "#17a2b8", "#b03060", "#8a6d3b", "#5b5b5b", "#d4a017")
WIDTHS, BLOCKS = range(8, 65, 8), ((1, 1, 1, 1), (1, 1, 2, 1), (2, 2, 2, 2))
"""Of plain networks."""


@dataclass(frozen=True)
class Training:
    """One network to train in a budget of its own: with all sizes, or plain.

    Attributes:
        sizes: Of the network, by their places in the race.
        given: What is laid over the recipe.
        rival: Which of lightly's methods, if one.
    """

    entry: str
    sizes: Mapping[str, Size]
    recipe: str
    given: Mapping[str, Any]
    rival: str | None = None


Row = dict[str, Any]
"""A result, as it is in its file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, score, print and draw; returns the exit status."""
    given = parse(arguments)
    out = Path(given.out)
    entries = given.entries or [name for name in ENTRIES if is_possible(name)]
    rows: list[Row] = []
    try:
        trainings = [training for entry in entries for training in trainings_of(entry, given.like)]
        for minutes in sorted(given.minutes):
            for seed in range(given.seeds):
                for training in trainings:
                    rows.append(result(training, minutes, seed, given))
                    write(out / "race.md", table(rows))
                draw(rows, out / "race.png")
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{machine(distributed.this_device('cpu'))}\n\n{table(rows)}\n\n{out / 'race.png'}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Who races, on what, for how long."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="labelled images; training does not look at labels")
    parser.add_argument("--test", required=True, help="labelled images")
    parser.add_argument("--out", required=True, help="folder of runs and results")
    parser.add_argument("--images", type=int, default=5000, help="of the training images, to train on and for k-NN")
    parser.add_argument("--minutes", type=float, nargs="+", default=[5, 10, 20, 60], help="budgets of CPU time")
    parser.add_argument("--entries", nargs="+", choices=ENTRIES, help="all that are possible by default")
    parser.add_argument("--like", default="vit-small-data", help="recipe whose sizes plain networks are as large as")
    parser.add_argument("--seeds", type=int, default=1, help="how many runs of each")
    return parser.parse_args(arguments)


def is_possible(entry: str) -> bool:
    """Whether the packages of an entry are installed."""
    return not entry.startswith("lightly") or race_rivals.is_installed()


# ---- who races -------------------------------------------------------------------------------------------------------


def trainings_of(entry: str, like: str) -> list[Training]:
    """The networks of an entry: one with all sizes, or three plain ones.

    Raises:
        UserError: lightly is missing.
    """
    if not is_possible(entry):
        raise UserError(f"{entry} needs the package lightly: pip install lightly. Or leave it out of --entries.")
    if entry in ELASTIC:
        return [Training(entry, sizes_of(ELASTIC[entry]), ELASTIC[entry], {})]
    rival = entry.partition("-")[2] or None
    if entry in PLAIN:
        plain = {place: plain_like(num_parameters(like, size)) for place, size in sizes_of(like).items()}
        return [
            Training(entry, {place: size}, CONTRASTIVE, {**PLAIN[entry], "model": alone(size)}, rival)
            for place, size in plain.items()
        ]
    config = resolve(recipe=like)
    models = {place: only(config, size).model.model_dump() for place, size in sizes_of(like).items()}
    return [
        Training(entry, {place: size}, like, {"model": {**models[place], **smallest_as(size)}}, rival)
        for place, size in sizes_of(like).items()
    ]


def smallest_as(size: Size) -> dict[str, Any]:
    """Settings of a search space of nothing but its intact network."""
    return {"widths": (size.width,), "depth_min": size.depths}


def alone(size: Size) -> dict[str, Any]:
    """Settings of a slimmable ResNet of one width."""
    return {"widths": (size.width,), "depth_min": size.depths, "depth_max": size.depths}


def count(family: Family, size: Size) -> int:
    """Parameters of a size."""
    with torch.device("meta"):
        return parameters(family.build(size))


@cache
def num_parameters(recipe: str, size: Size) -> int:
    """Of a size."""
    return count(family_of(resolve(recipe=recipe)), size)


@cache
def plain_networks() -> Mapping[Size, int]:
    """Plain ResNets with their numbers of parameters."""
    found: dict[Size, int] = {}
    for blocks in BLOCKS:
        settings = {**alone(Size(WIDTHS[-1], blocks)), "widths": tuple(WIDTHS)}
        family = family_of(resolve({"model": settings}, recipe=CONTRASTIVE))
        found |= {size: count(family, size) for size in family.space.sizes}
    return found


def plain_like(wanted: int) -> Size:
    """The plain ResNet whose number of parameters is nearest, in proportion."""
    return min(plain_networks(), key=lambda size: abs(math.log(plain_networks()[size] / wanted)))


# ---- results ---------------------------------------------------------------------------------------------------------


def result(training: Training, minutes: float, seed: int, given: argparse.Namespace) -> Row:
    """The result of a training, which is trained and scored if it is not known."""
    place = "" if len(training.sizes) > 1 else f"-{next(iter(training.sizes))}"
    settings = {**training.given, **ALONE, "data": given.train, "limit": given.images, "seed": seed}
    config = resolve(settings, recipe=training.recipe)
    name = f"{training.entry}{place}-{minutes:g}min-seed{seed}-{digest(learned(config), given.train, given.test)}"
    file, folder = Path(given.out, "results", f"{name}.json"), Path(given.out, "runs", name)
    if file.exists():
        row: Row = json.loads(file.read_text(encoding="utf-8"))
        return row
    print(f"── {name}", flush=True)
    labelled = {"train": given.train, "test": given.test, "limit": given.images}
    if training.rival is None:
        run, spent = pretrain_within(minutes, recipe=training.recipe, given={**settings, "out": str(folder)})
        named = {place: str(size) for place, size in training.sizes.items()}
        scores = poa.evaluate_knn(run, sizes=list(dict.fromkeys(named.values())), **labelled)
    else:
        spent = race_rivals.train_rival(training.rival, config, minutes, folder)
        named = dict.fromkeys(training.sizes, folder.name)
        scores = poa.evaluate_knn(folder, out=folder / "eval", **labelled)
    family = family_of(config)
    row = {
        "entry": training.entry,
        "budget": minutes,
        "seed": seed,
        "epochs": spent.epochs,
        "minutes": spent.minutes,
        "images": given.images,
        "machine": machine(distributed.this_device("cpu")),
        "settings": learned(config),
        "sizes": {
            place: {
                "size": str(size),
                "parameters": count(family, size),
                "knn": scores[named[place]]["top1@20"],
            }
            for place, size in training.sizes.items()
        },
    }
    write(file, json.dumps(row, indent=1, default=str))
    return row


def digest(*settings: Any) -> str:
    """A short name for settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]


# ---- table and picture -----------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """A line for each entry and budget: k-NN in percent, the mean over seeds with the standard deviation."""
    lines = [
        f"| entry | minutes | epochs | {' | '.join(PLACES)} | parameters |",
        "|---|---|---|" + "---|" * (len(PLACES) + 1),
    ]
    for entry, budget in dict.fromkeys((row["entry"], row["budget"]) for row in rows):
        found = [row for row in rows if (row["entry"], row["budget"]) == (entry, budget)]
        epochs = ", ".join(dict.fromkeys(str(row["epochs"]) for row in found))
        spent = fmean(row["minutes"] for row in found)
        cells = [_cell([row["sizes"][place]["knn"] for row in found if place in row["sizes"]]) for place in PLACES]
        sizes = {place: size["parameters"] for row in found for place, size in row["sizes"].items()}
        millions = ", ".join(f"{sizes[place] / 1e6:.2f} M" for place in PLACES if place in sizes)
        lines.append(f"| {entry} | {budget:g} ({spent:.1f}) | {epochs} | {' | '.join(cells)} | {millions} |")
    return "\n".join(lines)


def _cell(scores: Sequence[float]) -> str:
    if not scores:
        return ""
    mean, spread, _, _ = OverSeeds.of(scores)
    return f"{mean:.1f}" if spread is None else f"{mean:.1f} ± {spread:.1f}"


def draw(rows: Sequence[Row], out: Path) -> None:
    """A panel for each size: k-NN over CPU minutes, the mean over seeds with all of them as dots."""
    figure = Figure(figsize=(12.5, 4.6), layout="constrained")
    budgets = sorted({row["budget"] for row in rows})
    for number, (axes, place) in enumerate(zip(figure.subplots(1, len(PLACES), sharey=True), PLACES, strict=True)):
        for entry in dict.fromkeys(row["entry"] for row in rows):
            found = [row for row in rows if row["entry"] == entry and place in row["sizes"]]
            of_budget = {budget: [row for row in found if row["budget"] == budget] for budget in budgets}
            points = [
                (fmean(row["minutes"] for row in same), fmean(row["sizes"][place]["knn"] for row in same))
                for same in of_budget.values()
                if same
            ]
            look = {"color": COLOURS[ENTRIES.index(entry)], "linestyle": "-" if entry in ELASTIC else "--"}
            label = entry if number == 0 else "_"
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label, **look) if points else None
            dots = [(row["minutes"], row["sizes"][place]["knn"]) for row in found]
            if len(dots) > len(points):
                axes.plot(*zip(*dots, strict=True), ".", markersize=3, alpha=0.6, color=look["color"])
        axes.set_xscale("log")
        axes.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
        axes.minorticks_off()
        style(axes, title=f"{place} size", x="CPU minutes", y="k-NN (20) in %" if number == 0 else "")
    names = list(dict.fromkeys(row["entry"] for row in rows))
    legend(figure, columns=min(len(names), 5), labels=names, handles=figure.axes[0].get_legend_handles_labels()[0])
    save(figure, out)


if __name__ == "__main__":
    sys.exit(main())
