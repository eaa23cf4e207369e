"""Write the page: one file that shows networks beside one another, and needs nothing else."""

import tempfile
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from poa.choice.subjects import Subject, opened
from poa.config.values import Step
from poa.data.sources import Data
from poa.errors import UserError, counted
from poa.evaluation.headings import heading_of_run
from poa.features.images import named
from poa.files import whole_file
from poa.models.run import Run
from poa.pictures.draw import SHOWN, draw
from poa.pictures.kinds import KINDS
from poa.report.content import Image, Pictures
from poa.report.curves import curves
from poa.report.gather import content_of
from poa.report.page import html
from poa.text import one_line
from poa.training.metrics import read_metrics

if TYPE_CHECKING:
    from poa.data.held import Named


def write_report(
    subjects: Sequence[Run | str | PathLike[str]],
    *,
    out: str | PathLike[str] | None = None,
    images: "Named | None" = None,
    sizes: str | Sequence[str] = (),
    kinds: Sequence[str] = tuple(KINDS),
    limit: int | None = None,
    show: int = SHOWN,
    checkpoint: Step | None = None,
    console: Console | None = None,
) -> Path:
    """Write one HTML file of all networks of some subjects, and return its path.

    Args:
        subjects: Runs or their folders, folders that timm loads, or timm names; the first gives the page its title
            and its curves.
        out: The file; ``report.html`` in the folder of the first run by default.
        images: Images to draw pictures of, as ``poa pictures`` does; none by default.
        sizes: Sizes of the runs to draw pictures of; the smallest and the largest by default.
        kinds: Of pictures.
        limit: Images to search for neighbours and prototypes.
        show: How many images to draw one by one.
        checkpoint: The step of the runs' checkpoint to use, or ``best``; by default that of a run given as such, else
            the newest.
        console: Where to show progress.

    Raises:
        UserError: A subject, an image or a size is invalid, or the file cannot be written.
    """
    asked = None if out is None else Path(out)
    if asked is not None and (asked.suffix != ".html" or asked.is_dir()):
        raise UserError(f"A report is a file that ends in .html, got {out}. Choose a name such as report.html.")
    found = opened(subjects, checkpoint=checkpoint)
    first = found[0].run
    file = asked or (first.folder if first else Path()) / "report.html"
    lines = curves(read_metrics(first.paths.metrics), first.config) if first and first.paths.metrics.exists() else []
    options = {"sizes": sizes, "kinds": kinds, "limit": limit, "show": show, "console": console}
    pictures = [] if images is None else _pictures(found, named(images), **options)
    content = replace(content_of(found), curves=lines, pictures=pictures)
    title = f"{heading_of_run(first)}: {counted(len(found[0].rows), 'size')}" if first else one_line(found[0].name)
    with whole_file(file) as temporary:
        temporary.write_text(html(title, found[0].source.name, content), encoding="utf-8")
    return file


def _pictures(found: Sequence[Subject], images: Data, **options: Any) -> list[Pictures]:
    """Pictures of networks, drawn to a folder that is removed again; the page holds their files."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = draw([each.source for each in found], images, out=Path(folder, "pictures"), **options)
        return [
            Pictures(
                section.title,
                one_line(section.text),
                [one_line(note) for note in section.notes],
                [Image(_address(drawn.page.with_name(each.file)), one_line(each.caption)) for each in section.pictures],
            )
            for section in drawn.sections
        ]


def _address(file: Path) -> str:
    """A picture as an address that holds all of it."""
    return f"data:image/png;base64,{b64encode(file.read_bytes()).decode()}"
