"""Files that ``poa doctor`` writes: the table of findings, and the list of the images to keep."""

import csv
import os
from pathlib import Path

from poa.data.sources import Data, resolve
from poa.errors import UserError, nearest
from poa.examination import page
from poa.examination.findings import Findings
from poa.files import make_folder, whole_file
from poa.text import csv_cell, names_of, one_line

DELIMITERS = {".txt": "\t", ".csv": ",", ".tsv": "\t"}
"""Of lists, by ending."""
REPORTS = (".html", ".csv")


def check(path: Path, data: Data, *, flag: str, endings: tuple[str, ...], overwrite: bool) -> None:
    """See that a file may be written.

    Raises:
        UserError: It has another ending, is there already, or is the data itself.
    """
    if path.suffix.lower() not in endings:
        raise UserError(f"{flag} must end in {' or '.join(endings)}, got {path}. {nearest(path.suffix, endings)}")
    if path.is_dir():
        raise UserError(f"{path} is a folder. Give {flag} the name of a file.")
    sources = map(resolve, names_of(data))
    if path.exists() and any(each.path.exists() and path.samefile(each.path) for each in sources):
        raise UserError(f"{path} is the data itself, which is never changed. Choose another {flag}.")
    if path.exists() and not overwrite:
        raise UserError(f"{path} already exists. Choose another {flag}, or replace it with --overwrite.")
    make_folder(path.parent, content="What is found")


def check_listable(data: Data) -> None:
    """See that the images are files of their own, which alone a list can name."""
    for source in map(resolve, names_of(data)):
        if source.kind not in ("folder", "list"):
            raise UserError(
                f"A list names files of their own, and the images of {source} lie in one file or elsewhere. Unpack or "
                "copy them and give the folder, or leave out --write-list."
            )


def write_report(found: Findings, path: Path) -> None:
    """Write all findings as a table (.csv), or the first ones of each kind with their pictures (.html)."""
    with whole_file(path) as temporary:
        if path.suffix.lower() == ".html":
            temporary.write_text(page.html(found), encoding="utf-8")
            return
        with temporary.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["path", "finding", "detail", "label"])
            for kind, rows in found.rows.items():
                for i in map(int, rows):
                    label = found.label_name(found.index.label(i))
                    cells = (found.index.name(i), kind, found.detail(kind, i), label)
                    table.writerow([csv_cell(cell) for cell in cells])


def write_list(found: Findings, path: Path) -> None:
    """Write the images to keep, with their labels if they have any, as a list that ``--data`` takes.

    Paths are relative to the folder of the list if the images are below it, absolute otherwise.

    Raises:
        UserError: None is left, or a name cannot be written.
    """
    if not len(found.kept):
        raise UserError("No image would be kept. Name fewer findings after --drop, or look at the images.")
    folder, here = found.index.files_in, path.absolute().parent.resolve()
    assert folder is not None
    has_labels = bool(found.index.classes)
    with (
        whole_file(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        table = csv.writer(file, delimiter=DELIMITERS[path.suffix.lower()], lineterminator="\n")
        table.writerow(["path", "label"] if has_labels else ["path"])
        for i in map(int, found.kept):
            name = os.path.join(folder, found.index.name(i))  # noqa: PTH118 (several times as fast as Path)
            if "\n" in name or "\r" in name:
                raise UserError(f"{one_line(name)} has a line break in its name, which no list can hold. Rename it.")
            name = os.path.relpath(name, here) if Path(name).is_relative_to(here) else name
            table.writerow([name, found.label_name(found.index.label(i))][: 1 + has_labels])
