"""Checkpoints that are whole or absent, with a checksum.

A checkpoint is one file, so that one rename makes it appear and one deletion removes it. Its checksum is inside it:
torch writes a zip archive, and a zip archive may end with a comment, which readers skip and ``unzip -z`` shows. (The
CRC-32 of its records does not cover the directory of the archive, where one flipped bit can change what is loaded.)
"""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from poa.errors import UserError, first_line
from poa.files import whole_file
from poa.training.health import NonFinite, check_state, not_finite

_NAME = re.compile(r"step-(\d+)\.pt")
_CHUNK_BYTES = 1 << 20
_COMMENT = b"poa sha256 "
_COMMENT_BYTES = len(_COMMENT) + 64
_TAIL = _COMMENT_BYTES.to_bytes(2, "little") + _COMMENT
"""A zip archive ends with the length of its comment in two bytes and the comment."""


def save_checkpoint(
    folder: Path,
    step: int,
    state: Mapping[str, Any],
    *,
    keep_last: int = 2,
    keep_every: int | None = None,
    keep: Collection[int] = (),
) -> Path:
    """Write a checkpoint, then delete the ones that are no longer kept.

    A kill at any moment leaves the earlier checkpoints as they were: the file appears under its name when it is whole
    and on the disk, and only then are others deleted. There must be room for one checkpoint more than are kept.

    Args:
        folder: Where the checkpoints are; made if it is missing.
        step: Number of steps done.
        state: Tensors, numbers, strings, and dicts, lists and tuples of them.
        keep_last: How many of the newest to keep, this one included.
        keep_every: Also keep those whose step is a multiple of this number.
        keep: Also keep those of these steps.

    Raises:
        UserError: The disk is full, the folder cannot be written, or a tensor is not finite. Earlier ones are kept.
    """
    check_state(state)
    return write_checkpoint(folder, step, state, keep_last=keep_last, keep_every=keep_every, keep=keep)


def write_checkpoint(
    folder: Path, step: int, state: Mapping[str, Any], *, keep_last: int, keep_every: int | None, keep: Collection[int]
) -> Path:
    """The same for a state that was found to be finite."""
    path = folder / f"step-{step:08d}.pt"
    sink = _Sink()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".step-*.tmp"):
            leftover.unlink()
        with whole_file(path, durable=True) as temporary:
            _write(temporary, state, sink=sink)
        for old in _expired(checkpoints(folder), step=step, keep_last=keep_last, keep_every=keep_every):
            if step_of(old) not in keep:
                old.unlink()
    except OSError as error:
        raise UserError(_why_not_saved(path, error, needed_bytes=sink.num_bytes)) from error
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU, after comparing it with its checksum.

    Raises:
        UserError: There is no such file, or it is damaged; names an earlier one that is intact.
    """
    if not path.is_file():
        raise UserError(f"There is no checkpoint at {path}. Give the path of a step-....pt file.")
    damage = _damage(path)
    if damage:
        raise UserError(f"Checkpoint {path} is damaged: {damage}. {_advice(path)}")
    try:
        state: dict[str, Any] = dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # whatever torch stumbles over in a file that another program has written
        raise UserError(f"Checkpoint {path} cannot be read ({first_line(error)}). {_advice(path)}") from None
    return state


def digest_of(path: Path) -> str:
    """The first 16 digits of a checkpoint's checksum: what is in it, at the price of its last bytes.

    Raises:
        UserError: It is damaged.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_TAIL) - 64))
        tail = file.read()
    if not tail.startswith(_TAIL):
        raise UserError(f"Checkpoint {path} is damaged: its end is missing. {_advice(path)}")
    return tail[len(_TAIL) :].decode()[:16]


@contextmanager
def restoring(path: Path, state: Mapping[str, Any]) -> Iterator[None]:
    """Say in a sentence that a checkpoint does not hold the training that is to continue from it."""
    if bad := not_finite(state):
        raise UserError(
            f"Checkpoint {path} holds values that are not finite ({bad[0]}), so that the training cannot continue. "
            "Delete it to resume from the one before it, or start again with a lower --lr."
        )
    try:
        yield
    except UserError:
        raise
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"Checkpoint {path} does not belong to this training ({first_line(error)}). Restore the right file, or "
            "delete this one to resume from the one before it."
        ) from None


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a folder, oldest first; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=step_of)


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps, or None. It is whole, but only loading shows whether the disk kept it so."""
    return next(reversed(checkpoints(folder)), None)


def at_step(folder: Path, step: int) -> Path:
    """The checkpoint of a step.

    Raises:
        UserError: There is none; says which there are.
    """
    there = {step_of(path): path for path in checkpoints(folder)}
    if step not in there:
        raise UserError(
            f"{folder} has no checkpoint of step {step}. It has those of {', '.join(map(str, there)) or 'no step'}: "
            "choose one of them or `best`, or leave out --checkpoint for the newest. (--saving.keep-every-epochs keeps "
            "more.)"
        )
    return there[step]


def saved_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending."""
    return [step_of(path) for path in checkpoints(folder)]


def unfinished(folder: Path, *, settings: Mapping[str, Any], what: str) -> dict[str, Any] | None:
    """The newest checkpoint of a training to resume, if there is one; ``what`` was begun, such as ``training``.

    Raises:
        UserError: It was started with other settings.
    """
    path = latest_checkpoint(folder)
    if path is None:
        return None
    state = load_checkpoint(path)
    before = state.get("settings", {})
    differing = [key for key in {**settings, **before} if before.get(key) != settings.get(key)]
    if differing:
        listed = ", ".join(f"{key} ({before.get(key)} before, {settings.get(key)} now)" for key in differing)
        raise UserError(
            f"{folder} holds a {what} that was started with other settings: {listed}. Choose another --name to "
            "keep both, or start again with --overwrite."
        )
    return state


def saver(
    folder: Path, *, settings: Mapping[str, Any], every: int, last: int
) -> Callable[[int, Mapping[str, Any]], None]:
    """A function of epochs done and state, which saves a checkpoint for ``unfinished`` after ``every`` epochs.

    Args:
        folder: Of the checkpoints.
        settings: All that the training depends on.
        every: Epochs from one checkpoint to the next.
        last: Epochs of the whole training, after which there is a checkpoint in any case.
    """

    def save(epoch: int, state: Mapping[str, Any]) -> None:
        if epoch % every == 0 or epoch == last:
            try:
                save_checkpoint(folder, epoch, {"settings": dict(settings), **state}, keep_last=1)
            except NonFinite as error:
                raise NonFinite(f"{error} Try a lower --lr.") from None

    return save


def check_settings(
    checkpoint: Mapping[str, Any], settings: Mapping[str, Any], path: Path, *, of: tuple[str, ...] = ("",)
) -> None:
    """See that the checkpoint of a run was trained with these settings, those in its ``config.yaml``.

    Checkpoints of earlier versions do not say their settings.

    Args:
        checkpoint: Its content.
        settings: By dotted name.
        path: Where the checkpoint is.
        of: Beginnings of the names of settings that matter.

    Raises:
        UserError: It was not: ``config.yaml`` was edited, or the checkpoint is that of another run.
    """
    before = checkpoint.get("settings", {})
    differing = [
        name for name in settings if name.startswith(of) and before.get(name, settings[name]) != settings[name]
    ]
    if differing:
        listed = ", ".join(f"{key} ({before[key]!r} in the checkpoint, {settings[key]!r} now)" for key in differing)
        raise UserError(
            f"{path} was trained with other settings than those in config.yaml: {listed}. Restore config.yaml, or the "
            "checkpoint that belongs to it. For other settings start a new run in another --out."
        )


def step_of(path: Path) -> int:
    """Number of steps done at a checkpoint, from its file name."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise UserError(f"A checkpoint has a name like step-00000100.pt, got {path.name}. Restore its name.")
    return int(match[1])


class _Sink:
    """What ``torch.save`` writes to: a file and the checksum of what went into it.

    A failed write is remembered, not raised, because torch would hide it behind an error of its own; what follows is
    counted without being written, so that the user can be told how much room was needed.
    """

    file: BinaryIO

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.num_bytes = 0
        self.error: OSError | None = None

    def write(self, chunk: bytes | memoryview) -> int:
        self.num_bytes += len(chunk)
        if self.error is None:
            self.digest.update(chunk)
            try:
                self.file.write(chunk)
            except OSError as error:
                self.error = error
        return len(chunk)

    def flush(self) -> None:
        """The file is flushed once, when it is complete."""


def _write(path: Path, state: Mapping[str, Any], *, sink: _Sink) -> None:
    with path.open("wb") as file:
        sink.file = file
        torch.save(dict(state), cast(BinaryIO, sink))
        if sink.error is not None:
            raise sink.error
        file.seek(-2, os.SEEK_END)  # the length of the comment, zero until here
        file.write(_TAIL + sink.digest.hexdigest().encode())


def _expired(paths: Sequence[Path], *, step: int, keep_last: int, keep_every: int | None) -> list[Path]:
    """What to delete now that ``step`` is saved; later steps, of a run that was set back, are left to the user."""
    done = [path for path in paths if step_of(path) <= step]
    older = done[: -max(keep_last, 1)]
    return [path for path in older if not keep_every or step_of(path) % keep_every]


def _why_not_saved(path: Path, error: OSError, *, needed_bytes: int) -> str:
    last = latest_checkpoint(path.parent)
    kept = f"The last checkpoint, {last}, is kept." if last else "There is no earlier checkpoint."
    what, cure = f"Checkpoint {path} cannot be written: {error}.", "Fix this"
    if error.errno == errno.ENOSPC:
        free = shutil.disk_usage(next(parent for parent in path.parents if parent.exists())).free
        needs = f"needs {needed_bytes / 1e6:.1f} MB, {free / 1e6:.1f} MB are free."
        what, cure = f"The disk is full: checkpoint {path} {needs}", "Free some space"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        what, cure = f"Checkpoint {path} cannot be written: {error.strerror}.", f"Make {path.parent} writable"
    return f"{what} {kept} {cure} and resume with --resume."


def _damage(path: Path) -> str | None:
    """What is wrong with the bytes of a file, or None if they are those that were written."""
    digest = hashlib.sha256()
    remaining = path.stat().st_size - 2 - _COMMENT_BYTES
    with path.open("rb") as file:
        while remaining > 0 and (chunk := file.read(min(_CHUNK_BYTES, remaining))):
            digest.update(chunk)
            remaining -= len(chunk)
        tail = file.read()
    digest.update(b"\0\0")  # the checksum was taken before there was a comment
    if not tail.startswith(_TAIL):
        return "its end is missing"
    if tail != _TAIL + digest.hexdigest().encode():
        return "its content does not fit its checksum"
    return None


def _advice(path: Path) -> str:
    """What to do about a damaged checkpoint."""
    step = step_of(path)
    earlier = [other for other in checkpoints(path.parent) if step_of(other) < step]
    intact = next((other for other in reversed(earlier) if _damage(other) is None), None)
    if intact is None:
        return "No intact earlier one is left: start the run again in another --out."
    return f"The newest intact one before it is {intact.name}: delete {path} and resume with --resume."
