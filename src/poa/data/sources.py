"""What ``--data`` may name, and the images in a folder."""

import os
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from poa.data.entries import Entries, Entry
from poa.data.images import ARRAY_ENDINGS, IMAGE_ENDINGS, LACKING, BadImage, begins_as_image, check_bytes
from poa.data.rows import TABLE_ENDINGS, has_tables
from poa.data.shards import has_shards, is_pattern
from poa.errors import UserError, counted, nearest
from poa.text import names_of, system_path

HIDDEN, SYSTEM, SPECIAL, BROKEN = "hidden", "system folders", "links, devices or sparse files", "broken links"
"""Kinds of files that are left out, beside their endings."""
_HIDDEN = frozenset({"__macosx", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini"})
_SYSTEM = frozenset({"@eadir", "@tmp", "@sharebin", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"})
_SYSTEM |= {"~snapshot", "$recycle.bin", "lost+found", "system volume information", "network trash folder"}
"""Folders of thumbnails, deleted files and the like that systems put beside the user's, in lower case."""
_OF_RUN = {"config.yaml", "env.json"}
"""Files by which the folder of a run is known."""
_LIST_ENDINGS = frozenset({".txt", ".csv", ".tsv"})
_TAR_ENDINGS = frozenset({".tar", ".tgz", ".tbz2", ".txz"})
_COMPRESSED = frozenset({".gz", ".bz2", ".xz", ".zst"})
HUB = "hf:"
"""Begins the names of sets of the Hugging Face hub."""
_DIGITS_PARTS = ("", "train", "test")
_REPORT_EVERY = 1000

Kind = Literal["folder", "list", "zip", "tar", "rows", "hub", "remote", "digits"]
Data: TypeAlias = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""What ``--data`` says: the name of a source, or those of several."""
Progress = Callable[[int], None]
"""Called with the number of images found so far."""


class Source(NamedTuple):
    """A resolved folder, list, archive or table of images."""

    kind: Kind
    path: Path
    inside: str = ""
    """Folder inside an archive, or part of a set; empty for all of it."""
    text: str = ""
    """What it is called, where that is not a path."""

    def __str__(self) -> str:
        if self.text:
            return self.text
        return f"{self.path}/{self.inside}" if self.inside else str(self.path)


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

    entries: Entries
    labels: list[str] | None = None
    """Class name of each, empty where it has none; None if the names of the folders are the labels."""
    stamps: dict[str, Stamp] = field(default_factory=dict)
    """Of the files and folders that were read; the listing is valid as long as they do not change."""
    place: Any = None
    """What its reader is made of (``kinds``), as JSON: a folder from which names start, archives that entries name
    by number ... None if that is the blob."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Number of other files by ending."""
    columns: str = ""
    """What columns are taken for, in words; empty where there is one."""
    blob: bytes = b""
    """Encoded images of an embedded set, one after the other."""
    contents: npt.NDArray[Any] | None = None
    """What each image holds, if that was seen while listing."""


def resolve(data: str | os.PathLike[str]) -> Source:
    """Find what ``--data`` names.

    That is a folder; a list of paths; a zip or tar, or a folder inside one (``set.zip/train``); several tars
    (``shards/{000..099}.tar``, or their folder); a Parquet file, a folder of these, or a part of it (``set/train`` for
    files ``train-00000-of-00002.parquet``); a set of the Hugging Face hub or a part of it (``hf:NAME:train``);
    ``digits``, ``digits/train`` or ``digits/test`` (not ``./digits``).
    """
    data = system_path(os.fspath(data))
    if data.startswith(HUB):
        return _resolve_hub(data)
    if is_remote(data):
        return Source("tar" if is_archive(data) else "remote", Path(data), text=data)
    name, _, part = data.partition("/")
    if name == "digits":
        return Source("digits", Path("digits"), _digits_part(part.strip("/")))
    if not data:
        raise UserError("--data is empty: give a folder of images, a zip or tar, a list of paths, or `digits`.")
    path = Path(data).expanduser()
    try:
        if path.is_dir():
            kind: Kind = "tar" if has_shards(path) else "rows" if has_tables(path) else "folder"
            return Source(kind, path.resolve())
        for outer in (path, *path.parents):
            inside = "/".join(path.relative_to(outer).parts)
            if outer.is_file():
                # Not outer.resolve(): stores that link to files by their hash keep the ending in the link's name only.
                return _resolve_file(outer.parent.resolve() / outer.name, inside)
            if is_pattern(outer):
                return Source("tar", outer.absolute(), inside)
            if outer.is_dir() and has_tables(outer):
                return Source("rows", outer.resolve(), inside)
        if path.exists():
            raise UserError(f"{path} is a pipe or a device: write what it gives to a file and name that.")
        raise UserError(_missing(path))
    except OSError as error:
        raise unreadable(error, path) from error


def check_out(out: Path, *data: Data) -> None:
    """See that pictures written to ``out`` are not among the images, where later commands would take them for some.

    In the folder of a run they are not, since runs are left out.
    """
    out = out.expanduser().resolve()
    for source in (resolve(name) for each in data for name in names_of(each)):
        if not source.path.is_dir() or not out.is_relative_to(source.path):
            continue
        between = [place for place in (out, *out.parents) if place != source.path and place.is_relative_to(source.path)]
        if not any(all((place / name).exists() for name in _OF_RUN) for place in between):
            raise UserError(
                f"{out} is in the folder of images {source.path}, so pictures written there would be taken for images. "
                "Choose another --out."
            )


def list_folder(source: Source, progress: Progress) -> Listing:
    """List the images of a folder and of all folders below, sorted by name.

    A folder that is reached again through a link is not listed again, so that loops end; the shortest path wins. The
    folders of runs are left out, for they hold pictures.
    """
    entries = Entries()
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
        if prefix and all(os.path.lexists(folder / name) for name in _OF_RUN):
            ignored["folders of runs"] += 1
            continue
        stamps[str(folder)] = Stamp(status.st_size, status.st_mtime_ns)
        with os.scandir(folder) as items:
            pending.extend(_scan(items, prefix, entries=entries, ignored=ignored, progress=progress))
    require_images(source, entries, ignored)
    entries.sort()
    return Listing(entries=entries, stamps=stamps, place=str(source.path), ignored=ignored)


def without_arrays(listing: Listing) -> Listing:
    """Leave arrays out where there are other images: there they may be features or masks."""
    is_array = np.array([name.lower().endswith(ARRAY_ENDINGS) for name in listing.entries.names])
    if is_array.all() or not is_array.any():
        return listing
    kept, others = np.flatnonzero(~is_array), np.flatnonzero(is_array)
    labels = None if listing.labels is None else [listing.labels[row] for row in kept]
    ignored = listing.ignored + Counter(ending_of(listing.entries.names[row]) for row in others)
    contents = None if listing.contents is None else listing.contents[kept]
    return replace(listing, entries=listing.entries.take(kept), labels=labels, ignored=ignored, contents=contents)


def folder_label(name: str) -> str:
    """Take the first folder in a path as its label; empty for a path without folder, absolute or leading upwards."""
    return "" if name.startswith(("/", "../")) else name.rpartition("/")[0].partition("/")[0]


def ending_of(name: str) -> str:
    """The ending of a file name in lower case with its dot; empty if there is none."""
    _, dot, ending = name.rpartition("/")[2].rpartition(".")
    return dot + ending.lower() if dot else ""


def left_out(name: str, start: Callable[[], bytes]) -> str | None:
    """Why a file is not taken as an image, None if it is; ``start`` reads its first bytes.

    That is its ending, or that it or a folder in its path is hidden or of the system.
    """
    parts = name.lower().split("/")
    if any(part.startswith(".") or part in _HIDDEN for part in parts):
        return HIDDEN
    if any(part in _SYSTEM for part in parts):
        return SYSTEM
    ending = ending_of(parts[-1])
    return None if ending in IMAGE_ENDINGS or (not ending and begins_as_image(start())) else ending


def read_file(path: Path, most: int | None = None) -> bytes:
    """Read a regular file, or its first bytes.

    Raises:
        BadImage: It is a pipe, a device or a folder, or larger than an image may be.
    """
    with open(system_path(str(path)), "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("not a regular file")
        if most is None:
            check_bytes(status.st_size)
        return file.read(status.st_size if most is None else most)


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe, too, without waiting for its other end."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def notes(source: Source, listing: Listing) -> list[str]:
    """What to tell about a listing: what columns are taken for, which files are taken and which are left out."""
    told = [f"{source}: {listing.columns}."] if listing.columns else []
    taken = Counter(map(ending_of, listing.entries.names))
    others = set(listing.ignored) - {HIDDEN}
    if others or len(taken) > 1:
        rest = f"other files are left out: {kinds_of(listing.ignored)}" if others else "no other files are left out"
        told.append(f"{source}: taken as images are {kinds_of(taken)}; {rest}.")
    return [*told, *(f"{source}: {sentence}" for sentence in _without_reader(listing.ignored))]


def _without_reader(ignored: Counter[str]) -> list[str]:
    """What to tell of images that are left out as this installation of Pillow cannot read them."""
    return [
        f"{counted(ignored[ending], f'{ending} image')} {'is' if ignored[ending] == 1 else 'are'} left out, since the "
        "reader for this format is not installed. "
        f"{advice}."
        for ending, advice in LACKING.items()
        if ignored[ending]
    ]


def kinds_of(ignored: Mapping[str, int]) -> str:
    """Kinds of files, each with its number, in words."""
    most = sorted(ignored.items(), key=lambda kind: (-kind[1], kind[0]))[:5]
    kinds = [f"{kind or 'without ending'} ({count:,})" for kind, count in most]
    return ", ".join(kinds) + (f" and {len(ignored) - 5} more kinds" if len(ignored) > 5 else "")


def report(found: int, progress: Progress) -> None:
    """Report the progress, but not so often that it takes longer than finding images."""
    if found % _REPORT_EVERY == 0:
        progress(found)


def require_images(source: Source, entries: Entries, ignored: Counter[str]) -> None:
    """Refuse a source without images, and name the files that it has instead."""
    if entries:
        return
    if not ignored:
        raise UserError(f"There is no file in {source}: give a folder, zip, tar or list with images.")
    advice = f"Images end in {', '.join(sorted(IMAGE_ENDINGS))}; convert yours or give another --data."
    raise UserError(
        f"There is no image in {source} that can be read, only other files: {kinds_of(ignored)}. "
        + " ".join([*_without_reader(ignored), advice])
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


def is_remote(data: str) -> bool:
    """Whether the name of a source or a file is an address, such as ``s3://bucket/set``."""
    return "://" in data


def is_archive(address: str) -> bool:
    """Whether an address is that of a tar; of files at servers no others can be read in place."""
    ending = ending_of(address)
    if ending in (".zip", *TABLE_ENDINGS, *_COMPRESSED, *_LIST_ENDINGS):
        raise UserError(f"{address} cannot be read in place, only tars and folders of images can. Copy it here.")
    return ending == ".tar"


def _resolve_hub(data: str) -> Source:
    name, _, part = data.removeprefix(HUB).partition(":")
    if name:
        return Source("hub", Path(name), part, text=data)
    raise UserError(f"{data} names no set: give hf:OWNER/NAME, or a part of it, such as hf:OWNER/NAME:train.")


def _resolve_file(path: Path, inside: str) -> Source:
    ending = path.suffix.lower()
    if ending == ".zip":
        return Source("zip", path, inside)
    if ending in _TAR_ENDINGS or (ending in _COMPRESSED and path.stem.lower().endswith(".tar")):
        return Source("tar", path, inside)
    if ending in TABLE_ENDINGS and not inside:
        return Source("rows", path)
    if inside:
        raise UserError(f"{path} is not a zip or tar file, so it cannot contain {inside!r}. Check --data.")
    if ending in _LIST_ENDINGS:
        return Source("list", path)
    if ending in IMAGE_ENDINGS:
        raise UserError(f"{path} is a single image: give the folder it is in, {path.parent}, or a .txt list of images.")
    raise UserError(
        f"{path} cannot be used as data: give a folder, a .zip, a .tar, a .parquet, an .arrow, or a list of paths in "
        ".txt, .csv or .tsv."
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


def _scan(
    items: Iterable[os.DirEntry[str]],
    prefix: str,
    *,
    entries: Entries,
    ignored: Counter[str],
    progress: Progress,
) -> list[str]:
    """Add the images of one folder to the entries and return its sub-folders, real ones before links."""
    folders: list[tuple[bool, str]] = []
    for item in items:
        try:
            is_folder, is_file = item.is_dir(), item.is_file()
            if not is_folder and not is_file:
                item.stat()  # raises where a link leads nowhere
            why = left_out(item.name, partial(read_file, Path(item.path), most=16) if is_file else bytes)
            if is_folder and why not in (HIDDEN, SYSTEM):
                folders.append((item.is_symlink(), f"{prefix}{item.name}/"))
            elif why is None and is_file:
                entries.append(Entry(prefix + item.name, item.stat().st_size))
                report(len(entries), progress)
            else:
                ignored[SPECIAL if why is None else why] += 1
        except OSError:  # a circular link, or a file that was deleted just now
            ignored[BROKEN] += 1
    return [name for _, name in sorted(folders)]
