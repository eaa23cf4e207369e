"""A folder of blocks of files that lie elsewhere, shared by processes; those read longest ago go when it is full."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from poa.data.content import short_digest
from poa.errors import UserError
from poa.files import whole_file

BLOCK = 1 << 18
_GIGABYTE = 10**9
_SWEEP_AFTER = 32
"""A process looks at the folder's size after it has added so many-th of what may be kept, and first of all."""
Fetch = Callable[[int, int], bytes]
"""Reads ``(offset, length)`` of a file, or all of it from a server that gives no parts."""


def most_kept() -> int:
    """How many bytes are kept: $POA_CACHE_GB, else 20 gigabytes."""
    wanted = os.environ.get("POA_CACHE_GB", "20")
    try:
        if (number := float(wanted)) >= 0:
            return int(number * _GIGABYTE)
    except (ValueError, OverflowError):
        pass
    raise UserError(f"POA_CACHE_GB must be a number of gigabytes such as 20, got {wanted!r}.")


class Blocks:
    """Blocks of files in a folder, read and written by any number of threads and processes at once.

    Args:
        folder: Made when the first block is kept. Blocks that cannot be written are not kept.
        most: Bytes that are kept, about.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._folder = folder
        self._most = most
        self._left = 0
        self._lock = threading.Lock()

    def read(self, offset: int, length: int, *, size: int, file: str, fetch: Fetch) -> bytes:
        """Read a part of a file of ``size`` bytes; ``file`` names it and its state.

        What is missing between the first and the last missing block is fetched at once.
        """
        key = short_digest(file.encode("utf-8", "surrogateescape"))
        numbers = range(offset // BLOCK, -(-(offset + length) // BLOCK))
        found = {number: self._kept(key, number, min(BLOCK, size - number * BLOCK)) for number in numbers}
        if missing := [number for number, block in found.items() if block is None]:
            start, end = missing[0] * BLOCK, min((missing[-1] + 1) * BLOCK, size)
            got = fetch(start, end - start)
            first = 0 if len(got) == size else missing[0]
            for place in range(0, len(got), BLOCK):
                found[first + place // BLOCK] = got[place : place + BLOCK]
                self._keep(key, first + place // BLOCK, got[place : place + BLOCK])
        whole = b"".join(found[number] or b"" for number in numbers)
        return whole[offset - numbers.start * BLOCK :][:length]

    def _path(self, key: str, number: int) -> Path:
        return self._folder / key[:2] / f"{key}-{number}"

    def _kept(self, key: str, number: int, size: int) -> bytes | None:
        path = self._path(key, number)
        with suppress(OSError):
            block = path.read_bytes()
            if len(block) == size:  # a crash may leave less
                os.utime(path)
                return block
        return None

    def _keep(self, key: str, number: int, block: bytes) -> None:
        with self._lock:
            self._left -= len(block)
            is_due = self._left < 0
            if is_due:
                self._left = self._most // _SWEEP_AFTER
        with suppress(OSError):
            if is_due:
                self._sweep()
            if len(block) <= self._most:
                with whole_file(self._path(key, number)) as temporary:
                    temporary.write_bytes(block)

    def _sweep(self) -> None:
        """Remove the blocks that were read longest ago, so that there is room until the next time."""
        files = []
        for path in self._folder.glob("*/*"):
            with suppress(FileNotFoundError):  # another process removes it, too
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        room = self._most - self._left
        for _, size, path in sorted(files, reverse=True):
            room -= size
            if room < 0:
                path.unlink(missing_ok=True)
