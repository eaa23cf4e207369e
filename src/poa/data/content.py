"""What images hold, in digests: a set is the same wherever it lies and however its files are called."""

import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from poa.data.images import BadImage

PART_BYTES, PARTS = 8192, 8
"""Of a large file so many parts are looked at, evenly spread from its first bytes to its last."""
UNREADABLE = 0
"""The digest of a file that is empty or cannot be read."""
CONTENT = np.dtype([("modified", "<i8"), ("changed", "<i8"), ("digest", "<u8")])
MOST_NAMED = 10
"""Images that could not be read, of all that are left out."""
_IN_WORDS = {"train": "training images", "images": "images"}
_AT_ONCE = 256
THREADS = 8
_WAITING = 64
"""Parts that are handed to threads before the values of the first are taken; each holds its items."""
Count = Callable[[str, int, int | None], None]
"""Called with what is counted, how much of it is done, and out of how much if that is known."""
T = TypeVar("T")
R = TypeVar("R")


class Content(NamedTuple):
    """When a file was changed last, in nanoseconds (0 in archives), and the digest of what it holds."""

    modified: int
    changed: int
    digest: int


@dataclass(frozen=True, eq=False)
class Identity:
    """How results know the images they were made with.

    Attributes:
        source: Where the images are, in words.
        text: Number of images, and digests of what they hold and of their labels: equal texts mean equal sets.
        digests: Of each image.
    """

    source: str
    text: str
    digests: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.digests)

    def num_among(self, others: "Identity") -> int:
        """How many of the images are among others too; a resized or converted copy is another image."""
        return int((np.isin(self.digests, others.digests) & (self.digests != UNREADABLE)).sum())


@dataclass(frozen=True)
class LeftOut:
    """Images that could not be read.

    Attributes:
        number: How many.
        total: Of how many.
        names: Of the first of them.
        classes: Names of the classes that have no other images.
    """

    number: int
    total: int
    names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> "LeftOut":
        """From what JSON makes of it."""
        return cls(content["number"], content["total"], tuple(content["names"]), tuple(content["classes"]))

    def joined(self, later: "LeftOut") -> "LeftOut":
        """These and those that were left out later, of the images that were left."""
        names = (*self.names, *later.names)[:MOST_NAMED]
        return LeftOut(self.number + later.number, self.total, names, (*self.classes, *later.classes))

    def describe(self, what: str) -> str:
        """A sentence; ``what`` says of which images, such as ``test``."""
        images = _IN_WORDS.get(what, f"{what} images")
        such = f", such as {self.names[0]!r}" if self.names else ""
        sentence = f"{self.number:,} of {self.total:,} {images} could not be read{such}."
        if not self.classes:
            return sentence
        classes = "class" if len(self.classes) == 1 else "classes"
        return f"{sentence} No {images[:-1]} is left of {classes} {', '.join(map(repr, self.classes))}."


def short_digest(*parts: bytes | bytearray | memoryview) -> str:
    """A digest of 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def labels_digest(classes: Sequence[str], labels: npt.NDArray[np.int64]) -> str:
    """The digest of the names of the classes and of the class of each image."""
    return short_digest(json.dumps(classes).encode(), labels.tobytes())


def content_digest(size: int, read: Callable[[int, int], bytes | memoryview]) -> int:
    """The digest of a file of which ``read(offset, length)`` gives parts.

    It sees the size and at most 64 KiB: all of a smaller file, eight parts of a larger one. What changes between these
    parts and leaves the size as it is goes unseen; in a compressed image a change moves all that follows.
    """
    if size == 0:
        return UNREADABLE
    whole = size <= PARTS * PART_BYTES
    spans = [(0, size)] if whole else [(n * (size - PART_BYTES) // (PARTS - 1), PART_BYTES) for n in range(PARTS)]
    return int(short_digest(b"%d " % size, *(read(*span) for span in spans)), 16)


def contents(
    look: Callable[[T], Content], files: Iterable[T], number: int, progress: Count, *, threads: int = THREADS
) -> npt.NDArray[Any]:
    """Look at so many files, several at a time."""
    found, done = np.zeros(number, CONTENT), 0
    for part in _in_threads(look, files, threads):
        found[done : done + len(part)] = part
        done += len(part)
        progress("images indexed", done, number)
    return found


def content_of_file(path: str, known: tuple[int, Content] | None) -> Content:
    """Look at a file, unless its size and its times are the known ones."""
    try:
        status = os.stat(path)  # noqa: PTH116 (three times as fast as Path)
        times = status.st_mtime_ns, status.st_ctime_ns
        if known is not None and known[0] == status.st_size and known[1][:2] == times:
            return known[1]
        if not stat.S_ISREG(status.st_mode):
            return Content(*times, UNREADABLE)
    except (OSError, ValueError):
        return Content(0, 0, UNREADABLE)
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123

            def read(offset: int, length: int) -> bytes:
                file.seek(offset)
                return file.read(length) or b""

            return Content(*times, content_digest(status.st_size, read))
    except OSError:
        return Content(*times, UNREADABLE)


def content_of_entry(size: int, parts: Callable[[], Callable[[int, int], bytes]]) -> Content:
    """Look at a file in an archive, which cannot change without the archive."""
    try:
        return Content(0, 0, content_digest(size, parts()))
    except (BadImage, OSError):
        return Content(0, 0, UNREADABLE)


def are_unchanged(paths: Iterable[str], sizes: npt.NDArray[np.int64], before: npt.NDArray[Any]) -> bool:
    """Whether files have the sizes and times that they had when they were looked at."""
    numbers = (map(int, column) for column in (sizes, before["modified"], before["changed"]))
    wanted = zip(paths, *numbers, strict=True)
    return all(all(part) for part in _in_threads(lambda each: _state(each[0]) == each[1:], wanted, THREADS))


def _state(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _in_threads(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[list[R]]:
    """Values of a function in order, in parts."""
    left = iter(items)
    parts = iter(lambda: list(islice(left, _AT_ONCE)), [])
    with ThreadPoolExecutor(threads) as pool:
        while some := list(islice(parts, _WAITING)):
            yield from pool.map(lambda part: [function(item) for item in part], some)
