"""Features of all images of a folder from any size, written to files that other programs read."""

import filecmp
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from numpy.lib.format import open_memmap
from rich.console import Console
from torch import Tensor, nn

from poa import distributed
from poa.config.channels import USUAL
from poa.data.images import Preprocessing
from poa.data.index import ImageIndex
from poa.data.sources import Data
from poa.errors import UserError, counted, nearest
from poa.families.base import Features
from poa.features.extract import Extracted, extract_features, read_batches
from poa.features.formats import FORMATS, Table, check_parquet, files
from poa.features.images import note_darkness, open_images
from poa.features.whitening import (
    Whitening,
    read_whitening,
    require_whitening,
    whitening_file,
    whitening_of,
    write_whitening,
)
from poa.files import make_folder, one_writer
from poa.models.source import ModelSource
from poa.text import plain_console, unicode_text
from poa.training.progress import Bars

BATCH = 64
SAVE_EVERY = 16
"""Batches after which an interrupted pass resumes."""
_ROWS = 8192
"""Whitened together."""
_WHOLE = "files"
"""Folder of files before they are put in their place."""


class Embedded(NamedTuple):
    """What was written.

    Attributes:
        paths: The file of each network.
        shape: Number of images, and of values in a pooled feature, of each network.
        bad: Names of the images that could not be read.
    """

    paths: Mapping[str, Path]
    shape: Mapping[str, tuple[int, int]]
    bad: tuple[str, ...]


def embed(
    source: ModelSource,
    data: Data,
    *,
    out: Path,
    sizes: str | Sequence[str] = (),
    patches: bool = False,
    whiten: float | None = None,
    whitened_as: Path | None = None,
    limit: int | None = None,
    workers: int = 0,
    overwrite: bool = False,
    console: Console | None = None,
) -> Embedded:
    """Write the features of images from networks; each image is decoded once for all of them.

    Called again after a stop, it resumes. The files are there whole or not at all; until then features lie in a folder
    beside them, and take twice their room. Images that cannot be read are left out.

    Args:
        source: Whose networks.
        data: The images; labels are not needed.
        out: A file that ends in .parquet, .npy or .safetensors; with several networks each name is put before the
            ending. Or a folder, for a file ``NAME.npy`` of each network.
        sizes: ``all``, or names of sizes; may be left out where there is one network.
        patches: Also write one feature for each patch.
        whiten: Whiten pooled features by those of all these images, with this damping (see ``whitening_of``), and write
            the whitening beside them.
        whitened_as: Whiten them as those were that another call wrote to this ``out``.
        limit: Take only a class-balanced part of the images.
        workers: Processes that decode images.
        overwrite: Replace files that are there.
        console: Where to show progress.

    Raises:
        UserError: An argument is invalid, or the files cannot be written.
    """
    targets, new = _targets(out, _chosen(source, sizes)), not overwrite
    how = _Whitenings.of(whiten, whitened_as, targets)
    folder = next(iter(targets.values())).parent
    work = folder / f".{out.absolute().name}.unfinished"
    if new and not (work / _WHOLE).exists():  # else a command that was stopped may have put some in their place
        _check_new(file for path in targets.values() for file in files(path))
    index = open_images(data, limit=limit, console=console)
    if source.preprocessing.values == USUAL:
        note_darkness(index, console=console)
    make_folder(folder, content="Features")
    with one_writer(work):
        found = _embed(
            source, index, targets, work, patches=patches, how=how, workers=workers, new=new, console=console
        )
        shutil.rmtree(work, ignore_errors=True)
    return found


def _check_new(paths: Iterable[Path]) -> None:
    """See that no files are there."""
    for path in paths:
        if path.exists():
            raise UserError(f"{path} already exists. Choose another --out, or replace it with --overwrite.")


def _embed(
    source: ModelSource,
    index: ImageIndex,
    targets: Mapping[str, Path],
    work: Path,
    *,
    patches: bool,
    how: "_Whitenings",
    workers: int,
    new: bool,
    console: Console | None,
) -> Embedded:
    """See ``embed``; ``new`` files must not be there."""
    device = distributed.this_device()
    plain = {name: source.network(name).to(device).eval() for name in targets}
    widths = {name: _widths(network, source.preprocessing, device) for name, network in plain.items()}
    with Bars(console or plain_console(stderr=True)) as progress:
        extracted = extract_features(
            {name: _WithPatches(network) if patches else network for name, network in plain.items()},
            read_batches(index, source.preprocessing, batch_size=BATCH, workers=workers),
            num_images=len(index),
            folder=work / "rows",
            settings={**_settings(source, index), "patches": patches},
            preprocessing=source.preprocessing,
            device=device,
            save_every=SAVE_EVERY,
            progress=progress,
        )
    pooled = {name: extracted.features[name][:, : widths[name].pooled] for name in targets}
    whitenings = {name: how.of_network(name, rows) for name, rows in pooled.items()}
    tables = {
        path: _table(
            index,
            extracted,
            features=_whitened(pooled[name], whitenings[name], work / f"{name}.npy"),
            patches=_patches(extracted.features[name], widths[name]) if patches else None,
            about={"network": unicode_text(name), **how.stated(name), **_settings(source, index)},
        )
        for name, path in targets.items()
    }
    found = {whitening_file(targets[name]): each for name, each in whitenings.items() if each is not None}
    num_bytes = sum(rows.nbytes for rows in extracted.features.values())
    _write(tables, found, work / _WHOLE, new=new, num_bytes=num_bytes)
    bad = tuple(index.name(i) for i in sorted({*range(len(index))} - {*extracted.indices.tolist()}))
    return Embedded(targets, {name: (len(index) - len(bad), widths[name].pooled) for name in targets}, bad)


@dataclass(frozen=True)
class _Whitenings:
    """How pooled features are whitened: by themselves, as others were, or not at all.

    Attributes:
        damping: Of whitening by themselves.
        like: The file of the whitening to take, by network.
    """

    damping: float | None
    like: Mapping[str, Path]

    @classmethod
    def of(cls, damping: float | None, like: Path | None, targets: Mapping[str, Path]) -> "_Whitenings":
        """What was asked for, checked as far as that is possible without features."""
        if damping is not None and like is not None:
            raise UserError("--whiten and --whitened-as both say how features are whitened. Give one of them.")
        if damping is not None and not 0 < damping <= 1:
            raise UserError(f"--whiten must be above 0 and at most 1, got {damping:g}. 0.1 suits.")
        found = (
            {}
            if like is None
            else {name: whitening_file(path) for name, path in _targets(like, tuple(targets)).items()}
        )
        for path in found.values():
            require_whitening(path)
        return cls(damping, found)

    def of_network(self, name: str, rows: Float[Tensor, "images width"]) -> Whitening | None:
        """That of the features of a network."""
        if name in self.like:
            return read_whitening(self.like[name], width=rows.shape[1])
        return None if self.damping is None else whitening_of(rows, damping=self.damping)

    def stated(self, name: str) -> dict[str, Any]:
        """What the file of a network says of it."""
        if name in self.like:
            return {"whitened_as": unicode_text(str(self.like[name]))}
        return {} if self.damping is None else {"whitened": self.damping}


def _whitened(rows: Float[Tensor, "images width"], whitening: Whitening | None, path: Path) -> npt.NDArray[np.float32]:
    """The rows, whitened on the disk, since they may be too many for the memory."""
    if whitening is None:
        return rows.numpy()
    found = open_memmap(path, mode="w+", dtype=np.float32, shape=tuple(rows.shape))
    for start in range(0, len(rows), _ROWS):
        found[start : start + _ROWS] = whitening(rows[start : start + _ROWS]).numpy()
    return found


def _chosen(source: ModelSource, sizes: str | Sequence[str]) -> tuple[str, ...]:
    if sizes or len(source.names) == 1:
        return tuple(dict.fromkeys(source.choose(sizes or source.names)))
    raise UserError(
        f"{source.name} has {counted(len(source.names), 'size')}. Choose those to embed: --sizes all, or names "
        f"such as --sizes {source.names[0]} {source.names[-1]}."
    )


def _targets(out: Path, names: Sequence[str]) -> dict[str, Path]:
    """The file of each network."""
    is_folder = out.is_dir() or not out.suffix
    if not is_folder and out.suffix not in FORMATS:
        raise UserError(
            f"--out must be a folder or end in {', '.join(FORMATS)}, got {out}. {nearest(out.suffix, FORMATS)} A "
            "folder with a dot in its name must exist already."
        )
    if out.suffix == ".parquet" and not is_folder:
        check_parquet()
    if is_folder:
        return {name: out / f"{name}.npy" for name in names}
    if len(names) == 1:
        return {names[0]: out}
    return {name: out.with_name(f"{out.stem}-{name}{out.suffix}") for name in names}


def _write(
    tables: Mapping[Path, Table],
    whitenings: Mapping[Path, Whitening],
    unfinished: Path,
    *,
    new: bool,
    num_bytes: int,
) -> None:
    """Write all files in a folder of their own, and when all are whole, put them where they belong."""
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    free = shutil.disk_usage(unfinished).free
    if num_bytes > free:
        raise UserError(
            f"The files of features need {num_bytes / 1e9:.1f} GB in {unfinished}, but only {free / 1e9:.1f} GB are "
            "free. Free some space and run the same command again to resume, or name fewer --sizes at a time."
        )
    for path, table in tables.items():
        FORMATS[path.suffix](table, unfinished / path.name)
    for path, whitening in whitenings.items():
        write_whitening(whitening, unfinished / path.name)
    wanted = {file: unfinished / file.name for path in tables for file in files(path)}
    if new:
        _check_new(file for file, whole in wanted.items() if not _same(file, whole))
    for file, whole in wanted.items():
        if whole.exists():
            whole.replace(file)
        else:  # left from earlier features with patches
            file.unlink(missing_ok=True)


def _same(first: Path, second: Path) -> bool:
    return first.is_file() and second.is_file() and filecmp.cmp(first, second, shallow=False)


class _Widths(NamedTuple):
    """Values of a pooled feature, patches of an image and values of each."""

    pooled: int
    patches: int
    patch: int


@torch.inference_mode()
def _widths(network: nn.Module, own: Preprocessing, device: torch.device) -> _Widths:
    features = network(torch.zeros(1, own.values.number, own.image_size, own.image_size, device=device))
    return _Widths(features.cls.shape[1], *features.patches.shape[1:])


class _WithPatches(nn.Module):
    """A network whose ``cls`` is followed by all its patches in one row, which is what a pass keeps."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Float[Tensor, "batch channels height width"]) -> Features:
        """Features of a batch of images."""
        features: Features = self.network(images)
        return Features(torch.cat([features.cls, features.patches.flatten(1)], dim=1), features.patches)


def _patches(rows: Float[Tensor, "images width"], widths: _Widths) -> npt.NDArray[np.float32]:
    """Of rows of a pooled feature and all patches."""
    return rows.numpy()[:, widths.pooled :].reshape(-1, widths.patches, widths.patch)


def _table(
    index: ImageIndex,
    extracted: Extracted,
    *,
    features: npt.NDArray[np.float32],
    patches: npt.NDArray[np.float32] | None,
    about: Mapping[str, Any],
) -> Table:
    """What to write for a network."""
    indices = extracted.indices.numpy()
    labels = index.labels()[indices]
    return Table(
        names=tuple(unicode_text(index.name(i)) for i in indices.tolist()),
        labels=labels if index.classes and np.any(labels >= 0) else None,
        classes=tuple(map(unicode_text, index.classes)),
        indices=indices,
        features=features,
        patches=patches,
        about={"data": unicode_text(index.source), **about},
    )


def _settings(source: ModelSource, index: ImageIndex) -> dict[str, Any]:
    """What the features depend on besides the network."""
    weights, images = unicode_text(source.weights), index.identity.text
    return {"weights": weights, "images": images, **source.preprocessing.stated()}
