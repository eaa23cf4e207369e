"""Files and folders that are there whole or not at all: written beside their place and renamed when complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from poa.errors import UserError


def make_folder(folder: Path, *, content: str) -> Path:
    """Make a folder if it is missing; the content is for the sentence if that fails, such as ``Scores``.

    Raises:
        UserError: The folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{content} cannot be written to {folder}: {error.strerror}. Choose another --out, or make it writable."
        ) from None
    return folder


@contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield the path to write to; what is written there replaces ``path`` at the end, unless an error occurs.

    Its folder is made if it is missing. A durable file is on the disk before it appears, and so is its name when this
    returns. Errors of the system are passed on as they are.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        if durable:
            _sync(temporary)
        temporary.replace(path)
        if durable:
            _sync(path.parent)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write to; it replaces ``folder`` at the end, unless an error occurs.

    An empty ``folder`` is filled instead, since it may be the current directory of a shell.

    Raises:
        UserError: The folder cannot be written.
    """
    whole = folder.resolve()  # `.` has no name
    temporary = whole.with_name(f".{whole.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if whole.is_dir() and not any(whole.iterdir()):
            for file in temporary.iterdir():
                file.rename(whole / file.name)
        else:
            shutil.rmtree(whole, ignore_errors=True)
            temporary.rename(whole)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror}. Choose another folder, or free some space there, and "
            "run the same command again."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until a file, or the list of files in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
