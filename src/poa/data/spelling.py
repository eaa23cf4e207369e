"""Files found by name, whichever way another program has spelt their paths."""

import posixpath
from collections.abc import Iterable

from poa.text import normal_form


class Spellings:
    """Numbers of files by name: as it is, else whatever the slashes, ``./``, capitals and forms of accents.

    A spelling that fits two files finds neither.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._exact = {name: number for number, name in enumerate(names)}
        self._loose: dict[str, list[int]] = {}
        for name, number in self._exact.items():
            self._loose.setdefault(_folded(name), []).append(number)

    def find(self, name: str) -> int | None:
        """The number of the file that is meant, if there is one."""
        if name in self._exact:
            return self._exact[name]
        fitting = self._loose.get(_folded(name), [])
        return fitting[0] if len(fitting) == 1 else None


def _folded(name: str) -> str:
    return normal_form(posixpath.normpath(name.replace("\\", "/")).lstrip("/")).casefold()
