"""The command ``poa``: parse, call one function, print."""

import atexit
import gc
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import docstring_parser
from cyclopts import App, CycloptsError, UnknownOptionError, UnusedCliTokensError
from pydantic import ValidationError

from poa import __version__
from poa.cli import choose, compare, completion, data, evaluate, inspect, plan, pretrain, ship, supervised, tasks
from poa.config.pretraining import Config
from poa.config.values import explain, flag, meant
from poa.errors import UserError, reason
from poa.machine import launchers
from poa.text import make_printable, one_line, shown_warnings

# What a command needs is imported when it runs: `poa --help` and a mistyped flag shall not wait for torch. And what
# cyclopts finds in the source of a class is kept: for each section it would read pydantic's base class again.
docstring_parser.parse_from_object = cache(docstring_parser.parse_from_object)


def _versions() -> str:
    from poa.machine.environment import versions

    return versions(__version__)


app = App(
    name="poa",
    help="Pre-train once on your own images, get every size of the model.",
    version=_versions,
    version_format="plaintext",
    suppress_keyboard_interrupt=False,
)
TRAININGS: tuple[Callable[..., None], ...] = (tasks.finetune, tasks.transfer, tasks.segmentation, tasks.detection)
COMMANDS: tuple[Callable[..., None], ...] = (
    plan.plan,
    pretrain.pretrain,
    pretrain.sizes,
    pretrain.extract,
    ship.export,
    pretrain.polish,
    inspect.gradients,
    pretrain.demo,
    pretrain.recipes,
    compare.compare,
    supervised.finetune,
    supervised.segment,
    supervised.detect,
    supervised.predict,
    choose.measure,
    choose.choose,
    data.doctor,
    inspect.embed,
    inspect.pictures,
    inspect.report,
)
for command in TRAININGS:
    evaluate.evaluate.command(command)
for command in COMMANDS:
    app.command(command)
app.command(evaluate.evaluate)
app.command(completion.install_completion, name="--install-completion")

WITH_MODEL_SETTINGS = ("plan", "pretrain", "sizes", "extract", "compare")
"""Commands in which --model is short for --model.name: cyclopts takes either a value or further settings."""

IN_ONE_PROCESS = {"extract", "export", "demo", "compare", "gradients", "predict", "measure", "choose", "doctor"}
IN_ONE_PROCESS |= {"embed", "pictures", "report"}
"""Commands that write files and do not share their work among the processes of a launcher."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a user's mistake ends it with one sentence and status 2.

    Args:
        arguments: Words after ``poa``; those of the process by default.
    """
    make_printable()
    if arguments is None:
        _seldom_go_through_modules()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        _check_processes(words)
        with shown_warnings():
            app(in_full(words), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        _fail(_sentence(error))
    except (UserError, OSError) as error:
        _fail(reason(error))
    except KeyboardInterrupt:
        _fail("Interrupted.", status=130)


def _check_processes(words: Sequence[str]) -> None:
    """Refuse to do the same in several processes, which would write the same files."""
    found = launchers.place() if words and words[0] in IN_ONE_PROCESS else None
    if found is not None and found.num_processes > 1:
        raise UserError(
            f"poa {words[0]} runs in one process, and a launcher says that this is one of {found.num_processes}. Start "
            "it without torchrun or srun; in a shell that has their variables, with: env -u RANK -u WORLD_SIZE poa ..."
        )


def _seldom_go_through_modules() -> None:
    """Keep the garbage collector from the million objects of torch and timm, while they are imported and at the end.

    It takes a third of the time of a short command. What does not live long is collected as before.
    """
    gc.set_threshold(*gc.get_threshold()[:2], 1000)
    atexit.register(gc.freeze)


def in_full(words: Sequence[str]) -> list[str]:
    """The words of a command with --model.name where --model is short for it."""
    if not words or words[0] not in WITH_MODEL_SETTINGS:
        return list(words)
    return ["--model.name" + word[len("--model") :] if word.split("=")[0] == "--model" else word for word in words]


def _sentence(error: CycloptsError) -> str:
    cause: Any = error.__cause__
    if isinstance(cause, ValidationError):
        below = error.argument.name.strip("-*") if error.argument else ""
        return explain(cause, Config, called=lambda keys: flag([below, *keys] if below else keys))
    if isinstance(error, UnusedCliTokensError):
        words = " ".join(error.unused_tokens or ())
        return f"Unexpected argument {words!r}. Options are written --name VALUE; see --help."
    if isinstance(error, UnknownOptionError) and (found := _meant(error)):
        return f"Unknown option: {error.token.keyword}. Did you mean {found}? See --help."
    return f"{str(error).strip()} See --help."


def _meant(error: UnknownOptionError) -> str | None:
    """The flag that an unknown one may mean."""
    known = [name[2:].replace("-", "_") for each in error.argument_collection for name in each.names if each.parse]
    found = meant((error.token.keyword or "").lstrip("-").partition("=")[0].replace("-", "_"), known)
    return flag(found.split(".")) if found else None


def _fail(message: str, *, status: int = 2) -> None:
    print(f"poa: {one_line(message)}", file=sys.stderr)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
