"""The whole workflow, small: one run on embedded real data, every size scored, three sizes extracted."""

from pathlib import Path

import timm
import torch
from rich.console import Console

from poa.config import resolve
from poa.config.pretraining import Config
from poa.data.index import open_index
from poa.data.sampler import steps_per_epoch
from poa.errors import UserError, counted, nearest
from poa.evaluation import evaluate
from poa.evaluation.headings import heading_of_run
from poa.evaluation.knn import Knn
from poa.evaluation.rows import scored_rows
from poa.evaluation.sweep import SweepOptions
from poa.experiments.plan import stopped
from poa.models.opening import is_begun
from poa.models.run import Run
from poa.models.source import run_source
from poa.plots.sizes import accuracy_plot
from poa.plots.tables import SizeRow, size_table
from poa.pretraining.process import train
from poa.text import python_literal, shell_word, tell

TRAIN, TEST = "digits/train", "digits/test"
SCORE = "top1@20"
FIRST = "vit"
"""The family whose recipe is called ``demo``; that of another is ``demo-NAME``."""


def demo(out: Path, *, console: Console, model: str = FIRST, method: str = "poa", epochs: int | None = None) -> Run:
    """Pre-train an elastic network on handwritten digits, then evaluate and extract sizes; an interrupted demo resumes.

    ``model`` is the family of the network; the SlimCLR methods have a network of their own.
    """
    recipes = {name.removeprefix("demo-"): name for name in resolve.recipes() if name.startswith("demo-")}
    recipes |= {FIRST: "demo"}
    wanted = model if method == "poa" else method
    if wanted not in recipes:
        raise UserError(f"There is no demo of {wanted!r}. {nearest(wanted, recipes)}")
    given = {"out": str(out)} if epochs is None else {"out": str(out), "epochs": epochs}
    resume = is_begun(out)
    console.rule("1. One pre-training run, no labels", align="left")
    run = train(resolve.resolve(given, recipe=recipes[wanted], resume=resume), resume=resume, console=console)
    if run.step < _num_steps(run.config):
        raise stopped(run.folder)
    console.rule("2. Every size, scored by k-NN on held-out digits", align="left")
    trained, untrained = score(run, console)
    console.print(size_table(trained, title="trained"))
    tell(console, "±: half of the 95 % interval over test images")
    console.rule("3. Three sizes as plain timm models", align="left")
    for size in (run.space.sizes[0], run.space.sizes[len(run.space.sizes) // 2], run.space.sizes[-1]):
        folder = run.paths.models / str(size)
        if not folder.exists():
            run.extract(size)
        extracted = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.inference_mode():
            features = extracted(torch.zeros(1, 3, run.config.views.global_size, run.config.views.global_size))
        model_name = python_literal(f"local-dir:{folder}")
        tell(console, f"timm.create_model({model_name}, pretrained=True)  -> features {tuple(features.shape)}")
    picture = out / "accuracy.png"
    heading = f"{heading_of_run(run)}: all sizes, scored on {TEST}"
    accuracy_plot(trained, out=picture, title=heading, baseline=untrained, score=SCORE)
    console.rule("4. Results", align="left")
    gains = [row.scores[SCORE] - twin.scores[SCORE] for row, twin in zip(trained, untrained, strict=True)]
    tell(
        console,
        f"{counted(len(trained), 'size')}, k-NN {trained[0].scores[SCORE]:.1f} % (smallest) to "
        f"{trained[-1].scores[SCORE]:.1f} % (largest); {min(gains):+.1f} to {max(gains):+.1f} points compared with the "
        f"same networks untrained. Picture: {picture}",
        soft_wrap=False,
    )
    named = "" if model == FIRST else f" --model {model}"
    for line in next_commands(run, flags=named if method == "poa" else f" --method {method}"):
        tell(console, line)
    return run


def _num_steps(config: Config) -> int:
    num_images = len(open_index(config.data, limit=config.limit))
    return config.epochs * steps_per_epoch(num_images, config.batch_size)


def score(run: Run, console: Console) -> tuple[list[SizeRow], list[SizeRow]]:
    """Rows of all sizes with the scores of the trained and of the untrained networks."""
    rows = []
    for branch in ("teacher", "untrained"):
        source = run_source(run, branch=branch)
        found = evaluate.evaluate(source, Knn(), train=TRAIN, test=TEST, options=SweepOptions(console=console))
        scores = {size: {SCORE: of_size[SCORE]} for size, of_size in found.scores.items()}
        rows.append(scored_rows(source, scores, intervals=found.intervals))
    return rows[0], rows[1]


def next_commands(run: Run, *, flags: str) -> list[str]:
    """Commands to try next, the last one with flags for the user's own images."""
    size, folder = run.space.sizes[len(run.space.sizes) // 2], shell_word(str(run.folder))
    return [
        "Next:",
        f"  poa report {folder}",
        f"  poa choose {folder} --max-ms 2",
        f"  poa extract {folder} --size {size} --out model-{size}",
        f"  poa plan --data YOUR_IMAGES --hours 2{flags}",
    ]
