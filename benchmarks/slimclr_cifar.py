"""What SlimCLR's three techniques are worth on small images: all on, all off, and every width alone.

Trains one slimmable network with slow start, distillation and weights of widths, one with the last two alone (the
recipe), one with none of them, and a network of each width by itself, all for the same steps; scores every width by
k-NN and linear probes; prints a table and draws it beside the ratios of gradients. What is there already in the folder
is not done again.

    python benchmarks/slimclr_cifar.py --train cifar10.zip/train --test cifar10.zip/test --out runs/slim-cifar

The defaults take about an hour on one CPU core. On a GPU, all images and the usual number of epochs:
`--images 50000 --epochs 100 --batch-size 512`.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

import poa
from measure import machine
from poa import distributed
from poa.config.resolve import resolve
from poa.models.registry import family_of
from poa.models.run import Paths
from poa.training.metrics import read_metrics

RECIPE = "slimclr-small-data"
LOOK = {"monitor": {"gradients_every": 10}}
OFF = {"slim": {"distillation": None, "weighting": "even"}}
SCORES = {"knn": "top1@20", "linear": "top1"}
TOGETHER = {"linear-switchable": "top1", "linear-slimmable": "top1"}
"""Of networks that share their weights."""
Table = dict[str, dict[str, dict[str, float]]]
"""Scores by way of training, protocol and size."""
COLOURS = {"on": "#1f5fa8", "at-once": "#5aa469", "off": "#c2571a", "alone": "#5b5b5b", "untrained": "#b0b0b0"}


def main() -> None:
    """Train, score, print and draw."""
    arguments = parse()
    widths = [size.width for size in family_of(resolve(recipe=RECIPE)).space.sizes[::-1]]
    out = Path(arguments.out)
    slow = {"slim": {"slow_start_epochs": arguments.epochs / 2}}
    ways: dict[str, dict[str, Any]] = {"on": LOOK | slow, "at-once": LOOK, "off": LOOK | OFF}
    ways |= {f"alone{width}": {"model": {"widths": [width]}} for width in widths}
    for name, over in ways.items():
        train(out / name, over, arguments)
    found: Table = {name: score(out / name, SCORES | TOGETHER, arguments) for name in ("on", "at-once", "off")}
    found["alone"] = {protocol: {} for protocol in SCORES}
    for width in widths:
        for protocol, scores in score(out / f"alone{width}", SCORES, arguments).items():
            found["alone"][protocol] |= scores
    found["untrained"] = score(out / "on", {"knn": SCORES["knn"]}, arguments, branch="untrained")
    print(machine(distributed.this_device()))
    print_table(found)
    draw(
        found, {name: read_metrics(Paths(out / name).metrics) for name in ("on", "at-once", "off")}, out / "slimclr.png"
    )
    print(out / "slimclr.png")


def parse() -> argparse.Namespace:
    """What to train on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="labelled images; pre-training does not look at labels")
    parser.add_argument("--test", required=True, help="labelled images")
    parser.add_argument("--out", required=True, help="folder of all runs")
    parser.add_argument("--images", type=int, default=10000, help="of the training images")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=128)
    return parser.parse_args()


def train(folder: Path, over: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """Train one network, or go on with it."""
    poa.pretrain(
        recipe=RECIPE,
        data=arguments.train,
        limit=arguments.images,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        out=folder,
        resume=Paths(folder).config.exists(),
        **over,
    )


def score(
    folder: Path, protocols: Mapping[str, str], arguments: argparse.Namespace, **options: Any
) -> dict[str, dict[str, float]]:
    """Scores of every width by protocol, in percent."""
    found = {}
    for protocol, name in protocols.items():
        given = {"train": arguments.train, "test": arguments.test, "limit": arguments.images}
        scores = poa.evaluate(folder, protocol, **given, **options)
        found[protocol] = {size: of_size[name] for size, of_size in scores.items()}
    return found


def print_table(found: Table) -> None:
    """A line for each way of training and protocol."""
    sizes = list(found["on"]["knn"])
    print(f"| way | protocol | {' | '.join(sizes)} |")
    print("|---|---|" + "---|" * len(sizes))
    for way, protocols in found.items():
        for protocol, scores in protocols.items():
            print(f"| {way} | {protocol} | {' | '.join(f'{scores[size]:.1f}' for size in sizes)} |")


def draw(found: Table, metrics: Mapping[str, list[dict[str, Any]]], out: Path) -> None:
    """Accuracy over width, and how gradients of the narrowest width weigh against the rest."""
    figure = Figure(figsize=(12.5, 3.8), layout="constrained")
    knn, linear, gradients = figure.subplots(1, 3)
    for axes, protocol, title in ((knn, "knn", "k-NN top-1 in %"), (linear, "linear", "linear probe top-1 in %")):
        for way, protocols in found.items():
            if protocol in protocols:
                scores = protocols[protocol]
                widths = [int(size.partition("x")[0]) for size in scores]
                axes.plot(widths, list(scores.values()), marker="o", color=COLOURS[way], label=way)
        axes.set_xscale("log", base=2)
        axes.set_xticks(widths, map(str, widths))
        dress(axes, title, "width")
    for way, rows in metrics.items():
        looked = [row for row in rows if "gradient_first" in row]
        narrowest = [name for name in looked[0] if name.startswith("gradient_rest/")][-1]
        steps, ratios = [row["step"] for row in looked], [row[narrowest] for row in looked]
        gradients.plot(steps, ratios, color=COLOURS[way], linewidth=1.0)
    gradients.axhline(1.0, color="#222222", linewidth=0.8, linestyle=":")
    dress(gradients, f"gradient: the other weights / those of {narrowest.rpartition('/')[2]}", "step")
    figure.legend(*knn.get_legend_handles_labels(), loc="outside lower left", ncols=5, frameon=False)
    figure.savefig(out, dpi=150)


def dress(axes: Axes, title: str, below: str) -> None:
    """Title, axis and grid."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(below)
    axes.grid(axis="y", color="#e9e9e9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main()
