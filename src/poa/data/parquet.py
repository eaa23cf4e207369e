"""Images in a column of Parquet and Arrow files: which files and columns count, and their listing."""

import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from poa.data.content import CONTENT, content_digest
from poa.data.entries import Entries, Entry
from poa.data.lists import LABEL_NAMES, PATH_NAMES
from poa.data.rows import TABLE_ENDINGS, RowFiles, images_of, open_rows
from poa.data.sources import Listing, Progress, Source, Stamp, ending_of, report, require_images
from poa.errors import UserError, counted, first_line, nearest

_SPLITS = frozenset({"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"})
"""Names of parts of a set; others are, too, if their files are numbered ``NAME-00000-of-00004``."""
_NUMBER = re.compile(r"[-_.]?\d+(-of-\d+)?$")
_NO_PART = ("data", "default", "")
_NO_LABEL = -1


class _Columns(NamedTuple):
    """The columns that count."""

    image: str
    is_struct: bool
    has_path: bool
    label: str | None
    classes: tuple[str, ...]
    """Names of the classes if labels are their numbers; empty if labels are names or bare numbers."""

    @property
    def needed(self) -> list[str]:
        fields = [f"{self.image}.bytes", f"{self.image}.path"][: 1 + self.has_path]
        return [*(fields if self.is_struct else [self.image]), *([self.label] if self.label else [])]

    def describe(self) -> str:
        """In words."""
        label = f"labels from column {self.label}" if self.label else "there is no column of labels"
        return f"images are taken from column {self.image}, {label}"


def list_rows(source: Source, progress: Progress) -> Listing:
    """List the images in a Parquet or Arrow file, or in the files of a folder, as ``datasets`` saves them, too."""
    if source.path.is_file():
        return list_files(source, [source.path], progress)
    names = part_of(list(_names_below(source.path)), source.inside, whole=str(source.path))
    return list_files(source, [source.path / name for name in names], progress)


def part_of(names: Sequence[str], wanted: str, *, whole: str, joint: str = "/") -> list[str]:
    """The files of one part of a set; the part is called as the whole set with ``joint`` and the part's name behind it.

    Raises:
        UserError: There is no such part, or none is wanted and there are several.
    """
    if not names:
        raise UserError(f"There is no Parquet or Arrow file in {whole}. Check --data.")
    parts = {name: _part(name) for name in sorted(names)}
    found = {part for part in parts.values() if part == wanted or part.endswith(f"/{wanted}") or not wanted}
    if len(found) == 1:
        return [name for name, part in parts.items() if part in found]
    if not found:
        raise UserError(f"There is no part {wanted!r} in {whole}. {nearest(wanted, sorted(set(parts.values())))}")
    called = f"{whole}{joint}{wanted}" if wanted else whole
    raise UserError(
        f"{called} has several parts: {', '.join(sorted(found))}. Name the one to take, such as "
        f"{whole}{joint}{min(found)}."
    )


def _part(name: str) -> str:
    """The part of a set that a file is of, by its path: ``train``, ``large/test``; empty for a set in one."""
    *folders, file = name.split("/")
    stem = file.rpartition(".")[0]
    bare = _NUMBER.sub("", stem)
    is_part = bare.lower() in _SPLITS or "-of-" in stem
    return "/".join(part for part in (*folders, bare if is_part else "") if part not in _NO_PART)


def _names_below(folder: Path) -> Iterator[str]:
    """The tables in a folder and below; where ``datasets`` says which files are the set, these alone."""
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        known = set(files)
        if "state.json" in known:
            state = json.loads(Path(place, "state.json").read_text(encoding="utf-8"))
            known &= {each["filename"] for each in state.get("_data_files", ())}
        for name in known:
            if ending_of(name) in TABLE_ENDINGS and not name.startswith((".", "_")):
                yield Path(place, name).relative_to(folder).as_posix()


def list_files(source: Source, files: Sequence[Path], progress: Progress) -> Listing:
    """List the images in some files, ordered as if each image were a file ``CLASS/NAME`` of a folder.

    Every row group is read once, in the order of the files.
    """
    stamps = {str(each): Stamp.of(each) for path in files for each in (path, path.parent)[: 1 + source.path.is_dir()]}
    columns, groups = _survey(source, files)
    place = RowFiles(groups, columns.image, columns.is_struct)
    entries, labels, digests = Entries(), list[str](), array("Q")
    ignored: Counter[str] = Counter()
    for row, (path, label, image) in enumerate(_rows(place, columns)):
        labels.append(intern(label))
        digests.append(0 if image is None else content_digest(len(image), partial(_slice, image)))
        if image is None:
            ignored["rows without an image"] += 1
            continue
        entries.append(Entry(_name(path or f"{row:08d}", label, columns), len(image), offset=row))
        report(len(entries), progress)
    require_images(source, entries, ignored)
    entries.sort()
    rows = entries.numbers["offset"]
    contents = np.zeros(len(rows), CONTENT)
    contents["digest"] = np.asarray(digests)[rows]
    place = place._replace(largest=_largest(place, rows, entries.numbers["size"]))
    return Listing(
        entries=entries,
        labels=[labels[row] for row in rows] if columns.label else None,
        stamps=stamps,
        ignored=ignored,
        columns=columns.describe(),
        contents=contents,
        place=place,
    )


def _slice(image: memoryview, offset: int, length: int) -> memoryview:
    return image[offset : offset + length]


def _name(path: str, label: str, columns: _Columns) -> str:
    """The name of an image; below the name of its class if that is in a column."""
    path = path.replace("\\", "/").lstrip("/").removeprefix("./")
    if columns.label is None:
        return path
    return "/".join(part for part in (label, path.rpartition("/")[2]) if part)


def _largest(place: RowFiles, rows: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> int:
    """Bytes of the images of the largest row group."""
    ends = np.cumsum([number for groups in place.files.values() for number in groups])
    return int(np.bincount(np.searchsorted(ends, rows, side="right"), sizes).max())


def _survey(source: Source, files: Sequence[Path]) -> tuple[_Columns, dict[str, list[int]]]:
    """The columns that count, and the numbers of rows of each file's row groups."""
    columns: _Columns | None = None
    groups = {}
    for path in files:
        with _refusing_damage(path):
            file = open_rows(path)
            columns = columns or _columns(path, file.schema)
        if lacks := {columns.image, columns.label or columns.image} - set(file.schema.names):
            raise UserError(f"{path} has no column {min(lacks)!r}, but {files[0]} has. Name files of one set.")
        groups[str(path)] = file.rows
    assert columns is not None, source
    return columns, groups


def _rows(place: RowFiles, columns: _Columns) -> Iterator[tuple[str | None, str, memoryview | None]]:
    """Path as it was written, label and image of each row."""
    for path, rows in place.files.items():
        with _refusing_damage(Path(path)):
            file = open_rows(Path(path))
            for number in range(len(rows)):
                group = file.read(number, columns.needed)
                parts = _paths(group, columns), _labels(path, group, columns), images_of(group, place)
                for name, label, image in zip(*parts, strict=True):
                    encoded = image.as_buffer()
                    yield name, label, None if encoded is None else memoryview(encoded)


def _paths(group: Any, columns: _Columns) -> list[str | None]:
    from pyarrow import compute

    if not columns.has_path:
        return [None] * int(group.num_rows)
    return list(compute.struct_field(group.column(columns.image), "path").to_pylist())


def _labels(path: str, group: Any, columns: _Columns) -> list[str]:
    """The name of each row's class; empty where it has none."""
    if columns.label is None:
        return [""] * int(group.num_rows)
    values = group.column(columns.label).to_pylist()
    if not columns.classes:
        return ["" if value is None else str(value) for value in values]
    names = dict(enumerate(columns.classes)) | {None: "", _NO_LABEL: ""}
    if unknown := set(values) - set(names):
        raise UserError(
            f"Label {min(unknown)} in {path} is none of the {counted(len(columns.classes), 'class')} of column "
            f"{columns.label}. Correct the labels, or the names of the classes."
        )
    return [names[value] for value in values]


def _columns(path: Path, schema: Any) -> _Columns:
    """Find the columns of images and of labels, by what ``datasets`` wrote of them, their types and their names."""
    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = {name: about for name, about in about.get("info", {}).get("features", {}).items() if about}
    images = [field for field in schema if _is_image(field.type)]
    said = [field for field in images if features.get(field.name, {}).get("_type") == "Image"]
    named = [field for field in said or images if field.name.lower() in PATH_NAMES.split()]
    found = named if len(named) == 1 else said or images
    if not found:
        names = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise UserError(
            f"{path} has no column of encoded images, only {names}. Give it one of bytes, or of a struct of bytes and "
            "path as `datasets` writes it."
        )
    if len(found) > 1:
        raise UserError(
            f"{path} has images in columns {', '.join(field.name for field in found)}. Call the one that counts "
            "`image`, or remove the others."
        )
    fields = [child.name for child in found[0].type] if found[0].type.num_fields else []
    label, classes = _label(schema, features)
    return _Columns(found[0].name, bool(fields), "path" in fields, label, classes)


def _label(schema: Any, features: Mapping[str, Any]) -> tuple[str | None, tuple[str, ...]]:
    """The column of labels, and the names of its classes if labels are their numbers."""
    classes = {name: about["names"] for name, about in features.items() if about.get("_type") == "ClassLabel"}
    named = [name for name in schema.names if name.lower() in LABEL_NAMES.split()]
    labels = [*(name for name in named if name in classes), *classes, *named]
    return (labels[0], tuple(classes.get(labels[0], ()))) if labels else (None, ())


def _is_image(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(child.name == "bytes" and _is_image(child.type) for child in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


@contextmanager
def _refusing_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, NotImplementedError, OSError) as error:  # of pyarrow; damage is an OSError without a number
        if isinstance(error, UserError) or (isinstance(error, OSError) and error.errno):
            raise
        raise UserError(
            f"{path} is damaged or not a Parquet or Arrow file: {first_line(error)}. Copy or download it again."
        ) from error
