"""The index of a set of images: built once, memory-mapped by every process, read at random."""

import atexit
import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from poa import distributed
from poa.data.archives import Archive, list_tar, list_zip
from poa.data.images import BadImage
from poa.data.lists import list_paths
from poa.data.sources import (
    Entry,
    Kind,
    Listing,
    Progress,
    Source,
    Stamp,
    folder_labels,
    list_digits,
    list_folder,
    notes,
    read_file,
    resolve,
    unreadable,
)
from poa.errors import UserError, counted, nearest
from poa.text import normal_form

_LOG = logging.getLogger(__name__)
_FORMAT = 2
_STALE_AFTER = 7 * 24 * 3600.0
_LISTERS: dict[Kind, Callable[[Source, Progress], Listing]] = {
    "folder": list_folder,
    "list": list_paths,
    "zip": list_zip,
    "tar": list_tar,
    "digits": list_digits,
}
_RECORD = np.dtype(
    [("name_end", "<i8"), ("size", "<i8"), ("offset", "<i8"), ("stored", "<i8"), ("label", "<i4"), ("deflated", "?")]
)


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """Images in a fixed order; pickles to two values, and each process maps the tables and opens the archive itself."""

    folder: Path
    """Of the tables, which are never changed once written."""
    chosen: npt.NDArray[np.int64] | None = None
    """Rows of the table that belong to the index, ascending; None for all."""

    def __len__(self) -> int:
        return len(self._table.records) if self.chosen is None else len(self.chosen)

    def __reduce__(self) -> tuple[type["ImageIndex"], tuple[Path, npt.NDArray[np.int64] | None]]:
        return ImageIndex, (self.folder, self.chosen)

    @property
    def source(self) -> str:
        """The source in words, for messages."""
        return self._table.source

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of the labels; empty without labels."""
        return self._table.classes

    @property
    def num_ignored(self) -> int:
        """Number of files of the source that are hidden or not images."""
        return self._table.num_ignored

    @property
    def notes(self) -> tuple[str, ...]:
        """What users should know about the listing: files that were left out, the columns of a list."""
        return self._table.notes

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of the names and sizes of the images: equal fingerprints mean the same set."""
        if self.chosen is None:
            return self._table.fingerprint
        return _digest(self._table.fingerprint.encode(), self.chosen.tobytes())

    @property
    def identity(self) -> str:
        """Number of images and fingerprint, as in results."""
        return f"{len(self)} images {self.fingerprint}"

    def name(self, i: int) -> str:
        """The path of image ``i`` relative to the source (absolute where a list has it so)."""
        return self._table.entry(self._row(i)).name

    def label(self, i: int) -> int:
        """The class of image ``i``, -1 if it has none."""
        return int(self._table.records[self._row(i)]["label"])

    def read(self, i: int) -> bytes:
        """Read the encoded file of image ``i``; BadImage if that is not possible any more."""
        entry = self._table.entry(self._row(i))
        try:
            return self._table.read(entry)
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror or error}") from error

    def labels(self) -> npt.NDArray[np.int64]:
        """The class of every image, -1 where it has none."""
        labels = self._table.records["label"]
        return (labels if self.chosen is None else labels[self.chosen]).astype(np.int64)

    def require_labels(self) -> npt.NDArray[np.int64]:
        """The class of every image; refuses images without label, and fewer than two classes."""
        if not self.classes:
            raise UserError(
                f"The images in {self.source} have no labels: put the images of each class into a folder with "
                "its name, or give a CSV list with labels in the second column."
            )
        labels = self.labels()
        bare = np.flatnonzero(labels < 0)
        if len(bare):
            raise UserError(
                f"{len(bare):,} of {counted(len(self), 'image')} in {self.source} have no label, such as "
                f"{self.name(int(bare[0]))!r}: move them into the folder of a class or remove them."
            )
        if len(self.classes) == 1:
            raise UserError(
                f"All images in {self.source} have the same label {self.classes[0]!r}, but at least two classes "
                f"are needed: if the classes are the folders inside {self.classes[0]!r}, add it to the path."
            )
        return labels

    @cached_property
    def _table(self) -> "_Table":
        return _Table.load(self.folder)

    def _row(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        return i if self.chosen is None else int(self.chosen[i])


def matched_labels(train: ImageIndex, test: ImageIndex) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Labels of training and test images; those of test images are given the training images' numbers by name.

    Raises:
        UserError: Images without labels, the same images twice, or test images of unknown classes.
    """
    train_labels, test_labels = train.require_labels(), test.require_labels()
    if train.fingerprint == test.fingerprint:
        raise UserError(
            f"The training and the test images are the same ({train.source}), so a test would be meaningless. "
            "Give other images to test on."
        )
    number = {normal_form(name): label for label, name in enumerate(train.classes)}
    known = [number.get(normal_form(name), -1) for name in test.classes]
    missing = [test.classes[label] for label in np.unique(test_labels) if known[label] < 0]
    if missing:
        rest = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(
            f"The test images have classes that the training images lack: {', '.join(map(repr, missing[:5]))}{rest}. "
            f"The training images in {train.source} have {len(number)} classes: {nearest(missing[0], number)} "
            "Classes are compared by name; rename the folders or leave those images out."
        )
    return train_labels, np.array(known, np.int64)[test_labels]


def open_index(
    data: str | os.PathLike[str],
    *,
    limit: int | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> ImageIndex:
    """Open the images that ``--data`` names, listing them only if they were not listed before or have changed.

    Args:
        data: A folder, a list of paths, an archive or ``digits``; see ``poa.data.sources.resolve``.
        limit: Take only this many images, as evenly from all classes as possible; always the same ones.
        cache: Folder that keeps the tables; by default $POA_CACHE or ~/.cache/poa/index.
        progress: Not called when the tables are reused.
    """
    if limit is not None and limit < 1:
        raise UserError(f"--limit must be at least 1, got {limit}: leave it out to take all images.")
    source = resolve(data)
    root = _writable(cache)
    key = _digest(repr((_FORMAT, source.kind, str(source))).encode())
    folder = next((found for found in sorted(root.glob(f"{key}-*")) if _is_valid(found)), None)
    if folder is None:
        folder = _build(source, root, key=key, progress=progress or (lambda _: None))
    index = ImageIndex(folder)
    if distributed.is_main():
        for note in index.notes:
            _tell(note)
    if limit is None or limit == len(index):
        return index
    if limit > len(index):
        raise UserError(
            f"--limit {limit:,} is more than the number of images in {source}, {len(index):,}: lower it or leave "
            "it out."
        )
    return ImageIndex(folder, spread(index.labels(), limit))


@cache
def _tell(note: str) -> None:
    """Say it once; without a handler, logging writes it to standard error."""
    _LOG.warning("Note: %s", note)


def spread(labels: npt.NDArray[np.int64], limit: int) -> npt.NDArray[np.int64]:
    """Choose images evenly: the classes take turns until the limit is reached or they run out, first classes first.

    Inside a class the images are divided into as many runs as it may give, and one of each is drawn with a fixed seed.
    The positions are ascending; a label of -1 counts as a class.
    """
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    turns = np.arange(len(labels)) - np.repeat(starts, sizes)
    first = np.argsort(turns, kind="stable")[:limit]
    quotas = np.bincount(np.repeat(np.arange(len(sizes)), sizes)[first], minlength=len(sizes))
    generator = np.random.Generator(np.random.Philox(key=0))
    chosen = []
    for start, size, quota in zip(starts, sizes, quotas, strict=True):
        edges = np.arange(quota + 1) * size // max(quota, 1)
        drawn = edges[:-1] + (generator.random(quota) * np.diff(edges)).astype(np.int64)
        chosen.append(order[start + drawn])
    return np.sort(np.concatenate(chosen))


@dataclass(frozen=True, eq=False)
class _Table:
    """The content of one folder of the cache: one record an image, and the names one after the other."""

    folder: Path
    kind: Kind
    path: Path
    source: str
    classes: tuple[str, ...]
    num_ignored: int
    notes: tuple[str, ...]
    fingerprint: str
    records: npt.NDArray[Any]
    names: npt.NDArray[np.uint8]

    @classmethod
    def load(cls, folder: Path) -> "_Table":
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        return cls(
            folder=folder,
            kind=meta["kind"],
            path=Path(meta["path"]),
            source=meta["source"],
            classes=tuple(meta["classes"]),
            num_ignored=meta["num_ignored"],
            notes=tuple(meta["notes"]),
            fingerprint=meta["fingerprint"],
            records=np.asarray(np.load(folder / "records.npy", mmap_mode="r")),
            names=np.asarray(np.load(folder / "names.npy", mmap_mode="r")),
        )

    def entry(self, row: int) -> Entry:
        end, size, offset, stored, _, deflated = self.records[row].item()
        start = self.records[row - 1]["name_end"] if row else 0
        name = self.names[start:end].tobytes().decode("utf-8", "surrogateescape")
        return Entry(name, size, offset, stored, deflated)

    def read(self, entry: Entry) -> bytes:
        if self.kind == "folder":
            return read_file(self.path / entry.name)
        if self.kind == "list":
            return read_file(self.path.parent / entry.name)
        return self._archive.read_zipped(entry) if self.kind == "zip" else self._archive.read(entry)

    @cached_property
    def _archive(self) -> Archive:
        return Archive(self.folder / "blob.bin" if self.kind == "digits" else self.path)


def _build(source: Source, root: Path, *, key: str, progress: Progress) -> Path:
    """List the source and write its table; processes that do so at once end up with the same folder."""
    try:
        listing = _LISTERS[source.kind](source, progress)
    except OSError as error:
        raise unreadable(error, source.path) from error
    progress(len(listing.entries))
    stamps = sorted((path, *stamp) for path, stamp in listing.stamps.items())
    folder = root / f"{key}-{_digest(repr(stamps).encode())}"
    unfinished = root / f"unfinished-{uuid.uuid4().hex}"
    try:
        unfinished.mkdir()
        _write(listing, source, unfinished)
        if folder.exists() and not _is_valid(folder):
            shutil.rmtree(folder)  # damaged
        unfinished.rename(folder)
    except OSError as error:
        if not _is_valid(folder):  # else another process was faster
            raise UserError(
                f"The list of images cannot be stored in {root}: {error.strerror or error}. Free some space "
                "there, or set POA_CACHE to another folder."
            ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _remove_stale(root, key=key, but=folder)
    files = counted(sum(listing.ignored.values()), "other file")
    _LOG.info("%s: %s, %s", source, counted(len(listing.entries), "image"), files)
    return folder


def _write(listing: Listing, source: Source, folder: Path) -> None:
    entries = listing.entries
    encoded = [entry.name.encode("utf-8", "surrogateescape") for entry in entries]
    label_names = folder_labels(entry.name for entry in entries) if listing.labels is None else listing.labels
    classes = sorted(set(label_names) - {""})
    number = {name: label for label, name in enumerate(classes)} | {"": -1}
    records = np.zeros(len(entries), _RECORD)
    records["name_end"] = np.cumsum([len(name) for name in encoded])
    records["label"] = [number[name] for name in label_names]
    for column in ("size", "offset", "stored", "deflated"):
        records[column] = [getattr(entry, column) for entry in entries]
    names = b"".join(encoded)
    np.save(folder / "records.npy", records)
    np.save(folder / "names.npy", np.frombuffer(names, np.uint8))
    (folder / "blob.bin").write_bytes(listing.blob)
    meta = {
        "kind": source.kind,
        "path": str(source.path),
        "source": str(source),
        "classes": classes,
        "num_ignored": sum(listing.ignored.values()),
        "notes": notes(source, listing),
        "fingerprint": _digest(names, records["name_end"].tobytes(), records["size"].tobytes()),
    }
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    (folder / "stamps.json").write_text(json.dumps(listing.stamps), encoding="utf-8")
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    (folder / "sizes.json").write_text(json.dumps(sizes), encoding="utf-8")


def _is_valid(folder: Path) -> bool:
    """Whether a table is whole and its source unchanged."""
    try:
        sizes = json.loads((folder / "sizes.json").read_text(encoding="utf-8"))
        if any((folder / name).stat().st_size != size for name, size in sizes.items()):  # a crash may leave empty files
            return False
        _Table.load(folder)
        stamps = json.loads((folder / "stamps.json").read_text(encoding="utf-8"))
        return all(Stamp.of(Path(path)) == Stamp(*stamp) for path, stamp in stamps.items())
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _remove_stale(root: Path, *, key: str, but: Path) -> None:
    """Remove old tables of a source and what crashes left, but nothing that a run under way may still open."""
    for folder in (*root.glob(f"{key}-*"), *root.glob("unfinished-*")):
        with contextlib.suppress(FileNotFoundError):  # another process removes it too
            if folder != but and time.time() - folder.stat().st_mtime > _STALE_AFTER:
                shutil.rmtree(folder, ignore_errors=True)


def _writable(cache: Path | None) -> Path:
    """The folder for the tables, made if it is missing; one for this process alone if it cannot be written."""
    try:
        root = cache or Path(os.environ.get("POA_CACHE") or Path.home() / ".cache/poa/index")
        root.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=root).close()
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without home, as in containers
        root = Path(tempfile.mkdtemp(prefix="poa-index-"))
        atexit.register(shutil.rmtree, root, ignore_errors=True)
        _LOG.warning(
            "The list of images is not stored for later runs (%s): set POA_CACHE to a folder to store it.", error
        )
    return root.resolve()


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
