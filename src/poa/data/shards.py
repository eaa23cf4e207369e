"""Sets of images in several tars: which files are meant."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from poa.errors import UserError, counted

TAR = ".tar"
_ABOUT = ("", ".txt", ".md", ".json", ".jsonl", ".yaml", ".csv", ".tsv", ".idx", ".index", ".log", ".parquet")
"""Endings of texts and tables about tars, as img2dataset and others write them."""
MOST_SHARDS = 10_000
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{},]*(?:,[^{},]*)+))\}")


def is_pattern(path: Path) -> bool:
    """Whether a path names several tars, as ``shards/{000..099}.tar``."""
    return path.suffix.lower() == TAR and _BRACES.search(str(path)) is not None


def has_shards(folder: Path) -> bool:
    """Whether a folder has tars in it, and beside them nothing but texts and tables about them."""
    found = False
    with os.scandir(folder) as items:
        for item in items:
            if item.name.startswith("."):
                continue
            ending = Path(item.name).suffix.lower()
            if not item.is_file() or ending not in (TAR, *_ABOUT):
                return False
            found |= ending == TAR
    return found


def beside(path: Path) -> Counter[str]:
    """Endings of what a folder has beside its tars; nothing where no folder is named."""
    files = path.iterdir() if path.is_dir() else ()
    return Counter(each.suffix.lower() for each in files if each.suffix.lower() != TAR and each.name[0] != ".")


def shards_of(path: Path) -> list[Path]:
    """The tars that a path names: itself, those of a pattern in its order, those in a folder by name."""
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(each for each in path.iterdir() if each.suffix.lower() == TAR and each.name[0] != ".")
    shards = []
    for name in expanded(str(path)):
        shards.append(Path(name))
        if len(shards) > MOST_SHARDS:
            raise UserError(f"{path} names more than {MOST_SHARDS:,} files. Correct the numbers in its braces.")
    missing = [str(shard) for shard in shards if not shard.is_file()]
    if missing:
        are = "does" if len(missing) == 1 else "do"
        raise UserError(
            f"{len(missing):,} of the {counted(len(shards), 'file')} that {path} names {are} not exist, such as "
            f"{missing[0]}. Correct the numbers in its braces, or name the folder to take all tars in it."
        )
    return shards


def expanded(text: str) -> Iterator[str]:
    """All texts that braces stand for: ``{8..10}`` for 8, 9, 10; ``{08..10}`` for 08, 09, 10; ``{a,b}`` for a, b."""
    found = _BRACES.search(text)
    if found is None:
        yield text
        return
    first, last, words = found.groups()
    numbers = range(int(first), int(last) + 1) if first else ()
    for word in words.split(",") if words is not None else (f"{number:0{len(first)}}" for number in numbers):
        for rest in expanded(text[found.end() :]):
            yield f"{text[: found.start()]}{word}{rest}"
