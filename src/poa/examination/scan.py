"""The measures of all images, kept in the cache as they are made: the same command resumes after a stop."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from poa.data.content import short_digest
from poa.data.images import OPTIONAL_FORMATS, BadImage, most_pixels
from poa.data.index import ImageIndex
from poa.data.workers import Plan, prepare
from poa.errors import UserError
from poa.examination.measures import RECORD, Measured, measure, unread
from poa.features.extract import Progress
from poa.files import one_writer

FORMAT = 1
CHUNK = 32
"""Images that a worker measures at once."""
_STALE_AFTER = 7 * 24 * 3600.0


class Scan(NamedTuple):
    """Measures of all images of an index.

    Attributes:
        records: One of type ``RECORD`` an image, mapped from disk.
        reasons: Why images cannot be read, by their number.
    """

    records: npt.NDArray[Any]
    reasons: Mapping[int, str]


@dataclass(frozen=True)
class _Chunks(Plan[list[Measured]]):
    """The images from ``start`` on, some at a time."""

    index: ImageIndex
    start: int

    def __len__(self) -> int:
        return -((self.start - len(self.index)) // CHUNK)

    def make(self, number: int) -> list[Measured]:
        first = self.start + number * CHUNK
        return [_look(self.index, i) for i in range(first, min(first + CHUNK, len(self.index)))]


def _look(index: ImageIndex, i: int) -> Measured:
    try:
        return measure(index.read(i))
    except BadImage as error:
        return unread(str(error))


def scan(index: ImageIndex, *, workers: int, progress: Progress) -> Scan:
    """Measure all images; those that an earlier call measured, whole or stopped, are not read again.

    Raises:
        UserError: Another process measures the same images, or the disk is full.
    """
    folder = folder_of(index)
    records, reasons = folder / "records.bin", folder / "reasons.jsonl"
    try:
        with one_writer(folder):
            done = _whole_records(records)
            _append(reasons, b"\n")  # ends a line that a stop cut short
            for chunk in prepare(_Chunks(index, done), workers=workers):
                _append(reasons, "".join(_reasons(chunk, done)).encode())  # first, so that no record lacks its reason
                _append(records, np.stack([each.record for each in chunk]).tobytes())
                done += len(chunk)
                progress("images examined", done, len(index))
    except OSError as error:
        raise UserError(
            f"What is found cannot be kept in {folder}: {error.strerror or error}. Free some space there, or set "
            "POA_CACHE to another folder, and run the same command again."
        ) from error
    found = np.memmap(records, RECORD, mode="r") if done else np.zeros(0, RECORD)
    return Scan(np.asarray(found), _read_reasons(reasons))


def folder_of(index: ImageIndex) -> Path:
    """Where the measures of these images are kept; unused ones are removed after a week."""
    root = index.folder.parent / "examined"
    what = (FORMAT, index.folder.name, index.listed, OPTIONAL_FORMATS, most_pixels())
    folder = root / short_digest(repr(what).encode())
    for old in root.glob("*/records.bin"):
        with suppress(OSError):  # another process removes it too
            if old.parent != folder and time.time() - old.stat().st_mtime > _STALE_AFTER:
                shutil.rmtree(old.parent)
    return folder


def _whole_records(path: Path) -> int:
    """How many records a file holds; a part at its end, which a stop may leave, is cut off."""
    if not path.exists():
        return 0
    number = path.stat().st_size // RECORD.itemsize
    with path.open("r+b") as file:
        file.truncate(number * RECORD.itemsize)
    return number


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def _reasons(chunk: list[Measured], first: int) -> Iterator[str]:
    for i, each in enumerate(chunk, start=first):
        if each.reason:
            yield json.dumps([i, each.reason]) + "\n"


def _read_reasons(path: Path) -> dict[int, str]:
    """The last line of a number counts: images whose records were lost in a stop are measured again."""
    found: dict[int, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(ValueError):  # a line cut short by a stop
            i, reason = json.loads(line)
            found[i] = reason
    return found
