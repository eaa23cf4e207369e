"""Rows of Parquet and Arrow files, read at random: row group by row group, of which the last few stay in memory."""

import os
from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from poa.data.entries import Entry
from poa.data.images import IMAGE_ENDINGS, BadImage, check_bytes
from poa.errors import lacking

PARQUET = ".parquet"
TABLE_ENDINGS = frozenset({PARQUET, ".arrow", ".feather"})
MOST_BYTES = 1 << 28
"""Of images whose row groups stay in memory, in each process; one row group always does."""
_MOST_OPEN = 64
_ARROW_FILE = b"ARROW1"
"""Begins Arrow files that have a list of their record batches; those of ``datasets`` have none."""


class RowFiles(NamedTuple):
    """Where the rows of a source are; a row is known by its number among those of all files."""

    files: dict[str, list[int]]
    """How many rows each row group of a file has."""
    column: str
    """Of the images."""
    is_struct: bool
    """Whether the column has fields, and the images are its field ``bytes``."""
    largest: int = 0
    """Bytes of the images of the largest row group."""

    @property
    def needed(self) -> str:
        """The part of the column that is read."""
        return f"{self.column}.bytes" if self.is_struct else self.column


class OpenedRows(NamedTuple):
    """A file of rows: its schema, how many rows each row group (in Arrow files record batch) has, and what reads one.

    Reading takes the number of the row group and columns (``column.field`` is a field alone).
    """

    schema: Any
    rows: list[int]
    read: Callable[[int, list[str]], Any]


def open_rows(path: Path) -> OpenedRows:
    """Open a file; raises errors of pyarrow if it is damaged."""
    try:
        import pyarrow as arrow  # only here: it takes long and few runs need it
        from pyarrow import ipc, parquet
    except ImportError:
        raise lacking(str(path), "pyarrow", extra="parquet") from None
    if path.suffix.lower() == PARQUET:
        table = parquet.ParquetFile(path)
        rows = [table.metadata.row_group(number).num_rows for number in range(table.num_row_groups)]
        return OpenedRows(table.schema_arrow, rows, partial(table.read_row_group, use_threads=False))
    file = arrow.memory_map(str(path))  # what is not compressed is used where it lies in the file
    if file.read(len(_ARROW_FILE)) == _ARROW_FILE:
        batches = ipc.open_file(file)
        rows = [batches.get_batch(number).num_rows for number in range(batches.num_record_batches)]
        return OpenedRows(batches.schema, rows, lambda number, _: batches.get_batch(number))
    file.seek(0)
    stream = ipc.open_stream(file)
    parts = list(stream)
    return OpenedRows(stream.schema, [part.num_rows for part in parts], lambda number, _: parts[number])


def has_tables(folder: Path) -> bool:
    """Whether a folder has Parquet or Arrow files, in it or in ``data``, and neither images nor other folders."""
    if (folder / "dataset_dict.json").is_file():  # parts of a set, as `datasets` saves them
        return True
    found = False
    with os.scandir(folder) as items:
        for item in items:
            ending = Path(item.name).suffix.lower()
            is_folder = not (item.name.startswith(".") or item.is_file() or item.name == "data")
            if ending in IMAGE_ENDINGS or is_folder:
                return False
            found |= ending in TABLE_ENDINGS
    return found or ((folder / "data").is_dir() and has_tables(folder / "data"))


def images_of(group: Any, place: RowFiles) -> Any:
    """The encoded images of a row group, as an array of Arrow."""
    from pyarrow import compute

    column = group.column(place.column)
    return compute.struct_field(column, "bytes") if place.is_struct else column


class Rows:
    """The images of a source, read by any number of threads at once."""

    def __init__(self, place: RowFiles) -> None:
        self._place = place
        self._groups = [(Path(file), number) for file, rows in place.files.items() for number in range(len(rows))]
        self._starts = list(accumulate((number for rows in place.files.values() for number in rows), initial=0))
        self._lock = Lock()
        self._open = lru_cache(_MOST_OPEN)(open_rows)
        self._group = lru_cache(max(1, MOST_BYTES // max(1, place.largest)))(self._read_group)

    def read(self, entry: Entry) -> bytes:
        """Read the image in a row, which was so large when it was listed.

        Raises:
            BadImage: The file is damaged, or has changed.
        """
        row, size = entry.offset, entry.size
        check_bytes(size)
        number = bisect_right(self._starts, row) - 1
        path, _ = self._groups[number]
        try:
            with self._lock:
                encoded = self._group(number)[row - self._starts[number]].as_buffer()
        except (ValueError, IndexError, KeyError) as error:  # those of pyarrow are ValueErrors
            raise BadImage(f"damaged in {path}: {error}") from error
        if encoded is None or encoded.size != size:
            raise BadImage(f"{path} has changed since it was indexed")
        return bytes(encoded)

    def parts(self, entry: Entry) -> Callable[[int, int], bytes]:
        """What reads parts of an image."""
        return partial(_part, self.read(entry))

    def _read_group(self, number: int) -> Any:
        path, of_file = self._groups[number]
        return images_of(self._open(path).read(of_file, [self._place.needed]), self._place)


def _part(image: bytes, offset: int, length: int) -> bytes:
    return image[offset : offset + length]
