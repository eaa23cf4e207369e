"""Images in zip and tar files: their listing, and reading one without the others."""

import os
import struct
import sys
import tarfile
import weakref
import zipfile
import zlib
from collections import Counter
from operator import attrgetter
from pathlib import Path

from poa.data.images import BadImage
from poa.data.sources import IMAGE_ENDINGS, Entry, Listing, Progress, Source, Stamp, ending_of, report, require_images
from poa.errors import UserError, nearest

_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_HEADER = struct.Struct("<4s22xHH")  # of an entry in a zip: signature, ..., lengths of its name and its extra field


class Archive:
    """A file of which parts are read, by any number of threads and forked processes at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Positioned reads on a bare descriptor share no position, so neither threads nor forks can disturb one another.
        self._descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, entry: Entry) -> bytes:
        """Read an entry that is not compressed (tar, embedded sets)."""
        return self._read(entry.size, entry.offset)

    def read_zipped(self, entry: Entry) -> bytes:
        """Read an entry of a zip, stored or deflated; its checksum is not compared."""
        signature, name_length, extra_length = _HEADER.unpack(self._read(_HEADER.size, entry.offset))
        if signature != b"PK\x03\x04":
            raise BadImage(f"{self.path} is damaged, or has changed since it was indexed")
        stored = self._read(entry.stored, entry.offset + _HEADER.size + name_length + extra_length)
        if not entry.deflated:
            return stored
        try:
            encoded = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, entry.size)
        except zlib.error as error:
            raise BadImage(f"damaged in {self.path}: {error}") from error
        if len(encoded) != entry.size:
            raise BadImage(f"damaged in {self.path}: {len(encoded)} bytes instead of {entry.size}")
        return encoded

    def _read(self, size: int, offset: int) -> bytes:
        if sys.platform == "win32":  # which has no positioned reads
            with self.path.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        else:
            data = os.pread(self._descriptor, size, offset)
        if len(data) != size:
            raise BadImage(f"{self.path} is truncated")
        return data


def list_zip(source: Source, progress: Progress) -> Listing:
    """List the images in a zip, sorted by name."""
    stamp = Stamp.of(source.path)
    try:
        with zipfile.ZipFile(source.path) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, struct.error, ValueError, EOFError, NotImplementedError) as error:
        raise _damaged(source, error) from error
    images = [info for info in infos if ending_of(info.filename) in IMAGE_ENDINGS]
    odd = next((info for info in images if info.flag_bits & 1 or info.compress_type not in (0, 8)), None)
    if odd is not None:
        reason = "encrypted" if odd.flag_bits & 1 else f"compressed by method {odd.compress_type}, not by deflate"
        raise UserError(f"In {source.path}, {odd.filename!r} is {reason}: unpack the zip and give the folder.")
    progress(len(images))
    return _listing(source, {_clean(info.filename): _zip_entry(info) for info in infos}, stamp=stamp)


def list_tar(source: Source, progress: Progress) -> Listing:
    """List the images in an uncompressed tar, sorted by name."""
    with source.path.open("rb") as file:
        start = file.read(8)
    if start.startswith(_COMPRESSED):
        folder = source.path.name.partition(".")[0]
        raise UserError(
            f"{source.path} is a compressed tar, which cannot be read in place: run `mkdir {folder} && tar -xf "
            f"{source.path} -C {folder}` and give --data {folder}."
        )
    stamp = Stamp.of(source.path)
    try:
        members = _tar_members(source.path, progress)
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise _damaged(source, error) from error
    return _listing(source, members, stamp=stamp)


def _zip_entry(info: zipfile.ZipInfo) -> Entry:
    return Entry(info.filename, info.file_size, info.header_offset, info.compress_size, info.compress_type != 0)


def _tar_members(path: Path, progress: Progress) -> dict[str, Entry]:
    members: dict[str, Entry] = {}
    num_images = 0
    with tarfile.open(path, "r:") as archive:
        while (info := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # or a million headers stay in memory
            name, target = _clean(info.name), _clean(info.linkname)
            if info.isreg() and not info.issparse():
                members[name] = Entry(name, info.size, info.offset_data)
                num_images += ending_of(name) in IMAGE_ENDINGS
                report(num_images, progress)
            elif info.islnk() and target in members:
                members[name] = members[target]
        # tarfile takes a damaged header for the end, which is a block of zeros.
        with path.open("rb") as file:
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"bad header at byte {archive.offset}")
    return members


def _listing(source: Source, members: dict[str, Entry], *, stamp: Stamp) -> Listing:
    prefix = f"{source.inside}/" if source.inside else ""
    below = [(name.removeprefix(prefix), entry) for name, entry in members.items() if name.startswith(prefix)]
    if prefix and not below:
        raise UserError(_missing(source, members))
    entries: list[Entry] = []
    ignored: Counter[str] = Counter()
    for name, entry in below:
        if any(part.startswith(".") or part == "__MACOSX" for part in name.split("/")):
            ignored["hidden"] += 1
        elif ending_of(name) in IMAGE_ENDINGS:
            entries.append(entry._replace(name=name))
        else:
            ignored[ending_of(name)] += 1
    require_images(source, entries, ignored)
    entries.sort(key=attrgetter("name"))
    return Listing(entries=entries, stamps={str(source.path): stamp}, ignored=ignored)


def _clean(name: str) -> str:
    """The name of an entry as a relative path; some programs write ``./a``, ``/a`` or a backslash."""
    return name.replace("\\", "/").lstrip("/").removeprefix("./")


def _missing(source: Source, members: dict[str, Entry]) -> str:
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


def _damaged(source: Source, error: Exception) -> UserError:
    return UserError(f"{source.path} is damaged or not a {source.kind} file: {error}. Copy or download it again.")
