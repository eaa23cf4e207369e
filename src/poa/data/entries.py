"""The image files of a source, in little memory."""

from array import array
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

NOWHERE = -1
"""The offset of what has a name in an archive, but no content there: links, devices."""


class Entry(NamedTuple):
    """One image file."""

    name: str
    """Path relative to the source, with ``/``; absolute where a list has it so."""
    size: int
    """In bytes."""
    offset: int = 0
    """In archives, of its header (zip) or of its first byte (others)."""
    stored: int = 0
    """In zips, bytes that it takes there."""
    deflated: bool = False
    """In zips, whether it is compressed."""
    file: int = 0
    """In several archives, the number of the one that it is in."""


class Entries:
    """Image files in order, in columns: a million of them take half of what a list of them would."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._numbers = {name: array(code) for name, code in zip(Entry._fields[1:], "qqqBi", strict=True)}

    def append(self, entry: Entry) -> None:
        """Add a file behind the others."""
        self.names.append(entry.name)
        for column, number in zip(self._numbers.values(), entry[1:], strict=True):
            column.append(number)

    def sort(self) -> npt.NDArray[np.int64]:
        """Order by name, those of one name as they came; returns the rows in which they were."""
        order = np.array(self.names, object).argsort(kind="stable")
        self.names = [self.names[row] for row in order]
        for column in self._numbers.values():
            column[:] = array(column.typecode, np.asarray(column)[order].tobytes())
        return order

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> "Entries":
        """Some of them, in that order."""
        taken = Entries()
        taken.names = [self.names[row] for row in rows]
        taken._numbers = {
            name: array(column.typecode, np.asarray(column)[rows].tobytes()) for name, column in self._numbers.items()
        }
        return taken

    @property
    def numbers(self) -> Mapping[str, npt.NDArray[Any]]:
        """All but the names, by the names of fields."""
        return {name: np.asarray(column) for name, column in self._numbers.items()}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, row: int) -> Entry:
        size, offset, stored, deflated, file = (column[row] for column in self._numbers.values())
        return Entry(self.names[row], size, offset, stored, bool(deflated), file)

    def __iter__(self) -> Iterator[Entry]:
        for name, size, offset, stored, deflated, file in zip(self.names, *self._numbers.values(), strict=True):
            yield Entry(name, size, offset, stored, bool(deflated), file)
