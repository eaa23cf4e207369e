"""A step of POA beside plain timm networks and lightly's DINO, and what it costs to ask for more of anything.

All take the same crops, and turns in one process:

- `poa`: a whole training step with augmentation, for all sizes of the step;
- `timm`: the backbones of that step alone, as plain timm models: the teacher there, the students there and back;
- `lightly-dino`: a whole step of lightly's DINO on the intact network, hence of one size. It is optional: `--install`,
  or `pip install lightly`.

From the recipe's settings one after the other is changed: the number of sizes a step, prototypes, local crops, the
batch, the side of the images. Times are of the processor on a CPU, and of the clock on a GPU.

    python benchmarks/beside.py [--recipe vit-small-data] [--batch 16] [--rounds 5] [--install] [--out runs/beside]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import race_rivals
from measure import in_turns, machine
from poa.config import resolve
from poa.config.nested import merge
from poa.config.pretraining import Config
from poa.data.index import open_index
from poa.data.views import RawViews
from poa.plots.figure import legend, save, style
from poa.pretraining.build import Parts, assemble
from poa.pretraining.step import step_batches, train_step, views_of

LIKE_DINO: Mapping[str, Any] = {
    "losses": {"kind": "prototypes", "ibot": 0.3},
    "heads": {"layers": 3},
    "views": {"num_locals": 2, "mask_share": 0.5},
}
"""What all steps have, whatever the recipe: prototypes as DINO, masks as iBOT, and local crops."""
COLOURS = {"poa": "tab:blue", "timm": "tab:gray", "lightly-dino": "tab:orange"}
Axis = tuple[str, Callable[[Any], dict[str, Any]], Sequence[int]]
AXES: dict[str, Axis] = {
    "sizes": ("sizes a step", lambda n: {"elastic_samples": n}, (1, 2, 4)),
    "prototypes": ("prototypes", lambda n: {"heads": {"prototypes": [n]}}, (1024, 8192, 32768)),
    "crops": ("local crops", lambda n: {"views": {"num_locals": n}}, (0, 4, 8)),
    "batch": ("images a step", lambda n: {"batch_size": n}, (8, 16, 32)),
    "side": ("side of global crops in pixels", lambda n: {"views": {"global_size": n}}, (32, 48, 64)),
}
"""What is changed: its name in words, the settings for a value, and values."""


def main() -> None:
    """Measure, print and draw."""
    arguments = parse()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    print(machine(device))
    if arguments.install:
        install(arguments.out / "lightly")
    if not race_rivals.is_installed():
        print("Without lightly, which is not installed: add --install.")
    out = arguments.out / "beside.json"
    rows, drawn = json.loads(out.read_text()) if out.exists() else [], []
    print(f"{'':>32}{''.join(f'{name:>15}' for name in COLOURS)}   poa / timm")
    for axis, value in [(each, value) for each in arguments.axes for value in AXES[each][2]]:
        words, settings, _ = AXES[axis]
        about = {"axis": axis, "value": value, "recipe": arguments.recipe, "batch": arguments.batch}
        row = next((row for row in rows if about.items() <= row.items()), None)
        if row is None:
            config = configure(arguments, settings(value))
            row = about | {"seconds": measured(config, device, rounds=arguments.rounds)}
            rows.append(row)
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(rows, indent=1))
        drawn.append(row)
        taken = row["seconds"]
        cells = "".join(f"{1000 * taken[name]:12.1f} ms" if name in taken else f"{'-':>15}" for name in COLOURS)
        print(f"{words:>24} {value:7,}{cells} {taken['poa'] / taken['timm']:12.2f}", flush=True)
    draw(drawn, arguments.out / "beside.png")
    print(arguments.out / "beside.png")


def install(folder: Path) -> None:
    """Put lightly into a folder of its own and let it be found there, without the packages that only its runs need."""
    words = ["-q", "--no-deps", "--target", str(folder), "lightly==1.6.0", "lightly-utils==0.0.2"]
    if not folder.exists():
        subprocess.run([sys.executable, "-m", "pip", "install", *words], check=True)
    sys.path.append(str(folder))


def parse() -> argparse.Namespace:
    """What to time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="vit-small-data")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, help="of torch on the CPU; torch's own choice by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--install", action="store_true", help="fetch lightly into --out, if it is not there")
    parser.add_argument("--out", type=Path, default=Path("runs/beside"), help="what was measured there is kept")
    return parser.parse_args()


def configure(arguments: argparse.Namespace, changed: Mapping[str, Any]) -> Config:
    """The recipe with heads and crops like DINO's, and one setting changed."""
    given = {"data": "digits", "epochs": 10_000, "elastic_samples": 1, "accumulate": 1, "batch_size": arguments.batch}
    return resolve.resolve(merge({**given, **LIKE_DINO}, changed), recipe=arguments.recipe)


def measured(config: Config, device: torch.device, *, rounds: int) -> dict[str, float]:
    """Seconds of a step of each, as medians."""
    index = open_index(config.data)
    parts = assemble(config, index, device=device)
    first = parts.ibot_start  # with masks, as most of a run
    ((raw,),) = step_batches(parts, index, batch_size=config.batch_size, start_step=first, num_steps=1)
    works = {"poa": lambda number: train_step(parts, first + number, [raw]), "timm": plain(parts, raw, first)}
    if race_rivals.is_installed():
        works["lightly-dino"] = rival(parts, raw, prototypes=sum(config.heads.prototypes))
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    return {k: statistics.median(x) for k, x in in_turns(works, rounds=rounds, device=device, clock=clock).items()}


def plain(parts: Parts, raw: RawViews, first: int) -> Callable[[int], None]:
    """The backbones of a step as timm's models of the same sizes, on crops that are there already."""
    views, family = views_of(parts, raw), parts.family
    networks: dict[str, nn.Module] = {}

    def network(size: Any) -> nn.Module:
        if str(size) not in networks:
            networks[str(size)] = family.build(size).model.to(parts.device)
        return networks[str(size)]

    def run(number: int) -> None:
        with torch.autocast(parts.device.type, dtype=parts.dtype, enabled=parts.dtype != torch.float32):
            with torch.no_grad():
                network(family.space.intact)(views.globals)
            for size in (family.space.intact, *parts.subnets(first + number)):
                outputs = [network(size)(crops) for crops in (views.globals, views.locals) if len(crops)]
                torch.autograd.backward(torch.cat(outputs).float().square().mean())

    return run


def rival(parts: Parts, raw: RawViews, *, prototypes: int) -> Callable[[int], None]:
    """A step of lightly's DINO with a head of as many prototypes, on the intact network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's older weight norm, which lightly has
        learner = race_rivals.DINO(parts.family.build(parts.family.space.intact), parts.views.num_locals, prototypes)
    learner.to(parts.device).train()
    optimizer = learner.optimizer()

    def run(_: int) -> None:
        with torch.autocast(parts.device.type, dtype=parts.dtype, enabled=parts.dtype != torch.float32):
            loss: Tensor = learner(views_of(parts, raw))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        learner.before_update(0.5)
        optimizer.step()
        learner.after_update(0.5)

    return run


def draw(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """A panel for each setting: milliseconds over its values."""
    axes = list(dict.fromkeys(row["axis"] for row in rows))
    figure = Figure(figsize=(3.1 * len(axes), 3.6), layout="constrained")
    for number, (panel, axis) in enumerate(zip(figure.subplots(1, len(axes), squeeze=False)[0], axes, strict=True)):
        for name, colour in COLOURS.items():
            points = [
                (row["value"], 1000 * row["seconds"][name])
                for row in rows
                if row["axis"] == axis and name in row["seconds"]
            ]
            panel.plot(
                *zip(*points, strict=True), marker="o", markersize=4, label=name, color=colour
            ) if points else None
        panel.set_ylim(bottom=0)
        panel.set_xticks(AXES[axis][2], [f"{value:,}" for value in AXES[axis][2]])
        style(panel, title=AXES[axis][0], x="", y="" if number else "milliseconds of a step")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    legend(figure, columns=3, labels=labels, handles=handles)
    save(figure, out)


if __name__ == "__main__":
    main()
