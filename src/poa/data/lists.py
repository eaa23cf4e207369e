"""Images that a text file or a table names: which column holds their paths, and which their labels."""

import codecs
import csv
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from poa.data.entries import Entries, Entry
from poa.data.images import IMAGE_ENDINGS, begins_as_image
from poa.data.sources import Listing, Progress, Source, Stamp, ending_of, read_file, report, require_images
from poa.errors import UserError, counted
from poa.text import system_path

MAX_BYTES = 1 << 30
"""Of a list, some twenty million paths."""
Rows = list[list[str]]
Split = Callable[[str], Iterator[list[str]]]
PATH_NAMES = (
    "path paths filepath file_path image_path img_path image images img file files filename file_name image_name"
)
LABEL_NAMES = "label labels class classes category target y class_name label_name category_name class_id label_id"
_OTHERS = "index idx id row unnamed:_0 # split set subset fold width height"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NO_FILE = -1
_LINE = re.compile(r"[^\n]*\n|[^\n]+")


def list_paths(source: Source, progress: Progress) -> Listing:
    """List the images that a text file or a table names, in its order.

    Paths are relative to the folder of the list. Without a column of labels the names of the folders are the labels.
    """
    table = _read(source.path)
    if not table.rows:
        raise UserError(f"The list {source} is empty: it needs the path of one image per line.")
    stamps = {str(source.path): Stamp.of(source.path)}
    entries = Entries()
    labels: list[str] = []
    missing: list[str] = []
    special: list[str] = []
    ignored: Counter[str] = Counter()
    for written, label in table.images():
        if not written:
            ignored["lines without a path"] += 1
            continue
        ending = ending_of(written)
        if ending and ending not in IMAGE_ENDINGS:
            ignored[ending] += 1
            continue
        name, size = _find(source.path.parent, written)
        if size is None and written.startswith("#"):
            ignored["remarks"] += 1
        elif size is None or size == _NO_FILE:
            (missing if size is None else special).append(written)
        elif not ending and not begins_as_image(read_file(source.path.parent / name, most=16)):
            ignored[ending] += 1
        else:
            entries.append(Entry(name, size))
            labels.append(label)
            report(len(entries), progress)
    for names, what in (missing, "cannot be found"), (special, "cannot be used (folders, pipes or devices)"):
        if names:
            raise UserError(_refusal(source, table, names, what))
    require_images(source, entries, ignored)
    return Listing(
        entries=entries,
        labels=labels if any(labels) else None,
        stamps=stamps,
        place=str(source.path.parent),
        ignored=ignored,
        columns=table.describe(),
    )


class _Table(NamedTuple):
    """The cells of a list, and which columns count."""

    rows: Rows
    header: list[str]
    path: int
    label: int | None

    def images(self) -> Iterator[tuple[str, str]]:
        """Path and label of each."""
        for row in self.rows:
            yield _cell(row, self.path).removeprefix("./"), "" if self.label is None else _cell(row, self.label)

    def describe(self) -> str:
        """What the columns are taken for; empty if there is only one."""
        if max(map(len, self.rows), default=0) < 2:
            return ""
        label = "there is no column of labels" if self.label is None else f"labels from {self._column(self.label)}"
        return f"paths are taken from {self._column(self.path)}, {label}"

    def _column(self, number: int) -> str:
        name = _cell(self.header, number)
        return f"column {number + 1}" + (f" ({name})" if name else "")


def _read(path: Path) -> _Table:
    """Find the columns of paths and of labels."""
    tables = []
    for rows in _divided(path):
        columns = _columns_of_images(rows)
        if columns and any(_exists(path, row, columns) for row in rows[:3]):
            return _table(path, rows, columns)
        tables.append((rows, columns))
    return _table(path, *next((table for table in tables if table[1]), tables[0]))


def _table(path: Path, rows: Rows, columns: list[int]) -> _Table:
    named = [cell.lower().replace(" ", "_") for cell in rows[0]] if rows else []
    in_header = [number for number in columns or range(len(named)) if _cell(named, number) in PATH_NAMES.split()]
    place = (in_header or columns or [0])[0]
    if len(columns) > 1 and len(in_header) != 1:
        numbers = " and ".join(str(number + 1) for number in columns)
        raise UserError(
            f"The list {path} names images in columns {numbers}, such as {rows[-1]}. Write `path` above the column "
            "that counts, or remove the others."
        )
    is_known = bool(set(named) & {*PATH_NAMES.split(), *LABEL_NAMES.split()})
    begins = bool(rows) and not _exists(path, rows[0], [place])
    has_header = begins and (ending_of(_cell(rows[0], place)) not in IMAGE_ENDINGS if columns else is_known)
    header = named if has_header else []
    body = rows[has_header:]
    return _Table(body, rows[0] if has_header else [], place, _label_column(path, body, header, place))


def _label_column(path: Path, rows: Rows, header: Sequence[str], place: int) -> int | None:
    """The column of labels: the one called so, else the one after the paths, else the only one before them."""
    others = [number for number in range(max(map(len, rows), default=0)) if number != place]
    named = [number for number in others if _cell(header, number) in LABEL_NAMES.split()]
    if named:
        return named[0]
    left = [
        number
        for number in others
        if not (header[number:] and header[number] in ("", *_OTHERS.split()))
        and not (number < place and _counts([_cell(row, number) for row in rows]))
    ]
    if len(left) > 1 and place > 0:
        raise UserError(
            f"The list {path} has paths in column {place + 1} and {len(left)} other columns, such as {rows[0]}: "
            "it is not clear which one holds the labels. Write `label` above their column, or remove the others."
        )
    return left[0] if left else None


def _cell(row: Sequence[str], number: int) -> str:
    """A cell of a row, empty beyond its end."""
    return row[number] if number < len(row) else ""


def _counts(cells: Sequence[str]) -> bool:
    """Whether cells are numbers of lines."""
    return any(all(cell == str(number) for number, cell in enumerate(cells, start)) for start in (0, 1))


def _columns_of_images(rows: Rows) -> list[int]:
    """The columns in which most cells, below a header, have the ending of an image."""
    sample = rows[1:1000] or rows
    votes = Counter(i for row in sample for i, cell in enumerate(row) if ending_of(cell) in IMAGE_ENDINGS)
    return sorted(i for i, count in votes.items() if 2 * count > len(sample))


def _exists(path: Path, row: Sequence[str], columns: Sequence[int]) -> bool:
    """Whether a row names a file in one of these columns."""
    names = [name for number in columns if (name := _cell(row, number))]
    return any(_find(path.parent, name)[1] not in (None, _NO_FILE) for name in names)


# ---- text ------------------------------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} is too large for a list of paths: more than {MAX_BYTES >> 30} GB. Check --data.")
    encoded = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if encoded.startswith(mark)), None)
    if encoding is None and len(encoded) > 1 and 0 in encoded[:2]:
        encoding = "utf-16-le" if encoded[1] == 0 else "utf-16-be"
    try:
        # undecodable bytes are kept like in the system's own file names
        text = encoded.decode(encoding) if encoding else encoded.decode(errors="surrogateescape")
    except UnicodeDecodeError as error:
        raise UserError(f"The list {path} cannot be read as {encoding}: {error.reason}. Save it as UTF-8.") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.partition("\n")[2] if text.startswith("sep=") else text  # a line for Excel alone


def _divided(path: Path) -> Iterator[Rows]:
    """The cells of a list, divided in each way that may be meant."""
    text, (usual, *others) = _text(path), _WAYS[path.suffix.lower()]
    try:
        yield _cells(usual, text)
    except csv.Error as error:
        raise UserError(f"The list {path} is not a valid CSV file: {error}. Write one path per line.") from error
    for split in others:
        with suppress(csv.Error):
            yield _cells(split, text)


def _cells(split: Split, text: str) -> Rows:
    return [row for row in ([cell.strip() for cell in line] for line in split(text)) if any(row)]


def _lines(text: str) -> Iterator[list[str]]:
    for line in text.split("\n"):
        bare = line.strip()
        is_quoted = len(bare) > 1 and bare[0] == bare[-1] == '"'
        yield [bare[1:-1].replace('""', '"') if is_quoted else bare]


def _words(text: str, *, last: bool) -> Iterator[list[str]]:
    """Lines in two, at the last space or at the first."""
    for line in text.split("\n"):
        yield line.rsplit(maxsplit=1) if last else line.split(maxsplit=1)


def _delimited(text: str, *, by: str) -> Iterator[list[str]]:
    lines = (found[0] for found in _LINE.finditer(text))  # io.StringIO takes four bytes a character
    return csv.reader(lines, delimiter=by)


_COMMAS, _SEMICOLONS, _TABS = (partial(_delimited, by=mark) for mark in ",;\t")
_WAYS: dict[str, tuple[Split, ...]] = {
    ".txt": (_lines, _TABS, _SEMICOLONS, _COMMAS, partial(_words, last=True), partial(_words, last=False)),
    ".csv": (_COMMAS, _SEMICOLONS, _TABS),
    ".tsv": (_TABS, _SEMICOLONS, _COMMAS),
}
"""How lines of a list may be divided into cells, the usual way first."""


# ---- files -----------------------------------------------------------------------------------------------------------


def _find(folder: Path, name: str) -> tuple[str, int | None]:
    """The name of a file as it is on the disk, and its size: None if it does not exist, -1 if it is no regular file."""
    size = _size(folder, name)
    if size is not None:
        return name, size
    slashes = name.replace("\\", "/").removeprefix("./")
    for other in (slashes, *(unicodedata.normalize(form, slashes) for form in ("NFC", "NFD"))):
        if other != name and (size := _size(folder, other)) is not None:
            return other, size
    return name, None


def _size(folder: Path, name: str) -> int | None:
    try:
        status = os.stat(system_path(os.path.join(folder, name)))  # noqa: PTH116, PTH118 (three times as fast as Path)
    except (OSError, ValueError):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else _NO_FILE


def _refusal(source: Source, table: _Table, names: Sequence[str], what: str) -> str:
    first = ", ".join(map(repr, names[:3]))
    taken = table.describe()
    columns = f" ({taken})" if taken else ""
    is_utf8 = not any("\udc80" <= letter <= "\udcff" for name in names[:3] for letter in name)
    return (
        f"{len(names):,} of {counted(len(table.rows), 'file')} in the list {source} {what}, such as {first}{columns}: "
        f"paths are relative to {source.path.parent}. "
        + ("Correct the paths or remove these lines." if is_utf8 else "The list is not in UTF-8: save it as UTF-8.")
    )
