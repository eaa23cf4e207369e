"""The index of a set of images: built once, memory-mapped by every process, read at random."""

import contextlib
import logging
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from poa import distributed
from poa.data.cache import cache_folder
from poa.data.content import MOST_NAMED, Count, Identity, LeftOut, labels_digest, short_digest
from poa.data.images import OPTIONAL_FORMATS, BadImage
from poa.data.joined import Joined
from poa.data.kinds import LISTERS
from poa.data.sampler import spread
from poa.data.sources import Data, Source, resolve, unreadable, without_arrays
from poa.data.table import Table, is_valid, write_contents, write_listing
from poa.errors import UserError, counted, nearest
from poa.text import names_of, normal_form

_LOG = logging.getLogger(__name__)
_FORMAT = 4
_USUAL_READERS = ("AVIF",)
"""Where others are installed, other files are images, and listings are kept apart."""
_STALE_AFTER = 7 * 24 * 3600.0


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """Images in a fixed order; pickles to folders and rows; each process maps tables and opens archives itself."""

    folder: Path
    """Of the table, which is never changed once written; of the first one if there are several sources."""
    further: tuple[Path, ...] = ()
    """Of the tables of the other sources."""
    chosen: npt.NDArray[np.int64] | None = None
    """Rows of the table that belong to the index, ascending; None for all."""

    def __len__(self) -> int:
        return len(self._table) if self.chosen is None else len(self.chosen)

    def __reduce__(self) -> tuple[type["ImageIndex"], tuple[Path, tuple[Path, ...], npt.NDArray[np.int64] | None]]:
        return ImageIndex, (self.folder, self.further, self.chosen)

    @property
    def source(self) -> str:
        """The source in words, for messages."""
        return self._table.source

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of the labels; empty without labels."""
        return self._table.classes

    @property
    def ignored(self) -> Mapping[str, int]:
        """Number of files of the source that are hidden or not images, by ending."""
        return self._table.ignored

    @property
    def files_in(self) -> Path | None:
        """Where the names of the images start, if each is a file of its own."""
        return self._table.files_in

    @property
    def notes(self) -> tuple[str, ...]:
        """What users should know about the listing: files that were left out, the columns of a list."""
        return self._table.notes

    @cached_property
    def fingerprint(self) -> str:
        """Digest of what the images hold, in their order: equal fingerprints mean the same images."""
        return self.digest_of(np.arange(len(self)))

    def digest_of(self, rows: npt.NDArray[np.int64]) -> str:
        """Digest of what some of the images hold, in the order given."""
        return short_digest(self.digests[rows].tobytes())

    @property
    def digests(self) -> npt.NDArray[np.uint64]:
        """Digest of what each image holds."""
        digests = self._table.digests
        return np.array(digests if self.chosen is None else digests[self.chosen])

    @property
    def listed(self) -> str:
        """Digest of the names and sizes of the images, which is all that earlier versions looked at."""
        if self.chosen is None:
            return self._table.listed
        return short_digest(self._table.listed.encode(), self.chosen.tobytes())

    @property
    def identity(self) -> Identity:
        """What results know the images and their labels by."""
        labels = f", labels {labels_digest(self.classes, self.labels())}" if self.classes else ""
        limited = "" if self.chosen is None else f", limited to {len(self)} images"
        return Identity(f"{self.source}{limited}", f"{len(self)} images {self.fingerprint}{labels}", self.digests)

    def name(self, i: int) -> str:
        """The path of image ``i`` relative to the source; absolute where a list has it so or of several sources."""
        return self._table.name(self._row(i))

    def label(self, i: int) -> int:
        """The class of image ``i``, -1 if it has none."""
        return int(self._table.labels[self._row(i)])

    def read(self, i: int) -> bytes:
        """Read the encoded file of image ``i``; BadImage if that is not possible any more."""
        row = self._row(i)
        try:
            return self._table.read(row)
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror or error}") from error

    def labels(self) -> npt.NDArray[np.int64]:
        """The class of every image, -1 where it has none."""
        labels = self._table.labels
        return (labels if self.chosen is None else labels[self.chosen]).astype(np.int64)

    def left_out(self, read: npt.ArrayLike) -> LeftOut:
        """The images that could not be read, given the numbers of the others."""
        is_bad = np.ones(len(self), np.bool_)
        is_bad[np.asarray(read, np.int64)] = False
        bad, labels = np.flatnonzero(is_bad), self.labels()
        lost = np.setdiff1d(labels[bad], labels[~is_bad])
        names = tuple(self.name(int(i)) for i in bad[:MOST_NAMED])
        return LeftOut(len(bad), len(self), names, tuple(self.classes[label] for label in lost if label >= 0))

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
    def _table(self) -> Table | Joined:
        first = Table.load(self.folder)
        return Joined([first, *map(Table.load, self.further)]) if self.further else first

    def _row(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        return i if self.chosen is None else int(self.chosen[i])


def matched_labels(train: ImageIndex, test: ImageIndex) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Labels of training and test images; those of test images are given the training images' numbers by name.

    Raises:
        UserError: Images without labels, or test images of unknown classes.
    """
    return train.require_labels(), labels_among(train.classes, test, whose=f"in {train.source}")


def labels_among(classes: Sequence[str], test: ImageIndex, *, whose: str) -> npt.NDArray[np.int64]:
    """Labels of test images as numbers of the classes of the same names.

    ``whose`` says which training images have these classes, such as ``of 96x4``.

    Raises:
        UserError: Images without labels, or of other classes.
    """
    labels = test.require_labels()
    number = {normal_form(name): label for label, name in enumerate(classes)}
    known = [number.get(normal_form(name), -1) for name in test.classes]
    missing = [test.classes[label] for label in np.unique(labels) if known[label] < 0]
    if missing:
        rest = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise UserError(
            f"The test images have classes that the training images lack: {', '.join(map(repr, missing[:5]))}{rest}. "
            f"The training images {whose} have {len(number)} classes: {nearest(missing[0], number)} "
            "Classes are compared by name; rename the folders or leave those images out."
        )
    return np.array(known, np.int64)[labels]


def open_index(
    data: Data,
    *,
    limit: int | None = None,
    cache: Path | None = None,
    progress: Count | None = None,
) -> ImageIndex:
    """Open the images that ``--data`` names, listing them only if they were not listed before or have changed.

    Args:
        data: A folder, a list of paths, an archive or ``digits``; see ``poa.data.sources.resolve``. Of several, the
            images follow one another, and classes of the same name are one.
        limit: Take only this many images, as evenly from all classes as possible; always the same ones.
        cache: Folder that keeps the tables; by default $POA_CACHE or ~/.cache/poa/index.
        progress: Called with what is counted, how much of it is done, and out of how much if that is known. Not called
            when the tables are reused.
    """
    if limit is not None and limit < 1:
        raise UserError(f"A limit of images must be at least 1, got {limit}: leave it out to take all images.")
    sources = [resolve(each) for each in names_of(data)]
    twice = [source for source, times in Counter(sources).items() if times > 1]
    if twice:
        raise UserError(f"{twice[0]} is named twice, so each of its images would count twice. Name it once.")
    if not sources:
        raise UserError("No images are named: give a folder of images, a zip or tar, a list of paths, or `digits`.")
    root = cache_folder(cache)
    folder, *further = [_table_of(source, root, progress or (lambda *_: None)) for source in sources]
    index = ImageIndex(folder, tuple(further))
    if distributed.is_main():
        for note in index.notes:
            _tell(note)
    if limit is None or limit == len(index):
        return index
    if limit > len(index):
        raise UserError(
            f"--limit {limit:,} is more than the number of images in {index.source}, {len(index):,}: lower it or leave "
            "it out."
        )
    return replace(index, chosen=spread(index.labels(), limit))


def _table_of(source: Source, root: Path, progress: Count) -> Path:
    """The folder of a source's table, which is made if it is not there or the source has changed."""
    readers = () if OPTIONAL_FORMATS == _USUAL_READERS else OPTIONAL_FORMATS
    key = short_digest(repr((_FORMAT, source.kind, str(source), *readers)).encode())
    folder = next((found for found in sorted(root.glob(f"{key}-*")) if is_valid(found)), None)
    return _build(source, root, key=key, progress=progress) if folder is None else folder


@cache
def _tell(note: str) -> None:
    """Say it once; without a handler, logging writes it to standard error."""
    _LOG.warning("Note: %s", note)


def _build(source: Source, root: Path, *, key: str, progress: Count) -> Path:
    """List the source and write its table; processes that do so at once end up with the same folder."""
    unfinished = folder = root / f"unfinished-{uuid.uuid4().hex}"
    try:
        _list(source, unfinished, progress)
        digest = write_contents(unfinished, earlier=root.glob(f"{key}-*"), progress=progress)
        folder = root / f"{key}-{digest}"
        if folder.exists() and not is_valid(folder):
            shutil.rmtree(folder)  # damaged
        unfinished.rename(folder)
    except OSError as error:
        if not is_valid(folder):  # else another process was faster
            raise UserError(
                f"The list of images cannot be stored in {root}: {error.strerror or error}. Free some space "
                "there, or set POA_CACHE to another folder."
            ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    _remove_stale(root, key=key, but=folder)
    table = Table.load(folder)
    files = counted(sum(table.ignored.values()), "other file")
    _LOG.info("%s: %s, %s", source, counted(len(table.records), "image"), files)
    return folder


def _list(source: Source, folder: Path, progress: Count) -> None:
    """List the source into a new folder; the listing, which takes most memory, ends with this."""
    try:
        listing = LISTERS[source.kind](source, lambda found: progress("images found", found, None))
    except OSError as error:
        raise unreadable(error, source.path) from error
    folder.mkdir()
    write_listing(without_arrays(listing), source, folder)


def _remove_stale(root: Path, *, key: str, but: Path) -> None:
    """Remove old tables of a source and what crashes left, but nothing that a run under way may still open."""
    for folder in (*root.glob(f"{key}-*"), *root.glob("unfinished-*")):
        with contextlib.suppress(FileNotFoundError):  # another process removes it too
            if folder != but and time.time() - folder.stat().st_mtime > _STALE_AFTER:
                shutil.rmtree(folder, ignore_errors=True)
