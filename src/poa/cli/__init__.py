"""The command ``poa``: parse, call one function, print."""

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from poa.cli.compare import compare
from poa.cli.evaluate import evaluate
from poa.cli.inspect import embed, pictures
from poa.cli.tasks import detection, finetune, segmentation, transfer
from poa.config import resolve
from poa.config.pretraining import Config, ModelSettings
from poa.config.values import explain, flag
from poa.errors import UserError, reason

# What a command needs is imported when it runs: `poa --help` and a mistyped flag shall not wait for torch.

app = App(
    name="poa",
    help="Pre-train once on your own images, get every size of the model.",
    suppress_keyboard_interrupt=False,
)
evaluate.command(finetune)
evaluate.command(transfer)
evaluate.command(segmentation)
evaluate.command(detection)
app.command(evaluate)
app.command(compare)
app.command(embed)
app.command(pictures)

Flags = Annotated[Config, Parameter(name="*", consume_multiple=True, negative_iterable=())]
ModelFlags = Annotated[ModelSettings, Parameter(name="model", consume_multiple=True, negative_iterable=())]
Switch = Annotated[bool, Parameter(negative=(), show_default=False)]
Names = Annotated[list[str], Parameter(consume_multiple=True, negative=())]

WITH_MODEL_SETTINGS = ("pretrain", "sizes", "compare")
"""Commands in which --model is short for --model.name: cyclopts takes either a value or further settings."""


def _console() -> Console:
    return Console(stderr=True)


@app.command
def pretrain(
    *,
    flags: Flags = Config(),  # noqa: B008  # frozen
    recipe: str | None = None,
    config: Path | None = None,
    resume: Switch = False,
    dry_run: Switch = False,
    print_config: Switch = False,
) -> None:
    """Pre-train an elastic network on a folder of images.

    Such as: poa pretrain --data IMAGES --out runs/mine --recipe vit-small-data --dry-run

    Args:
        flags: Settings; they win over --config, which wins over --recipe.
        recipe: Start from a shipped recipe; `poa recipes` lists them.
        config: Start from a YAML file of settings; flags win over it, and it wins over --recipe.
        resume: Go on with the run in --out, exactly where its last checkpoint left it, with its own settings.
        dry_run: Build everything, train two steps, say what the run will take, and write nothing.
        print_config: Print all settings as they would be, and end.
    """
    given = flags.model_dump(exclude_unset=True)
    resolved = resolve.resolve(given, recipe=recipe, file=config, resume=resume)
    if print_config:
        print(resolve.to_yaml(resolved), end="")
        return
    from poa.pretraining import dry_run as forecast
    from poa.pretraining import launch

    if dry_run:
        print("\n".join(forecast.dry_run(resolved, resume=resume, console=_console()).lines()))
    else:
        launch.train(resolved, resume=resume)


@app.command
def sizes(
    run: Path | None = None,
    /,
    *,
    model: ModelFlags = ModelSettings(),  # noqa: B008  # frozen
    recipe: str | None = None,
    image_size: int | None = None,
    out: Path | None = None,
) -> None:
    """List every size of a run, or of a network before any run: parameters, FLOPs, how often it is trained, scores.

    Such as: poa sizes --model swin_base_patch4_window7_224

    Args:
        run: Folder of a run; leave it out to look at --model or --recipe.
        model: The network, as in `poa pretrain`.
        recipe: The network of a shipped recipe; --model flags win over it.
        image_size: Side of the images in pixels, for FLOPs.
        out: Also write the table to this .csv or .json file.
    """
    given = model.model_dump(exclude_unset=True)
    asked = bool(given or recipe or image_size)
    if (run is None) != asked:
        raise UserError(
            "Say whose sizes: either the folder of a run, or --model NAME (or --recipe NAME) before any run."
        )
    from poa.evaluation import evaluate as scoring
    from poa.models.registry import family_of
    from poa.models.run import load
    from poa.plots.tables import fitting, score_names, size_table, write

    if run is None:
        views = {"num_locals": 0} | ({} if image_size is None else {"global_size": image_size})
        family = family_of(resolve.resolve({"model": given, "views": views}, recipe=recipe))
        rows = scoring.rows_of(family, {})
    else:
        rows = scoring.rows(load(run))
    if out is not None:
        write(rows, out)
    shown = fitting(rows, scoring.headline(rows))
    Console().print(size_table(rows, scores=shown))
    if hidden := len(score_names(rows)) - len(shown):
        print(f"{hidden} more scores: {'--out FILE.csv or FILE.json writes all' if out is None else f'see {out}'}.")


@app.command
def extract(run: Path, /, *, size: Names, out: Path | None = None) -> None:
    """Write sizes as plain timm models, each checked against the network that was trained.

    Args:
        run: Folder of the run.
        size: One or more sizes, such as 384x12.
        out: Folder to write (one size); RUN/models/SIZE by default.
    """
    from poa.models.run import load

    loaded = load(run)
    if out is not None and len(size) > 1:
        raise UserError(f"--out takes one size, got {len(size)}. Leave it out to write each to {run}/models/SIZE.")
    for name in size:
        folder = loaded.extract(name, out=out)
        print(f'{folder}: timm.create_model("local-dir:{folder}", pretrained=True)')


@app.command
def gradients(run: Path, /, *, out: Path | None = None) -> None:
    """Draw how strongly each width pulls at the shared weights, of a run with --monitor.gradients-every.

    Args:
        run: Folder of the run.
        out: PNG file to write; RUN/gradients.png by default.
    """
    from poa.models.run import load
    from poa.plots.gradients import gradient_plot
    from poa.pretraining.logger import read_metrics

    paths = load(run).paths
    picture = out or paths.folder / "gradients.png"
    gradient_plot(read_metrics(paths.metrics), out=picture)
    print(picture)


@app.command(name="demo")
def run_demo(*, model: str = "vit", method: str = "poa", out: Path | None = None, epochs: int | None = None) -> None:
    """Do the main job on embedded handwritten digits: pre-train, score every size, extract three. Takes minutes.

    Args:
        model: Family of the network: vit, swin, resnet or convnext.
        method: poa, or a slimmable ResNet by slimclr-mocov2, slimclr-mocov3 or slimclr-simclr.
        out: Folder of the run, runs/demo by default (runs/demo-swin with another family); an interrupted demo goes on.
        epochs: Passes over the digits; fewer give a quicker look and lower scores.
    """
    from poa.experiments.demo import demo

    marks = [mark for mark, usual in ((model, "vit"), (method, "poa")) if mark != usual]
    folder = out or Path("runs", "-".join(["demo", *marks]))
    demo(folder, console=Console(), model=model, method=method, epochs=epochs)


@app.command
def recipes() -> None:
    """List the shipped recipes and what they are for."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    for name in resolve.recipes():
        table.add_row(name, resolve.recipe_summary(name))
    Console(highlight=False, markup=False).print(table)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a user's mistake ends it with one sentence and status 2.

    Args:
        arguments: Words after ``poa``; those of the process by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and words[0] in WITH_MODEL_SETTINGS:
        words = ["--model.name" + word[len("--model") :] if word.split("=")[0] == "--model" else word for word in words]
    try:
        app(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _fail(_sentence(error))
    except (UserError, OSError) as error:
        _fail(reason(error))
    except KeyboardInterrupt:
        _fail("Interrupted.", status=130)


def _sentence(error: CycloptsError) -> str:
    cause: Any = error.__cause__
    if isinstance(cause, ValidationError):
        below = error.argument.name.strip("-*") if error.argument else ""
        return explain(cause, Config, called=lambda keys: flag([below, *keys] if below else keys))
    if isinstance(error, UnusedCliTokensError):
        words = " ".join(error.unused_tokens or ())
        return f"{words!r} belongs to no option. Options are written --name VALUE; see --help."
    return f"{str(error).strip()} See --help."


def _fail(message: str, *, status: int = 2) -> None:
    print(f"poa: {message}", file=sys.stderr)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
