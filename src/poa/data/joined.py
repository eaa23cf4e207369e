"""Several sources as one: their images one behind the other, their classes by name."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from poa.data.content import short_digest
from poa.data.table import Table


class Joined:
    """What an index knows of one table, of several."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables = tables
        self._ends = np.array(list(accumulate(map(len, tables))))
        self.source = " and ".join(table.source for table in tables)
        self.classes = tuple(sorted({name for table in tables for name in table.classes}))
        self.ignored: Mapping[str, int] = sum((Counter(table.ignored) for table in tables), Counter())
        self.notes = tuple(note for table in tables for note in table.notes)
        self.listed = short_digest(*(table.listed.encode() for table in tables))
        self.files_in = Path("/") if all(table.files_in for table in tables) else None

    def __len__(self) -> int:
        return int(self._ends[-1])

    @cached_property
    def labels(self) -> npt.NDArray[Any]:
        """The class of each image."""
        number = {name: label for label, name in enumerate(self.classes)}
        parts = []
        for table in self._tables:
            numbers = np.array([*(number[name] for name in table.classes), -1], np.int32)  # the last is that of -1
            parts.append(numbers[table.labels])
        return np.concatenate(parts)

    @property
    def digests(self) -> npt.NDArray[np.uint64]:
        """Digest of what each image holds."""
        return np.concatenate([table.digests for table in self._tables])

    def name(self, row: int) -> str:
        """The path of an image from its source on, below the name of the source."""
        table, row = self._place(row)
        return str(Path(table.files_in or table.source) / table.name(row))

    def read(self, row: int) -> bytes:
        """Read an encoded image."""
        table, row = self._place(row)
        return table.read(row)

    def _place(self, row: int) -> tuple[Table, int]:
        number = int(np.searchsorted(self._ends, row, side="right"))
        return self._tables[number], row - int(self._ends[number - 1]) if number else row
