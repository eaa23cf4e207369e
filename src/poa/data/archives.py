"""The listing of images in zip and tar files."""

import io
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from sys import intern
from typing import Self

import numpy as np

from poa.data.entries import NOWHERE, Entries, Entry
from poa.data.images import IMAGE_ENDINGS
from poa.data.reading import HEADER, Members, Reader, Zipped, start
from poa.data.remote import raw_file, stamp_of
from poa.data.shards import beside, expanded, shards_of
from poa.data.sources import (
    SPECIAL,
    Kind,
    Listing,
    Progress,
    Source,
    Stamp,
    ending_of,
    is_remote,
    left_out,
    report,
    require_images,
)
from poa.data.webdataset import LABEL_ENDINGS, key_of, labels_beside
from poa.errors import UserError, nearest

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_MAX_HEADER = 1 << 20
"""Bytes of an entry's header in a tar, with its long name and further fields."""
_AHEAD = 1 << 23
"""Bytes that are asked for at once where a tar at a server is listed."""
_MAX_RATIO = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}
"""Bytes that become of one, at most."""


def list_zip(source: Source, progress: Progress) -> Listing:
    """List the images in a zip, sorted by name."""
    stamp = Stamp.of(source.path)
    with source.path.open("rb") as file, _refusing_damage(source.path, "zip"):
        infos = [info for info in zipfile.ZipFile(file).infolist() if not info.is_dir()]
        named = [info for info in infos if ending_of(info.filename) in IMAGE_ENDINGS]
        _check_places(named + [info for info in infos if not ending_of(info.filename)], length=stamp.size)
    odd = next((info for info in named if info.flag_bits & 1 or info.compress_type not in (0, 8)), None)
    if odd is not None:
        reason = "encrypted" if odd.flag_bits & 1 else f"compressed by method {odd.compress_type}, not by deflate"
        raise UserError(f"In {source.path}, {odd.filename!r} is {reason}: unpack the zip and give the folder.")
    progress(len(named))
    files = Entries()
    for info in infos:
        files.append(_zip_entry(info))
    images = _Images(source, Zipped(str(source.path)))
    images.add(_last_of_each(files, {}), {})
    return replace(images.listing(), stamps={str(source.path): stamp}, place=str(source.path))


def list_tar(source: Source, progress: Progress) -> Listing:
    """List the images in an uncompressed tar or in several, sorted by name.

    Where labels lie beside images (`webdataset`), each is named as if it were in the folder of its class. Where several
    tars have images of the same name, their names begin with the number of their tar.
    """
    shards = list(expanded(source.text)) if source.text else list(map(str, shards_of(source.path)))
    stamps = {each: stamp_of(each) for each in ([str(source.path)] if source.path.is_dir() else []) + shards}
    reader = Members(shards)
    images = _Images(source, reader)
    for number, shard in enumerate(shards):
        files = _in_tar(shard, number, stamps[shard].size, partial(_further, progress, len(images.entries)))
        images.add(files, labels_beside(files, reader))
    listing = images.listing()
    return replace(listing, stamps=stamps, place=shards, ignored=listing.ignored + beside(source.path))


def _in_tar(path: str, number: int, length: int, progress: Progress) -> Entries:
    """The files in one of the tars."""
    with _Headers(raw_file(path), _AHEAD if is_remote(path) else io.DEFAULT_BUFFER_SIZE) as headers:
        if headers.peek(8).startswith(_COMPRESSED):
            folder = path.rpartition("/")[2].partition(".")[0]
            raise UserError(
                f"{path} is a compressed tar, which cannot be read in place: run `mkdir {folder} && tar -xf "
                f"{path} -C {folder}` and give --data {folder}."
            )
        with _refusing_damage(path, "tar"):
            return _tar_members(headers, number, length, progress)


def _further(progress: Progress, before: int, found: int) -> None:
    progress(before + found)


def _numbered(name: str, number: int) -> str:
    folder, slash, file = name.rpartition("/")
    return f"{folder}{slash}{number:05}-{file}"


@contextmanager
def _refusing_damage(path: str | Path, kind: Kind) -> Iterator[None]:
    try:
        yield
    except UserError:  # a server that stays away
        raise
    except Exception as error:  # damaged archives make zipfile and tarfile raise nearly every kind of exception
        reason = str(error) or type(error).__name__
        raise UserError(f"{path} is damaged or not a {kind} file: {reason}. Copy or download it again.") from error


def _zip_entry(info: zipfile.ZipInfo) -> Entry:
    place = NOWHERE if stat.S_ISLNK(info.external_attr >> 16) else info.header_offset
    return Entry(_clean(info.filename), info.file_size, place, info.compress_size, info.compress_type != 0)


def _check_places(images: list[zipfile.ZipInfo], *, length: int) -> None:
    """See that each image lies inside the archive and in no other, and can have the size that is stated."""
    ends = {}
    for info in images:
        most = info.compress_size * _MAX_RATIO.get(info.compress_type, info.file_size)
        ends[info.header_offset] = info.header_offset + HEADER.size + info.compress_size
        if info.header_offset < 0 or ends[info.header_offset] > length or info.file_size > most:
            raise zipfile.BadZipFile(f"the size or place of {info.filename!r} is impossible")
    for first, second in pairwise(sorted(ends)):
        if ends[first] > second:
            raise zipfile.BadZipFile("its entries overlap")


class _Headers(io.BufferedReader):
    """A tar of which no more is read at once than a header may have."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


class _Header(tarfile.TarInfo):
    """The header of a file in a tar; in an ordinary one only what counts here is read, in a fourth of the time."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Understand a header."""
        try:
            size, checksum = int(_until_zero(buf[124:136]), 8), int(_until_zero(buf[148:156]), 8)
        except ValueError:
            return super().frombuf(buf, encoding, errors)
        is_whole = len(buf) == tarfile.BLOCKSIZE and sum(buf) - sum(buf[148:156]) + 8 * ord(" ") == checksum
        if not is_whole or buf[156:157] != tarfile.REGTYPE:
            return super().frombuf(buf, encoding, errors)
        info = cls(_until_zero(buf[:100]).decode(encoding, errors))
        if buf[345]:
            info.name = f"{_until_zero(buf[345:500]).decode(encoding, errors)}/{info.name}"
        info.size = size
        return info


def _until_zero(field: bytes | bytearray) -> bytes | bytearray:
    return field.partition(b"\0")[0]


def _tar_members(file: _Headers, number: int, length: int, progress: Progress) -> Entries:
    """What is in a tar, but for folders."""
    found = Entries()
    links: dict[int, str] = {}
    num_images = place = 0
    with tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as archive:
        while (info := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # or a million headers stay in memory
            if info.size < 0 or not place < archive.offset < length + tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"the size of {info.name!r} is impossible")
            place = archive.offset
            name = _clean(info.name)
            if info.isreg() and not info.issparse():
                found.append(Entry(name, info.size, info.offset_data, file=number))
                num_images += ending_of(name) in IMAGE_ENDINGS
                report(num_images, progress)
            elif not info.isdir():
                if info.islnk():
                    links[len(found)] = _clean(info.linkname)
                found.append(Entry(name, 0, NOWHERE))
        # tarfile takes a damaged header for the end, which is a block of zeros.
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"bad header at byte {archive.offset}")
    return _last_of_each(found, links)


def _last_of_each(found: Entries, links: Mapping[int, str]) -> Entries:
    """The last of those that have one name; in ``links``, by row, are names of others that hold the content."""
    if not links and _differ(found.names):
        return found
    rows: dict[str, int] = {}
    for row, name in enumerate(found.names):
        rows[name] = rows.get(links[row], row) if row in links else row
    last = found.take(np.array(list(rows.values()), np.int64))
    last.names = list(rows)
    return last


def _differ(names: Sequence[str]) -> bool:
    """Whether no two are equal; hashes, which need less memory, mostly tell."""
    hashes = np.fromiter(map(hash, names), np.int64, len(names))
    return len(np.unique(hashes)) == len(names) or len(set(names)) == len(names)


class _Images:
    """The images among the files of archives, gathered archive by archive.

    Args:
        source: What is listed.
        reader: Of the files.
    """

    def __init__(self, source: Source, reader: Reader) -> None:
        self.entries = Entries()
        self._source = source
        self._reader = reader
        self._labels: list[str] = []
        self._ignored: Counter[str] = Counter()
        self._folders: set[str] = set()

    def add(self, files: Entries, labels: Mapping[str, str]) -> None:
        """Take the images of an archive; ``labels`` are known by ``key_of`` the file."""
        prefix = f"{self._source.inside}/" if self._source.inside else ""
        for entry in files:
            self._folders.add(entry.name[: entry.name.rfind("/") + 1])
            if not entry.name.startswith(prefix):
                continue
            name = entry.name.removeprefix(prefix)
            why = SPECIAL if entry.offset == NOWHERE else left_out(name, partial(start, self._reader, entry))
            label = labels.get(key_of(entry.name), "") if labels else ""
            if why is None:
                self.entries.append(entry._replace(name=f"{label}/{name}" if label else name))
                self._labels.append(intern(label))
            elif not (label and why in LABEL_ENDINGS):
                self._ignored[why] += 1

    def listing(self) -> Listing:
        """All of them, sorted by name; where names are equal, they begin with the number of their archive."""
        source, entries = self._source, self.entries
        if source.inside and not any(folder.startswith(f"{source.inside}/") for folder in self._folders):
            raise UserError(_missing(source, self._folders))
        require_images(source, entries, self._ignored)
        order = entries.sort()
        if any(one == next_one for one, next_one in pairwise(entries.names)):
            entries.names = [_numbered(entry.name, entry.file) for entry in entries]
            order = order[entries.sort()]
        labels = [self._labels[row] for row in order] if any(self._labels) else None
        told = f"labels are taken from the files {' and '.join(LABEL_ENDINGS)} beside the images" if labels else ""
        return Listing(entries=entries, labels=labels, ignored=self._ignored, columns=told)


def _clean(name: str) -> str:
    """The name of an entry as a relative path; some programs write ``./a``, ``/a`` or a backslash."""
    return name.replace("\\", "/").lstrip("/").removeprefix("./")


def _missing(source: Source, members: Iterable[str]) -> str:
    parts = source.inside.split("/")
    depth = 0
    folders: set[tuple[str, ...]] = {tuple(name.split("/")[:-1]) for name in members}
    while any(folder[: depth + 1] == tuple(parts[: depth + 1]) for folder in folders):
        depth += 1
    above = tuple(parts[:depth])
    choices = sorted({folder[depth] for folder in folders if folder[:depth] == above and len(folder) > depth})
    place = "/".join((str(source.path), *above))
    advice = nearest(parts[depth], choices) if choices else f"There is no folder in it: give {place}."
    return f"There is no folder {parts[depth]!r} in {place}. {advice}"
