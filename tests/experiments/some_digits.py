"""A part of the embedded digits as a folder, to score on."""

from pathlib import Path

from poa.data.index import open_index


def some_digits(name: str, folder: Path) -> str:
    """Six images of each class, as a folder."""
    index = open_index(name, limit=60)
    for number in range(len(index)):
        path = folder / index.name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(index.read(number))
    return str(folder)
