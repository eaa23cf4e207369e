"""The table of the images of a source, in a folder of the cache that is never changed once written."""

import contextlib
import json
import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from poa.data.content import (
    CONTENT,
    THREADS,
    Content,
    Count,
    are_unchanged,
    content_of_entry,
    content_of_file,
    contents,
    short_digest,
)
from poa.data.entries import Entries, Entry
from poa.data.kinds import READERS
from poa.data.reading import Reader
from poa.data.remote import stamp_of
from poa.data.sources import Kind, Listing, Source, Stamp, folder_label, is_remote, notes
from poa.errors import UserError

_DAMAGED = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError)
"""How the files of a table that a crash or a full disk cut short fail to be read."""
_AT_ONCE = 1000
"""Records that are read from the file at a time."""
_RECORD = np.dtype(
    [
        ("name_end", "<i8"),
        ("size", "<i8"),
        ("offset", "<i8"),
        ("stored", "<i8"),
        ("deflated", "?"),
        ("file", "<i4"),
        ("label", "<i4"),
    ]
)


@dataclass(frozen=True, eq=False)
class Table:
    """The content of one folder of the cache: one record an image, and the names one after the other."""

    folder: Path
    kind: Kind
    place: Any
    """Of the listing."""
    source: str
    classes: tuple[str, ...]
    ignored: Mapping[str, int]
    """Number of other files by ending."""
    notes: tuple[str, ...]
    listed: str
    records: npt.NDArray[Any]
    names: npt.NDArray[np.uint8]

    @classmethod
    def load(cls, folder: Path) -> "Table":
        """Map the files of a folder."""
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        return cls(
            folder=folder,
            kind=meta["kind"],
            place=meta["place"],
            source=meta["source"],
            classes=tuple(meta["classes"]),
            ignored=meta["ignored"],
            notes=tuple(meta["notes"]),
            listed=meta["listed"],
            records=np.asarray(np.load(folder / "records.npy", mmap_mode="r")),
            names=np.asarray(np.load(folder / "names.npy", mmap_mode="r")),
        )

    @cached_property
    def contents(self) -> npt.NDArray[Any]:
        """Times and digest of each file."""
        found = np.asarray(np.load(self.folder / "contents.npy", mmap_mode="r"))
        if found.shape != self.records.shape or found.dtype != CONTENT:
            raise ValueError("the digests are those of other files")
        return found

    @property
    def files_in(self) -> Path | None:
        """The folder from which names start; None in an archive."""
        return Path(self.place) if self.kind in ("folder", "list") else None

    def paths(self) -> Iterator[str]:
        """Of all images, where each is a file of its own; none in an archive."""
        if self.files_in is None:
            return
        folder, start = str(self.files_in), 0
        for first in range(0, len(self.records), _AT_ONCE):  # record by record it takes ten times as long
            ends = self.records["name_end"][first : first + _AT_ONCE].tolist()
            names = self.names[start : ends[-1]].tobytes()
            for begin, end in pairwise([start, *ends]):
                name = names[begin - start : end - start].decode("utf-8", "surrogateescape")
                yield os.path.join(folder, name)  # noqa: PTH118
            start = ends[-1]

    def entry(self, row: int) -> Entry:
        """The file of image ``row``."""
        end, *numbers, _ = self.records[row].item()
        start = self.records[row - 1]["name_end"] if row else 0
        name = self.names[start:end].tobytes().decode("utf-8", "surrogateescape")
        return Entry(name, *numbers)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def labels(self) -> npt.NDArray[Any]:
        """The class of each image."""
        return np.asarray(self.records["label"])

    @property
    def digests(self) -> npt.NDArray[np.uint64]:
        """Digest of what each image holds."""
        return np.asarray(self.contents["digest"])

    def name(self, row: int) -> str:
        """The path of image ``row`` relative to the source."""
        return self.entry(row).name

    def read(self, row: int) -> bytes:
        """Read the encoded image ``row``."""
        return self.reader.read(self.entry(row))

    @cached_property
    def reader(self) -> Reader:
        """Reads the images."""
        return READERS[self.kind](self.place or [str(self.folder / "blob.bin")])


def write_listing(listing: Listing, source: Source, folder: Path) -> None:
    """Write the table of a listing, but for what the files hold, unless the listing says so."""
    entries = listing.entries
    ends, listed = _write_names(entries, folder)
    classes, labels = _labels(listing)
    records = np.zeros(len(entries), _RECORD)
    for column, values in {"name_end": ends, "label": labels, **entries.numbers}.items():
        records[column] = values
    np.save(folder / "records.npy", records)
    (folder / "blob.bin").write_bytes(listing.blob)
    meta = {
        "kind": source.kind,
        "place": listing.place,
        "source": str(source),
        "classes": classes,
        "ignored": dict(listing.ignored),
        "notes": notes(source, listing),
        "listed": listed,
    }
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    if listing.contents is not None:
        np.save(folder / "contents.npy", listing.contents)
    (folder / "stamps.json").write_text(json.dumps(listing.stamps), encoding="utf-8")


def _write_names(entries: Entries, folder: Path) -> tuple["array[int]", str]:
    """Returns where each name ends, and a digest of names and sizes."""
    names, ends = bytearray(), array("q")
    for name in entries.names:
        names += name.encode("utf-8", "surrogateescape")
        ends.append(len(names))
    np.save(folder / "names.npy", np.frombuffer(names, np.uint8))
    return ends, short_digest(names, ends.tobytes(), entries.numbers["size"].tobytes())


def _labels(listing: Listing) -> tuple[list[str], npt.NDArray[np.int32]]:
    """Names of the classes, and the class of each image; no name is kept for each image."""
    names = listing.entries.names if listing.labels is None else listing.labels
    label_of: Callable[[str], str] = folder_label if listing.labels is None else str
    classes = sorted(set(map(label_of, names)) - {""})
    number = {name: label for label, name in enumerate(classes)} | {"": -1}
    return classes, np.fromiter((number[label_of(name)] for name in names), np.int32, len(names))


def write_contents(folder: Path, *, earlier: Iterable[Path], progress: Count) -> str:
    """Look at the files of a listing that was written; returns a digest of what they are and hold.

    Files that are as an ``earlier`` table of the source says are not read again, nor those that the listing knows.
    """
    table = Table.load(folder)
    if not (folder / "contents.npy").exists():
        np.save(folder / "contents.npy", _look(table, _known(earlier), progress))
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    (folder / "sizes.json").write_text(json.dumps(sizes), encoding="utf-8")
    stamps = json.loads((folder / "stamps.json").read_text(encoding="utf-8"))
    return short_digest(
        repr(sorted((path, *stamp) for path, stamp in stamps.items())).encode(), table.contents.tobytes()
    )


def _look(table: Table, known: Callable[[str], tuple[int, Content] | None], progress: Count) -> npt.NDArray[Any]:
    """What all files hold."""
    number = len(table)
    if table.files_in is not None:
        return contents(lambda path: content_of_file(path, known(path)), table.paths(), number, progress)
    order = np.lexsort((table.records["offset"], table.records["file"]))
    found = np.zeros(number, CONTENT)
    found[order] = contents(
        lambda entry: content_of_entry(entry.size, partial(table.reader.parts, entry)),
        map(table.entry, order),
        number,
        progress,
        threads=THREADS if is_remote(table.source) else 1,  # more would wait for one another rather than for the disk
    )
    return found


def _known(earlier: Iterable[Path]) -> Callable[[str], tuple[int, Content] | None]:
    """What finds size and content of a file by its path, in the first of earlier tables that is whole."""
    for folder in earlier:
        with contextlib.suppress(*_DAMAGED):
            table = Table.load(folder)
            found = np.fromiter(map(hash, table.paths()), np.int64, len(table.contents) if table.files_in else 0)
            rows = found.argsort().astype(np.int32)
            found.sort()
            return partial(_find, table, rows, found.data)
    return lambda _: None


def _find(
    table: Table, rows: npt.NDArray[np.int32], hashes: "memoryview[int]", path: str
) -> tuple[int, Content] | None:
    """Hashes of a million paths take a thirtieth of what the paths take.

    Two files of one hash would be confused if their sizes and times were the same too, to the nanosecond.
    """
    place = bisect_left(hashes, hash(path))
    if place == len(hashes) or hashes[place] != hash(path):
        return None
    row = int(rows[place])
    return int(table.records["size"][row]), Content(*table.contents[row].item())


def is_valid(folder: Path) -> bool:
    """Whether a table is whole and its source unchanged."""
    try:
        sizes = json.loads((folder / "sizes.json").read_text(encoding="utf-8"))
        if any((folder / name).stat().st_size != size for name, size in sizes.items()):  # a crash may leave empty files
            return False
        table = Table.load(folder)
        stamps = json.loads((folder / "stamps.json").read_text(encoding="utf-8"))
        if not all(stamp_of(path) == Stamp(*stamp) for path, stamp in stamps.items()):
            return False
        number = len(table.records) if table.files_in else 0
        return are_unchanged(table.paths(), table.records["size"][:number], table.contents[:number])
    except UserError:  # a server that stays away
        raise
    except _DAMAGED:
        return False
