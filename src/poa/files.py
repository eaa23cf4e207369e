"""Files and folders that are there whole or not at all, and folders that one process at a time writes to."""

import glob
import logging
import os
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from poa.errors import UserError
from poa.text import unicode_text

_LOG = logging.getLogger(__name__)
LOCK = ".lock"
"""File in a folder that ``one_writer`` locks. It stays there: only the lock counts, which ends with its process."""
PATIENCE_SECONDS = 3.0
"""Time for a process that was killed to let go of its lock."""
_LEFT_AFTER = 3600.0
"""Age in seconds at which an unfinished file or folder is taken for what a killed process left."""


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


def for_models(folder: Path) -> Path:
    """The folder, if models can be loaded from it.

    Raises:
        UserError: Its path is no text, which safetensors cannot open.
    """
    try:
        os.fsencode(folder).decode()
    except UnicodeDecodeError:
        raise UserError(
            f"The folder {unicode_text(str(folder))} has a path with bytes that are not UTF-8, so that no models could "
            "be loaded from it. Choose another --out."
        ) from None
    return folder


@contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield the path to write to; what is written there replaces ``path`` at the end, unless an error occurs.

    Its folder is made if it is missing. A durable file is on the disk before it appears, and so is its name when this
    returns. If several processes write the same file at once, the last one's is kept. Errors of the system are passed
    on as they are.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _unfinished(path)
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
    whole = folder if folder.name not in ("", "..") else folder.resolve()
    try:
        with working_folder(whole) as temporary:
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


@contextmanager
def working_folder(place: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``place``, which is removed at the end with what is left in it."""
    temporary = _unfinished(place)
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def one_writer(folder: Path, *, patience: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Hold the lock of a folder, which no other process gets meanwhile, whether on this machine or, over NFS, another.

    The folder is made if it is missing; who holds the lock may remove it. The system ends the lock with the process,
    however that ends, and keeps it while the process is paused. A file system that keeps no locks lets several write,
    with a warning.

    Raises:
        UserError: Another process holds the lock.
        OSError: The file of the lock cannot be written.
    """
    deadline = time.monotonic() + patience
    with ExitStack() as stack:
        while True:
            file = stack.enter_context(_lock_file(folder))
            if not _is_locked(file.fileno(), folder):
                if time.monotonic() >= deadline:
                    file.seek(0)
                    raise UserError(
                        f"{folder} is in use by {file.read().strip() or 'another process'}. Only one process may write "
                        "to it: wait until that one has ended, or stop it, and run the same command again."
                    )
                time.sleep(0.05)
            elif _is_at(file.fileno(), folder / LOCK):
                break
            stack.close()
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield


def _lock_file(folder: Path) -> TextIO:
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / LOCK).open("a+", encoding="utf-8")


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is still there under its name: who held its lock before may have removed the folder."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # far behind the text, which others must be able to read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_locked(descriptor: int, folder: Path) -> bool:
    """Lock a file; False if another process has locked it."""
    try:
        _lock(descriptor)
    except (BlockingIOError, PermissionError):  # the latter on Windows
        return False
    except OSError as error:
        _LOG.warning(
            "Files in %s cannot be locked (%s). Make sure that no other process writes there.", folder, error.strerror
        )
    return True


def _unfinished(path: Path) -> Path:
    """A name beside ``path`` that no other process uses; removes what killed processes left there."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*tmp"):
        with suppress(OSError):  # another process removes it too
            if time.time() - left.stat().st_mtime > _LEFT_AFTER:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


def _sync(path: Path) -> None:
    """Wait until a file, or the list of files in a folder, is on the disk."""
    if sys.platform == "win32" and path.is_dir():  # Windows opens no folders, and writes their lists by itself
        return
    descriptor = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)  # Windows: only what can be written
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
