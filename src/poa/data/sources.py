"""What ``--data`` may name, and the images in a folder or in a list of paths."""

import csv
import io
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from poa.errors import UserError, counted, nearest

IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"})
_DELIMITERS = {".txt": None, ".csv": ",", ".tsv": "\t"}
_TAR_ENDINGS = frozenset({".tar", ".tgz", ".tbz2", ".txz"})
_COMPRESSED = frozenset({".gz", ".bz2", ".xz", ".zst"})
_DIGITS_PARTS = ("", "train", "test")
_REPORT_EVERY = 1000

Kind = Literal["folder", "list", "zip", "tar", "digits"]
Progress = Callable[[int], None]
"""Called with the number of images found so far."""


class Source(NamedTuple):
    """A resolved folder, list or archive of images."""

    kind: Kind
    path: Path
    inside: str = ""
    """Folder inside an archive, or part of an embedded set; empty for all of it."""

    def __str__(self) -> str:
        return f"{self.path}/{self.inside}" if self.inside else str(self.path)


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


class Stamp(NamedTuple):
    """State of a file or folder that changes when its content does."""

    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        """Take the stamp of a path."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The images of a source in their final order."""

    entries: list[Entry]
    labels: list[str] | None = None
    """Class name of each, empty where it has none; None if the names of the folders are the labels."""
    stamps: dict[str, Stamp] = field(default_factory=dict)
    """Of the files and folders that were read; the listing is valid as long as they do not change."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Number of other files by ending."""
    blob: bytes = b""
    """Of an embedded set."""


def resolve(data: str) -> Source:
    """Find what ``--data`` names.

    That is a folder; a text or CSV list of paths; a zip or tar, or a folder inside one (``set.zip/train``);
    ``digits``, ``digits/train`` or ``digits/test`` (a folder of that name is meant by ``./digits``).
    """
    name, _, part = data.partition("/")
    if name == "digits":
        return Source("digits", Path("digits"), _digits_part(part.strip("/")))
    if not data:
        raise UserError("--data is empty: give a folder of images, a zip or tar, a list of paths, or `digits`.")
    path = Path(data).expanduser()
    try:
        if path.is_dir():
            return Source("folder", path.resolve())
        for outer in (path, *path.parents):
            if outer.is_file():
                # Not outer.resolve(): stores that link to files by their hash keep the ending in the link's name only.
                return _resolve_file(outer.parent.resolve() / outer.name, "/".join(path.relative_to(outer).parts))
        raise UserError(_missing(path))
    except OSError as error:
        raise unreadable(error, path) from error


def list_folder(source: Source, progress: Progress) -> Listing:
    """List the images of a folder and of all folders below, sorted by name.

    A folder that is reached again through a link is not listed again, so that loops end; the shortest path wins.
    """
    entries: list[Entry] = []
    stamps: dict[str, Stamp] = {}
    ignored: Counter[str] = Counter()
    visited: set[tuple[int, int]] = set()
    pending = deque([""])
    while pending:
        prefix = pending.popleft()
        folder = source.path / prefix
        status = folder.stat()
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        stamps[str(folder)] = Stamp(status.st_size, status.st_mtime_ns)
        pending.extend(_scan(folder, prefix, entries=entries, ignored=ignored, progress=progress))
    require_images(source, entries, ignored)
    entries.sort(key=attrgetter("name"))
    return Listing(entries=entries, stamps=stamps, ignored=ignored)


def list_paths(source: Source, progress: Progress) -> Listing:
    """List the images that a text or CSV file names, in its order.

    Paths are relative to the folder of the list. Without a second column the labels are the names of the folders.
    """
    rows = _rows(source.path)
    if rows and ending_of(rows[0][0]) not in IMAGE_ENDINGS:
        rows = rows[1:]  # a header
    if not rows:
        raise UserError(f"The list {source} is empty: it needs the path of one image per line.")
    stamps = {str(source.path): Stamp.of(source.path)}
    entries: list[Entry] = []
    labels: list[str] = []
    missing: list[str] = []
    ignored: Counter[str] = Counter()
    for name, label in rows:
        if ending_of(name) not in IMAGE_ENDINGS:
            ignored[ending_of(name)] += 1
            continue
        size = _size(source.path.parent, name)
        if size is None:
            missing.append(name)
            continue
        entries.append(Entry(name, size))
        labels.append(label)
        report(len(entries), progress)
    if missing:
        first = ", ".join(map(repr, missing[:3]))
        raise UserError(
            f"{len(missing):,} of {counted(len(rows), 'file')} in the list {source} cannot be found, such as "
            f"{first}: paths are relative to {source.path.parent}. Correct the paths or remove these lines."
        )
    require_images(source, entries, ignored)
    return Listing(entries=entries, labels=labels if any(labels) else None, stamps=stamps, ignored=ignored)


def folder_labels(names: Iterable[str]) -> list[str]:
    """Take the first folder in each path as its label; empty for a path without folder, absolute or leading upwards."""
    return ["" if name.startswith(("/", "../")) else name.rpartition("/")[0].partition("/")[0] for name in names]


def ending_of(name: str) -> str:
    """The ending of a file name in lower case with its dot; empty if there is none."""
    _, dot, ending = name.rpartition("/")[2].rpartition(".")
    return dot + ending.lower() if dot else ""


def report(found: int, progress: Progress) -> None:
    """Report the progress, but not so often that it takes longer than finding images."""
    if found % _REPORT_EVERY == 0:
        progress(found)


def require_images(source: Source, entries: list[Entry], ignored: Counter[str]) -> None:
    """Refuse a source without images, and name the files that it has instead."""
    if entries:
        return
    if not ignored:
        raise UserError(f"There is no file in {source}: give a folder, zip, tar or list with images.")
    kinds = [f"{count:,} {ending or 'without ending'}" for ending, count in ignored.most_common(5)]
    rest = f" and {len(ignored) - 5} other kinds" if len(ignored) > 5 else ""
    raise UserError(
        f"There is no image in {source}, only other files: {', '.join(kinds)}{rest}. "
        f"Images end in {', '.join(sorted(IMAGE_ENDINGS))}; convert yours or give another --data."
    )


def unreadable(error: OSError, path: Path) -> UserError:
    """An error of the system as a sentence."""
    return UserError(
        f"Cannot read {error.filename or path}: {error.strerror or error}. "
        "Check that it is there and that you may read it (chmod u+r FILE, chmod u+rx FOLDER)."
    )


def _digits_part(part: str) -> str:
    if part not in _DIGITS_PARTS:
        raise UserError(f"The embedded set `digits` has no part {part!r}. {nearest(part, _DIGITS_PARTS[1:])}")
    return part


def _resolve_file(path: Path, inside: str) -> Source:
    ending = path.suffix.lower()
    if ending == ".zip":
        return Source("zip", path, inside)
    if ending in _TAR_ENDINGS or (ending in _COMPRESSED and path.stem.lower().endswith(".tar")):
        return Source("tar", path, inside)
    if inside:
        raise UserError(f"{path} is not a zip or tar file, so it cannot contain {inside!r}. Check --data.")
    if ending in _DELIMITERS:
        return Source("list", path)
    if ending in IMAGE_ENDINGS:
        raise UserError(f"{path} is a single image: give the folder it is in, {path.parent}, or a .txt list of images.")
    raise UserError(
        f"{path} cannot be used as data: give a folder, a .zip, a .tar, or a list of paths in .txt, .csv or .tsv."
    )


def _missing(path: Path) -> str:
    is_word = len(path.parts) == 1
    path = path.absolute()
    folder = next(parent for parent in path.parents if parent.is_dir())
    with os.scandir(folder) as siblings:
        names = [entry.name for entry in siblings if ending_of(entry.name) not in IMAGE_ENDINGS]
    choices = ["digits"] * is_word + sorted(name for name in names if not name.startswith("."))
    advice = nearest(path.relative_to(folder).parts[0], choices) if choices else "There is nothing in it."
    return f"{path} does not exist, but the folder {folder} does. {advice}"


def _scan(folder: Path, prefix: str, *, entries: list[Entry], ignored: Counter[str], progress: Progress) -> list[str]:
    """Add the images of one folder to the entries and return its sub-folders, real ones before links."""
    folders: list[tuple[bool, str]] = []
    with os.scandir(folder) as found:
        for item in found:
            ending = ending_of(item.name)
            try:
                if item.name.startswith(".") or item.name == "__MACOSX":
                    ignored["hidden"] += 1
                elif item.is_dir():
                    folders.append((item.is_symlink(), f"{prefix}{item.name}/"))
                elif ending in IMAGE_ENDINGS and item.is_file():
                    entries.append(Entry(prefix + item.name, item.stat().st_size))
                    report(len(entries), progress)
                else:
                    ignored[ending] += 1
            except OSError:  # a circular link, or a file that was deleted just now
                ignored["broken link"] += 1
    return [name for _, name in sorted(folders)]


def _rows(path: Path) -> list[tuple[str, str]]:
    text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")  # like the system's own file names
    delimiter = _DELIMITERS[path.suffix.lower()]
    lines = csv.reader(io.StringIO(text), delimiter=delimiter) if delimiter else ([line] for line in text.split("\n"))
    try:
        cells = [[cell.strip() for cell in line] for line in lines]
    except csv.Error as error:
        raise UserError(f"The list {path} is not a valid CSV file: {error}. Write one path per line.") from error
    return [(row[0].removeprefix("./"), row[1] if len(row) > 1 else "") for row in cells if row and row[0]]


def _size(folder: Path, name: str) -> int | None:
    try:
        return os.stat(os.path.join(folder, name)).st_size  # noqa: PTH116, PTH118 (three times as fast as Path)
    except (OSError, ValueError):
        return None


def list_digits(source: Source, progress: Progress) -> Listing:
    """List scikit-learn's ``load_digits``: 1,797 grey images of 8x8 pixels in 10 classes, sorted by class.

    Of each class, in the order of the set, every fourth image is in ``digits/test`` and the others are in
    ``digits/train``; ``digits`` is all of them. Each is a lossless PNG, the ink from 0 to 16 scaled to 0..255.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (CC BY 4.0), as in scikit-learn.
    """
    from sklearn.datasets import load_digits  # only here: importing it takes long and few runs need it

    digits = load_digits()
    ink = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    entries: list[Entry] = []
    blob = io.BytesIO()
    for digit in range(10):
        for number in _members(np.flatnonzero(digits.target == digit), source.inside):
            offset = blob.tell()
            Image.fromarray(ink[number]).save(blob, "PNG")
            entries.append(Entry(f"{digit}/{number:04d}.png", blob.tell() - offset, offset))
    progress(len(entries))
    return Listing(entries=entries, blob=blob.getvalue())


def _members(numbers: npt.NDArray[np.intp], part: str) -> list[int]:
    is_test = np.arange(len(numbers)) % 4 == 3
    chosen = {"": numbers, "train": numbers[~is_test], "test": numbers[is_test]}[part]
    return [int(number) for number in chosen]
