"""Reading one image of a source without the others: from a file of its own, or from a part of an archive."""

import os
import struct
import sys
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

from poa.data.entries import Entry
from poa.data.images import BadImage, check_bytes
from poa.data.remote import remote_file
from poa.data.sources import is_remote, read_file

ReadPart = Callable[[int, int], bytes]
"""Reads ``(offset, length)``; raises BadImage where there are fewer bytes."""
HEADER = struct.Struct("<4s22xHH")
"""Of an entry in a zip: signature, ..., lengths of its name and its extra field."""
_MOST_OPEN = 128
"""Archives of a source that are kept open at once."""
_PIECE = 1 << 16


class Reader(Protocol):
    """Reads the images of one source; made by each process for itself, used by several threads at once."""

    def read(self, entry: Entry, /) -> bytes:
        """The whole encoded image; raises BadImage or OSError."""

    def parts(self, entry: Entry, /) -> ReadPart:
        """What reads parts of an encoded image, one behind the other; raises BadImage or OSError."""


def start(reader: Reader, entry: Entry) -> bytes:
    """The first bytes of an image; nothing if it is damaged."""
    try:
        return reader.parts(entry)(0, min(entry.size, 16))
    except (BadImage, OSError):
        return b""


class Archive:
    """A file of which parts are read, by any number of threads and forked processes at once."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        # Positioned reads on a bare descriptor share no position, so neither threads nor forks can disturb one another.
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """Read a part."""
        if sys.platform == "win32":  # which has no positioned reads
            with open(self.path, "rb") as file:  # noqa: PTH123
                file.seek(offset)
                data = file.read(length)
        else:
            data = os.pread(self._descriptor, length, offset)
        if len(data) != length:
            raise BadImage(f"{self.path} is truncated")
        return data


class Files:
    """Images that are files of their own, named from a folder on."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def read(self, entry: Entry) -> bytes:
        """Read a file."""
        return read_file(self._folder / entry.name)

    def parts(self, entry: Entry) -> ReadPart:
        """What reads parts of a file; it is open as long as this is kept."""
        return Archive(self._folder / entry.name).read


class Members:
    """Images that lie in archives as they are: in tars, in embedded sets.

    Args:
        files: The archives; an entry says in which it is.
    """

    def __init__(self, files: Sequence[str]) -> None:
        self._files = files
        self._opened = lru_cache(_MOST_OPEN)(_opened)

    def read(self, entry: Entry) -> bytes:
        """Read an image."""
        check_bytes(entry.size)
        return self._opened(self._files[entry.file])(entry.offset, entry.size)

    def parts(self, entry: Entry) -> ReadPart:
        """What reads parts of an image."""
        check_bytes(entry.size)
        return partial(_shifted, self._opened(self._files[entry.file]), entry.offset)


def _opened(path: str) -> ReadPart:
    return remote_file(path).read if is_remote(path) else Archive(path).read


def _shifted(read: ReadPart, start: int, offset: int, length: int) -> bytes:
    return read(start + offset, length)


class Zipped:
    """Images in a zip, stored or deflated.

    Args:
        path: Of the zip.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._read = Archive(path).read

    def read(self, entry: Entry) -> bytes:
        """Read an image; its checksum is not compared."""
        check_bytes(max(entry.size, entry.stored))
        encoded = self._inflated(entry, most=entry.size + 1)
        if len(encoded) != entry.size:
            raise BadImage(f"damaged in {self._path}: not of the stated {entry.size:,} bytes")
        return encoded

    def parts(self, entry: Entry) -> ReadPart:
        """What reads parts of an image; no more is kept in memory."""
        check_bytes(entry.size)
        place = self._place(entry)
        if not entry.deflated:
            return partial(_shifted, self._read, place)
        pieces = range(place, place + entry.stored, _PIECE)
        return _Inflated(self._read(piece, min(_PIECE, pieces.stop - piece)) for piece in pieces).read

    def _inflated(self, entry: Entry, *, most: int) -> bytes:
        content = self._read(self._place(entry), entry.stored)
        try:  # more than stated is never inflated
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, most) if entry.deflated else content[:most]
        except zlib.error as error:
            raise BadImage(f"damaged in {self._path}: {error}") from error

    def _place(self, entry: Entry) -> int:
        """Where the content of an entry begins."""
        signature, name_length, extra_length = HEADER.unpack(self._read(entry.offset, HEADER.size))
        if signature != b"PK\x03\x04":
            raise BadImage(f"{self._path} is damaged, or has changed since it was indexed")
        return entry.offset + HEADER.size + int(name_length) + int(extra_length)


class _Inflated:
    """A deflated file in pieces, read onwards."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        self._offset = 0

    def read(self, offset: int, length: int) -> bytes:
        """Read a part that lies behind those read before."""
        assert offset >= self._offset
        for _ in self._next(offset - self._offset):
            pass
        return b"".join(self._next(length))

    def _next(self, length: int) -> Iterator[bytes]:
        while length > 0:
            piece = self._inflate.unconsumed_tail or next(self._pieces, b"")
            try:
                part = self._inflate.decompress(piece, min(length, _PIECE))
            except zlib.error as error:
                raise BadImage(f"damaged in its archive: {error}") from error
            if not part and (self._inflate.eof or not piece):
                raise BadImage("damaged in its archive: shorter than stated")
            length -= len(part)
            self._offset += len(part)
            yield part
