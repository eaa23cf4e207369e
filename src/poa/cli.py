"""The command ``poa``: parse, call one function, print."""

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter, UnusedCliTokensError
from pydantic import ValidationError
from rich.console import Console

from poa import settings
from poa.config import Config
from poa.errors import UserError, reason

# What a command needs is imported when it runs: `poa --help` and a mistyped flag shall not wait for torch.

app = App(
    name="poa",
    help="Pre-train once on your own images, get every size of the model.",
    suppress_keyboard_interrupt=False,
)
evaluate = App(name="evaluate", help="Score sizes of a run on labelled images.")
app.command(evaluate)

Flags = Annotated[Config, Parameter(name="*", consume_multiple=True, negative_iterable=())]
Switch = Annotated[bool, Parameter(negative=(), show_default=False)]
Names = Annotated[list[str], Parameter(consume_multiple=True, negative=())]
Numbers = Annotated[list[int] | None, Parameter(consume_multiple=True, negative=())]

_SHORT = {"--model": "--model.name"}


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
    resolved = settings.resolve(given, recipe=recipe, file=config, resume=resume)
    if print_config:
        print(settings.to_yaml(resolved), end="")
        return
    from poa import dry_run as forecast
    from poa import launch

    if dry_run:
        print("\n".join(forecast.dry_run(resolved, console=_console()).lines()))
    else:
        launch.train(resolved, resume=resume)


@app.command
def sizes(run: Path, /, *, out: Path | None = None) -> None:
    """List every size of a run: parameters, FLOPs, how often it was trained, scores so far.

    Args:
        run: Folder of the run.
        out: Also write the table to this .csv or .json file.
    """
    from poa import scoring
    from poa.report.tables import size_table, write
    from poa.run import load

    rows = scoring.rows(load(run))
    if out is not None:
        write(rows, out)
    Console().print(size_table(rows, scores=scoring.headline(rows)))


@evaluate.command
def knn(
    run: Path,
    /,
    *,
    train: str,
    test: str,
    sizes: Names = ["all"],  # noqa: B006  # never changed
    branch: Literal["teacher", "untrained"] = "teacher",
    name: str | None = None,
    k: Numbers = None,
    limit: int | None = None,
    workers: int = 0,
    overwrite: Switch = False,
) -> None:
    """Score sizes by weighted k-nearest neighbours on frozen features.

    Args:
        run: Folder of the run.
        train: Labelled images that vote: a folder of class folders, a CSV list, an archive.
        test: Labelled images that are classified.
        sizes: `all`, or names such as 384x12.
        branch: The trained teacher, or untrained networks of the same sizes to compare with.
        name: Folder of the results inside RUN/eval; `knn` (or `untrained`) by default.
        k: Numbers of neighbours; 10, 20, 100 and 200 by default.
        limit: Let only a class-balanced part of the training images vote.
        workers: Processes that decode images.
        overwrite: Forget earlier results of that name.
    """
    from poa import scoring
    from poa.report.tables import size_table
    from poa.run import load

    loaded = load(run)
    scores = scoring.evaluate_knn(
        loaded,
        train=train,
        test=test,
        sizes=sizes,
        branch=branch,
        name=name,
        ks=None if k is None else tuple(k),
        limit=limit,
        workers=workers,
        overwrite=overwrite,
        console=_console(),
    )
    chosen = [row for row in scoring.with_scores(loaded, scores) if row.scores]
    Console().print(size_table(chosen))


@app.command
def extract(run: Path, /, *, size: Names, out: Path | None = None) -> None:
    """Write sizes as plain timm models, each checked against the network that was trained.

    Args:
        run: Folder of the run.
        size: One or more sizes, such as 384x12.
        out: Folder to write (one size); RUN/models/SIZE by default.
    """
    from poa.run import load

    loaded = load(run)
    if out is not None and len(size) > 1:
        raise UserError(f"--out takes one size, got {len(size)}. Leave it out to write each to {run}/models/SIZE.")
    for name in size:
        folder = loaded.extract(name, out=out)
        print(f'{folder}: timm.create_model("local-dir:{folder}", pretrained=True)')


@app.command(name="demo")
def run_demo(*, out: Path = Path("runs/demo"), epochs: int | None = None) -> None:
    """Do the main job on embedded handwritten digits: pre-train, score every size, extract three. Takes minutes.

    Args:
        out: Folder of the run; an interrupted demo goes on.
        epochs: Passes over the digits; fewer give a quicker look and lower scores.
    """
    from poa.demo import demo

    demo(out, console=Console(), epochs=epochs)


@app.command
def recipes() -> None:
    """List the shipped recipes."""
    for name in settings.recipes():
        print(name)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a user's mistake ends it with one sentence and status 2.

    Args:
        arguments: Words after ``poa``; those of the process by default.
    """
    words = [_SHORT.get(word, word) for word in (sys.argv[1:] if arguments is None else arguments)]
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
        return settings.explain(cause)
    if isinstance(error, UnusedCliTokensError):
        words = " ".join(error.unused_tokens or ())
        return f"{words!r} belongs to no option. Options are written --name VALUE; see --help."
    return f"{str(error).strip()} See --help."


def _fail(message: str, *, status: int = 2) -> None:
    print(f"poa: {message}", file=sys.stderr)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
