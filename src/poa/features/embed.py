"""Features of all images of a folder from any size, written to files that other programs read."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor, nn

from poa import distributed
from poa.data.index import ImageIndex, open_index
from poa.data.loader import ScoringImages, images_for_scoring
from poa.errors import UserError, nearest
from poa.families.base import Features
from poa.features.extract import Extracted, extract_features
from poa.features.formats import FORMATS, Table, check_parquet, files
from poa.models.source import ModelSource
from poa.training.progress import bar

BATCH = 64
SAVE_EVERY = 16
"""Batches after which an interrupted pass goes on."""


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
    data: str,
    *,
    out: Path,
    sizes: str | Sequence[str] = (),
    patches: bool = False,
    limit: int | None = None,
    workers: int = 0,
    overwrite: bool = False,
    console: Console | None = None,
) -> Embedded:
    """Write the features of images from networks; each image is decoded once for all of them.

    Called again after an interruption, it goes on. The files are there whole or not at all; until then features lie in
    a folder beside them, so that they take twice their room for a while. Images that cannot be read are left out.

    Args:
        source: Whose networks.
        data: The images: a folder, a list of paths, an archive or ``digits``; labels are not needed.
        out: A file that ends in .parquet, .npy or .safetensors; with several networks each name is put before the
            ending. Or a folder, for a file ``NAME.npy`` of each network.
        sizes: ``all``, or names of sizes; may be left out where there is one network.
        patches: Also write one feature for each patch.
        limit: Take only a class-balanced part of the images.
        workers: Processes that decode images.
        overwrite: Replace files that are there.
        console: Where to show progress.

    Raises:
        UserError: Sizes or images are not as they must be, or the files cannot be written.
    """
    chosen = _chosen(source, sizes)
    targets = _targets(out, chosen, overwrite=overwrite)
    index = open_index(data, limit=limit)
    folder = next(iter(targets.values())).parent
    work = folder / f".{out.name}.unfinished"
    _make(folder)
    device = distributed.this_device()  # that of a run is perhaps on another machine
    networks = {name: source.network(name).to(device).eval() for name in chosen}
    widths = {name: _widths(network, source.preprocessing.image_size, device) for name, network in networks.items()}
    if patches:
        networks = {name: _WithPatches(network) for name, network in networks.items()}
    task = _Pass(source, index, patches=patches, workers=workers)
    extracted = task.run(networks, work / "rows", device=device, console=console or Console(stderr=True))
    tables = {path: task.table(name, extracted, shape=widths[name]) for name, path in targets.items()}
    _write(tables, work / "files", num_bytes=sum(rows.nbytes for rows in extracted.features.values()))
    read = set(extracted.indices.tolist())
    shapes = {name: (len(read), widths[name].pooled) for name in chosen}
    shutil.rmtree(work, ignore_errors=True)
    return Embedded(targets, shapes, tuple(index.name(i) for i in range(len(index)) if i not in read))


def _chosen(source: ModelSource, sizes: str | Sequence[str]) -> tuple[str, ...]:
    if sizes or len(source.names) == 1:
        return tuple(dict.fromkeys(source.choose(sizes or source.names)))
    raise UserError(
        f"{source.name} has {len(source.names)} sizes. Say of which to write features: --sizes all, or names such as "
        f"--sizes {source.names[0]} {source.names[-1]}."
    )


def _targets(out: Path, names: Sequence[str], *, overwrite: bool) -> dict[str, Path]:
    """The file of each network."""
    is_folder = out.is_dir() or not out.suffix
    if not is_folder and out.suffix not in FORMATS:
        raise UserError(
            f"Features are written as {', '.join(FORMATS)} or into a folder, got {out}. "
            f"{nearest(out.suffix, FORMATS)} A folder with a dot in its name must be there already."
        )
    if out.suffix == ".parquet" and not is_folder:
        check_parquet()
    if is_folder:
        targets = {name: out / f"{name}.npy" for name in names}
    elif len(names) == 1:
        targets = {names[0]: out}
    else:
        targets = {name: out.with_name(f"{out.stem}-{name}{out.suffix}") for name in names}
    there = [file for path in targets.values() for file in files(path) if file.exists()]
    if there and not overwrite:
        raise UserError(f"{there[0]} already exists. Choose another --out, or replace it with --overwrite.")
    return targets


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"Features cannot be written to {folder}: {error.strerror}. Choose another --out, or make it writable."
        ) from None


def _write(tables: Mapping[Path, Table], unfinished: Path, *, num_bytes: int) -> None:
    """Write all files in a folder of their own, and when all are whole, put them where they belong."""
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    free = shutil.disk_usage(unfinished).free
    if num_bytes > free:
        raise UserError(
            f"The files of features take {num_bytes / 1e9:.1f} GB in {unfinished}, where {free / 1e9:.1f} GB are free. "
            "Make room and run the same command again: it goes on from here. Or name fewer --sizes at a time."
        )
    for path, table in tables.items():
        FORMATS[path.suffix](table, unfinished / path.name)
    for file in (file for path in tables for file in files(path)):
        whole = unfinished / file.name
        if whole.exists():
            whole.replace(file)
        else:  # left from features with patches, to which it belongs no more
            file.unlink(missing_ok=True)


class _Widths(NamedTuple):
    """Values of a pooled feature, patches of an image and values of each."""

    pooled: int
    patches: int
    patch: int


@torch.inference_mode()
def _widths(network: nn.Module, image_size: int, device: torch.device) -> _Widths:
    features = network(torch.zeros(1, 3, image_size, image_size, device=device))
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


@dataclass(frozen=True)
class _Pass:
    """One pass over the images."""

    source: ModelSource
    index: ImageIndex
    patches: bool
    workers: int

    @property
    def settings(self) -> dict[str, Any]:
        """What the features depend on besides the network."""
        return {
            "weights": self.source.weights,
            "images": f"{len(self.index)} images {self.index.fingerprint}",
            "image_size": self.source.preprocessing.image_size,
            "resize": self.source.preprocessing.resize,
            "mean": self.source.preprocessing.mean,
            "std": self.source.preprocessing.std,
            "patches": self.patches,
        }

    def run(
        self, networks: Mapping[str, nn.Module], folder: Path, *, device: torch.device, console: Console
    ) -> Extracted:
        """Rows of all networks, showing what is left to do."""
        with ExitStack() as shown:
            return extract_features(
                networks,
                self._batches(shown, console),
                num_images=len(self.index),
                folder=folder,
                settings=self.settings,
                device=device,
                mean=self.source.preprocessing.mean,
                std=self.source.preprocessing.std,
                save_every=SAVE_EVERY,
            )

    def _batches(self, shown: ExitStack, console: Console) -> Callable[[int], Iterator[ScoringImages]]:
        def batches(start: int) -> Iterator[ScoringImages]:
            what = f"images from {start:,} on" if start else "images"
            advance = shown.enter_context(bar(what, total=len(self.index) - start, console=console))
            for batch in images_for_scoring(
                self.index,
                size=self.source.preprocessing.image_size,
                resize=self.source.preprocessing.resize,
                batch_size=BATCH,
                workers=self.workers,
                start=start,
            ):
                yield batch
                advance(len(batch.indices) + len(batch.bad))

        return batches

    def table(self, name: str, extracted: Extracted, *, shape: _Widths) -> Table:
        """What to write for a network."""
        rows, indices = extracted.features[name].numpy(), extracted.indices.numpy()
        patches = rows[:, shape.pooled :].reshape(-1, shape.patches, shape.patch) if self.patches else None
        known = self.index.labels()[indices]
        about = {key: value for key, value in self.settings.items() if key != "patches"}
        return Table(
            names=tuple(_text(self.index.name(i)) for i in indices.tolist()),
            labels=known if self.index.classes and np.any(known >= 0) else None,
            classes=self.index.classes,
            indices=indices,
            features=rows[:, : shape.pooled],
            patches=patches,
            about={"network": name, "data": self.index.source, **about},
        )


def _text(name: str) -> str:
    """A file's name as text that every format can hold, whatever bytes it is made of."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
