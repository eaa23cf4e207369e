"""``poa doctor``: measure all images, compare them, and write what was found. The images are only read."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from poa import distributed
from poa.config.examination import Examination
from poa.data.channels import require_rgb
from poa.data.index import ImageIndex
from poa.data.sources import Data
from poa.errors import UserError, counted
from poa.examination import alike, files
from poa.examination.alike import FIRST, Finder, Rows
from poa.examination.findings import Findings, gather, plain_rows
from poa.examination.measures import GOOD
from poa.examination.scan import Scan, folder_of, scan
from poa.features.extract import extract_features, read_batches
from poa.features.images import open_images
from poa.machine.limits import usable_cores
from poa.models.source import ModelSource
from poa.text import note, plain_console, unicode_text
from poa.training.progress import Bars

BATCH = 64
ALONE = 2000
"""So few images are measured without worker processes, unless a number of these is given."""


@dataclass(frozen=True)
class Comparison:
    """The network by whose features images are compared.

    Attributes:
        source: Whose networks.
        size: The name of one of them; may be left out where there is one.
    """

    source: ModelSource
    size: str | None = None

    def name(self) -> str:
        """Of the network."""
        names = self.source.names
        if self.size is None and len(names) > 1:
            raise UserError(
                f"{self.source.name} has {counted(len(names), 'size')}. Choose one to compare images by: --size "
                f"{names[0]}, for example."
            )
        return self.source.choose(self.size or names[0])[0]


def examine(
    data: Data,
    settings: Examination,
    *,
    out: Path | None = None,
    write_list: Path | None = None,
    comparison: Comparison | None = None,
    limit: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> Findings:
    """Find what may be wrong with the images of a set. Called again after a stop, it resumes.

    Args:
        data: A folder, a list of paths, an archive or ``digits``.
        settings: What counts as a finding, and which images are left out of the list.
        out: Write the findings to this file: .html or .csv.
        write_list: Write the images to keep to this file: .txt, .csv or .tsv.
        comparison: Find near-duplicates by features, not by pixels.
        limit: Take only a class-balanced part of the images.
        workers: Processes that decode images; one for each core but one by default, none where there are few images.
        overwrite: Replace files that are there.
        console: Where to show progress.

    Raises:
        UserError: An argument is invalid, or the files cannot be written.
    """
    if workers is not None and workers < 0:
        raise UserError(f"--workers must be at least 0, got {workers}.")
    name = None if comparison is None else comparison.name()
    _check(data, out, "--out", files.REPORTS, overwrite)
    _check(data, write_list, "--write-list", tuple(files.DELIMITERS), overwrite)
    if out is not None and write_list is not None and out.absolute() == write_list.absolute():
        raise UserError(f"--out and --write-list name the same file, {out}. Choose two names.")
    if write_list is not None:
        files.check_listable(data)
    shown = console or plain_console(stderr=True)
    index = open_images(data, limit=limit, console=shown)
    processes = _workers(len(index)) if workers is None else workers
    try:
        with Bars(shown) as progress:
            seen = scan(index, workers=processes, progress=progress)
            by_features = None
            if comparison is not None and name is not None:
                by_features = partial(_by_features, index, comparison, name, settings.similarity, processes, progress)
            found = _find(index, seen, settings, by_features, progress)
    except KeyboardInterrupt:
        note(shown, "What was measured so far is kept: the same command goes on from there.")
        raise
    if out is not None:
        files.write_report(found, out)
    if write_list is not None:
        files.write_list(found, write_list)
    return found


def _check(data: Data, path: Path | None, flag: str, endings: tuple[str, ...], overwrite: bool) -> None:
    if path is not None:
        files.check(path, data, flag=flag, endings=endings, overwrite=overwrite)


def _workers(num_images: int) -> int:
    return 0 if num_images <= ALONE else max(1, usable_cores() - 1)


def _find(
    index: ImageIndex,
    seen: Scan,
    settings: Examination,
    by_features: Callable[[], tuple[Rows, Finder]] | None,
    progress: Bars,
) -> Findings:
    """Near-duplicates are looked for among images that have no other reason to be equal."""
    plain, exact = plain_rows(seen, settings), alike.exact(seen.records["digest"])
    compared = np.flatnonzero((seen.records["state"] == GOOD) & (exact == FIRST))
    compared = np.setdiff1d(compared, plain["constant"])
    if by_features is None:
        find = alike.by_hash(seen.records)
    else:
        readable, find = by_features()
        compared = np.intersect1d(compared, readable)
    near = alike.near(compared, find, num_images=len(index), progress=progress)
    return gather(index, seen, settings, plain=plain, exact=exact, near=near)


def _by_features(
    index: ImageIndex, comparison: Comparison, name: str, similarity: float, workers: int, progress: Bars
) -> tuple[Rows, Finder]:
    """The images that have features, and what finds pairs of similar ones."""
    source, device = comparison.source, distributed.this_device()
    require_rgb(source.preprocessing.values, what="`poa doctor`", name=source.name)
    extracted = extract_features(
        {name: source.network(name).to(device)},
        read_batches(index, source.preprocessing, batch_size=BATCH, workers=workers),
        num_images=len(index),
        folder=folder_of(index) / "features",
        settings={
            "weights": unicode_text(source.weights),
            "images": unicode_text(index.identity.text),
            **source.preprocessing.stated(),
        },
        preprocessing=source.preprocessing,
        device=device,
        progress=progress,
    )
    rows = extracted.indices.numpy()
    return rows, alike.by_features(rows, extracted.features[name], similarity, device)
