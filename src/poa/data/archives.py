"""The listing of images in zip and tar files."""

import io
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from operator import itemgetter
from pathlib import Path

from poa.data.entries import Entries, Entry
from poa.data.images import IMAGE_ENDINGS
from poa.data.reading import HEADER, Members, Reader, Zipped, start
from poa.data.remote import raw_file, stamp_of
from poa.data.shards import expanded, shards_of
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
        images = [info for info in infos if ending_of(info.filename) in IMAGE_ENDINGS]
        _check_places(images + [info for info in infos if not ending_of(info.filename)], length=stamp.size)
    odd = next((info for info in images if info.flag_bits & 1 or info.compress_type not in (0, 8)), None)
    if odd is not None:
        reason = "encrypted" if odd.flag_bits & 1 else f"compressed by method {odd.compress_type}, not by deflate"
        raise UserError(f"In {source.path}, {odd.filename!r} is {reason}: unpack the zip and give the folder.")
    progress(len(images))
    members = {_clean(info.filename): _zip_entry(info) for info in infos}
    listing = _listing(source, members.items(), Zipped(str(source.path)), {})
    return replace(listing, stamps={str(source.path): stamp}, place=str(source.path))


def list_tar(source: Source, progress: Progress) -> Listing:
    """List the images in an uncompressed tar or in several, sorted by name.

    Where labels lie beside images (`webdataset`), each is named as if it were in the folder of its class. Where several
    tars have files of the same name, their names begin with the number of their tar.
    """
    shards = list(expanded(source.text)) if source.text else list(map(str, shards_of(source.path)))
    stamps = {each: stamp_of(each) for each in ([str(source.path)] if source.path.is_dir() else []) + shards}
    reader = Members(shards)
    members: list[tuple[str, Entry | None]] = []
    labels: dict[tuple[int, str], str] = {}
    for number, shard in enumerate(shards):
        found = _in_tar(shard, number, stamps[shard].size, partial(_further, progress, len(members)))
        labels |= {(number, key): label for key, label in labels_beside(found, reader).items()}
        members += found.items()
    if len({name for name, _ in members}) < len(members):
        members = [(name if entry is None else _numbered(name, entry.file), entry) for name, entry in members]
    listing = _listing(source, members, reader, labels)
    return replace(listing, stamps=stamps, place=shards)


def _in_tar(path: str, number: int, length: int, progress: Progress) -> dict[str, Entry | None]:
    """The files in one of the tars by name; None for what is no regular file."""
    with _Headers(raw_file(path), _AHEAD if is_remote(path) else io.DEFAULT_BUFFER_SIZE) as headers:
        if headers.peek(8).startswith(_COMPRESSED):
            folder = path.rpartition("/")[2].partition(".")[0]
            raise UserError(
                f"{path} is a compressed tar, which cannot be read in place: run `mkdir {folder} && tar -xf "
                f"{path} -C {folder}` and give --data {folder}."
            )
        with _refusing_damage(path, "tar"):
            members = _tar_members(headers, length, progress)
    return {name: entry and entry._replace(file=number) for name, entry in members.items()}


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


def _zip_entry(info: zipfile.ZipInfo) -> Entry | None:
    if stat.S_ISLNK(info.external_attr >> 16):
        return None
    return Entry(info.filename, info.file_size, info.header_offset, info.compress_size, info.compress_type != 0)


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


def _tar_members(file: _Headers, length: int, progress: Progress) -> dict[str, Entry | None]:
    """The files in a tar by name; None for what is no regular file."""
    members: dict[str, Entry | None] = {}
    num_images = place = 0
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (info := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # or a million headers stay in memory
            if info.size < 0 or not place < archive.offset < length + tarfile.BLOCKSIZE:
                raise tarfile.ReadError(f"the size of {info.name!r} is impossible")
            place = archive.offset
            name, target = _clean(info.name), _clean(info.linkname)
            if info.isreg() and not info.issparse():
                members[name] = Entry(name, info.size, info.offset_data)
                num_images += ending_of(name) in IMAGE_ENDINGS
                report(num_images, progress)
            elif not info.isdir():
                members[name] = members.get(target) if info.islnk() else None
        # tarfile takes a damaged header for the end, which is a block of zeros.
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"bad header at byte {archive.offset}")
    return members


def _listing(
    source: Source,
    members: Collection[tuple[str, Entry | None]],
    reader: Reader,
    labels: Mapping[tuple[int, str], str],
) -> Listing:
    """The images among the files of archives; ``labels`` are known by the archive's number and ``key_of`` the file."""
    prefix = f"{source.inside}/" if source.inside else ""
    below = [(name.removeprefix(prefix), entry) for name, entry in members if name.startswith(prefix)]
    if prefix and not below:
        raise UserError(_missing(source, [name for name, _ in members]))
    found: list[tuple[str, str, Entry]] = []
    ignored: Counter[str] = Counter()
    for name, entry in below:
        why = SPECIAL if entry is None else left_out(name, partial(start, reader, entry))
        label = "" if entry is None else labels.get((entry.file, key_of(entry.name)), "")
        if entry is not None and why is None:
            found.append((f"{label}/{name}" if label else name, label, entry))
        elif why is not None and not (label and why in LABEL_ENDINGS):
            ignored[why] += 1
    found.sort(key=itemgetter(0))
    entries = Entries()
    for name, _, entry in found:
        entries.append(entry._replace(name=name))
    require_images(source, entries, ignored)
    return Listing(
        entries=entries,
        labels=[label for _, label, _ in found] if labels else None,
        ignored=ignored,
        columns=f"labels are taken from the files {' and '.join(LABEL_ENDINGS)} beside the images" if labels else "",
    )


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
