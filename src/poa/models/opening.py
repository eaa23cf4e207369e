"""The folder of a run when it begins and when it is resumed: whether it may, who writes to it, and its settings."""

import json
import sys
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from poa.config import resolve
from poa.config.pretraining import SLIMMABLE, Config
from poa.errors import UserError
from poa.files import LOCK, for_models, one_writer, whole_file
from poa.machine.environment import environment
from poa.models.run import Paths
from poa.text import shell_word
from poa.training.checkpoint import latest_checkpoint


def check(config: Config, *, resume: bool) -> None:
    """Before anything is built, see that a new run can be written to ``config.out``, or that there is one to resume."""
    require_out(config)
    if resume:
        reopen(config, but=resolve.LENGTH if config.optimizer.schedule == "constant" else ())
        return
    paths = Paths(for_models(Path(config.out)))
    try:
        used = paths.folder.exists() and (not paths.folder.is_dir() or any(map(_is_of_others, paths.folder.iterdir())))
        begun = is_begun(paths.folder)
    except OSError as error:
        raise unwritable(paths.folder, error) from None
    if used and not begun:
        raise UserError(f"{paths.folder} already exists and is not an empty folder. Choose another --out.")
    if not begun:
        return
    if latest_checkpoint(paths.checkpoints) is None:
        raise UserError(
            f"{paths.folder} already holds a run without a checkpoint. If it is not running, start it again by "
            "adding --resume, or delete the folder; otherwise choose another --out."
        )
    raise UserError(f"{paths.folder} already holds a run. Resume it by adding --resume, or choose another --out.")


def require_out(config: Config) -> None:
    """Refuse settings that name no folder."""
    if not config.out:
        raise UserError("--out FOLDER is required: the folder of the run.")


def begins(config: Config, *, resume: bool) -> bool:
    """Whether a run begins at its first step: a new one, or one to resume that has saved no checkpoint."""
    return not resume or latest_checkpoint(Paths(Path(config.out)).checkpoints) is None


def is_begun(folder: Path) -> bool:
    """Whether a run has begun in a folder: its settings are written last, and were left empty by a full disk before."""
    file = Paths(folder).config
    return file.is_file() and file.stat().st_size > 0


def _is_of_others(path: Path) -> bool:
    """Whether a file or folder is none of those that a run which could not begin leaves in its folder."""
    unfinished = path.name.startswith(".") and path.name.endswith(".tmp")
    return not unfinished and path.name not in {LOCK, "env.json", "command.txt", "config.yaml"}


@contextmanager
def writing(config: Config) -> Iterator[Paths]:
    """Make the folder of a run if it is missing, and let no other process write to it meanwhile."""
    paths = Paths(Path(config.out))
    with ExitStack() as stack:
        try:
            paths.folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(one_writer(paths.folder))
        except OSError as error:
            raise unwritable(paths.folder, error) from None
        yield paths


def create(config: Config) -> None:
    """Write the settings of a new run, and a record of command and environment before; call it while ``writing``."""
    check(config, resume=False)
    paths = Paths(Path(config.out))
    started = {"date": datetime.now(UTC).isoformat(timespec="seconds"), **environment()}
    texts = {
        paths.folder / "env.json": json.dumps(started, indent=1) + "\n",
        paths.folder / "command.txt": " ".join(map(shell_word, sys.argv)) + "\n",
        paths.config: resolve.to_yaml(config),
    }
    try:
        for path, text in texts.items():
            with whole_file(path, durable=True) as temporary:
                temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise unwritable(paths.folder, error) from None


def unwritable(folder: Path, error: OSError) -> UserError:
    """What to say of a run whose folder cannot be written to."""
    return UserError(
        f"The run cannot be written to {folder}: {error.strerror}. Choose another --out, or free some space there and "
        "run the same command again."
    )


def reopen(config: Config, *, but: Collection[str] = ()) -> tuple[Paths, Config]:
    """Find the run to resume, and see that ``config`` differs from its settings only in ``but`` and harmless ones."""
    paths = Paths(Path(config.out))
    if not is_begun(paths.folder):
        raise UserError(f"{paths.folder} holds no run to resume. Leave out --resume to start one.")
    stored = resolve.of_run(paths.config)
    changed = resolve.differences(stored, config)
    if not changed.keys() <= set(but):
        listed = ", ".join(f"{name} ({old!r} in the run, {new!r} now)" for name, (old, new) in changed.items())
        is_longer = changed.keys() == {"epochs"} and config.epochs > stored.epochs
        hint = _how_to_go_on(stored, config) if is_longer else ""
        raise UserError(
            f"{paths.folder} was started with other settings: {listed}. {hint}Resume it with its own settings "
            "(give only --out and --resume), or choose another --out for a new run."
        )
    return paths, config


def _how_to_go_on(stored: Config, config: Config) -> str:
    """What to do instead of making a run longer whose schedules depend on its length; a slimmable one cannot go on."""
    why = "A run whose learning rate follows a cosine to the end cannot be made longer"
    if config.method in SLIMMABLE:
        return f"{why}; one with --optimizer.schedule constant can. "
    folder = Path(config.out)
    words = ("poa", "pretrain", "--config", str(Paths(folder).config), "--init", str(folder))
    new = ("--out", f"{folder}-longer", "--epochs", str(config.epochs - stored.epochs))
    return (
        f"{why}, as one with --optimizer.schedule constant can; go on from its weights in a new run: "
        f"{' '.join(map(shell_word, (*words, *new)))}. "
    )


def write_settings(config: Config) -> None:
    """Replace the settings of a run, whole or not at all; call it while ``writing``."""
    paths = Paths(Path(config.out))
    try:
        with whole_file(paths.config, durable=True) as temporary:
            temporary.write_text(resolve.to_yaml(config), encoding="utf-8")
    except OSError as error:
        raise unwritable(paths.folder, error) from None
