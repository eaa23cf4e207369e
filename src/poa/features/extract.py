"""Features of all images from many networks in one pass, kept on disk so that a stopped pass resumes."""

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from numpy.lib.format import open_memmap
from torch import Tensor, nn

from poa.data.augment import normalise
from poa.data.images import Preprocessing
from poa.data.index import ImageIndex
from poa.data.loader import ScoringImages, images_for_scoring
from poa.errors import UserError, counted
from poa.files import whole_file

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and out of how much."""
_STATE, _INDICES = "progress.json", "indices"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Extracted:
    """Features of the images that could be read.

    Attributes:
        features: One row an image for each network, float32, mapped from disk.
        indices: Which images of the index the rows are.
    """

    features: Mapping[str, Float[Tensor, "images _"]]
    indices: Int[Tensor, " images"]


def read_batches(
    index: ImageIndex, preprocessing: Preprocessing, *, batch_size: int, workers: int
) -> Callable[[int], Iterator[ScoringImages]]:
    """The batches of an index from an image on, as ``extract_features`` asks for them."""

    def batches(start: int) -> Iterator[ScoringImages]:
        size, resize = preprocessing.image_size, preprocessing.resize
        fixed: dict[str, Any] = {"size": size, "resize": resize, "values": preprocessing.values}
        return images_for_scoring(index, batch_size=batch_size, workers=workers, start=start, **fixed)

    return batches


@torch.inference_mode()
def extract_features(
    networks: Mapping[str, nn.Module],
    batches: Callable[[int], Iterable[ScoringImages]],
    *,
    num_images: int,
    folder: Path,
    settings: Mapping[str, Any],
    preprocessing: Preprocessing,
    device: torch.device,
    save_every: int = 32,
    progress: Progress | None = None,
    what: str = "images",
) -> Extracted:
    """Run every batch through all networks, which are put into evaluation mode, and keep the ``cls`` of their features.

    The pass can be stopped at any time: called again with the same folder and settings it resumes after the last batch
    saved, and the features are the same as without the stop. Images that cannot be read are left out.

    ``batches`` gives those from an image on, in order. The folder is emptied if it holds features of other networks or
    other settings, which are all that the features depend on. Progress is shown under the name ``what``.

    Raises:
        UserError: The disk has too little room, or no image can be read.
    """
    store = _Store.open(folder, networks=tuple(networks), num_images=num_images, settings=settings)
    for network in networks.values():
        network.eval()
    left = batches(store.next_image) if store.next_image < num_images else ()
    for number, batch in enumerate(left, start=1):
        if batch.indices:
            images = normalise(batch.images.to(device), mean=preprocessing.mean, std=preprocessing.std)
            features = {name: network(images).cls.float().cpu().numpy() for name, network in networks.items()}
            store.append(batch.indices, features)
        store.next_image = max((*batch.indices, *batch.bad)) + 1
        if number % save_every == 0:
            store.save()
        if progress is not None:
            progress(what, store.next_image, num_images)
    store.save()
    return store.read()


class _Store:
    """The rows written so far, an array a network and one of image numbers, and the image that comes next."""

    def __init__(self, folder: Path, networks: tuple[str, ...], num_images: int, settings: Any) -> None:
        self._folder, self._networks, self._num_images, self._settings = folder, networks, num_images, settings
        self._arrays: dict[str, np.memmap[Any, Any]] = {}
        self.next_image, self.num_rows = 0, 0

    @classmethod
    def open(cls, folder: Path, *, networks: tuple[str, ...], num_images: int, settings: Mapping[str, Any]) -> "_Store":
        """Resume from what is in the folder if it is part of the same pass, else empty it."""
        store = cls(folder, networks, num_images, json.loads(json.dumps(settings)))
        try:
            saved = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            saved = {}
        same = saved.get("num_images") == num_images and saved.get("settings") == store._settings
        if same and set(networks) <= set(saved["networks"]):
            store.next_image, store.num_rows = saved["next_image"], saved["num_rows"]
            _log.info("features in %s: resuming at image %d of %d", folder, store.next_image, num_images)
            return store
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return store

    def append(self, indices: tuple[int, ...], features: Mapping[str, npt.NDArray[np.float32]]) -> None:
        """Write the rows of a batch."""
        rows: dict[str, npt.NDArray[Any]] = {**features, _INDICES: np.array(indices, np.int64)}
        if not self._arrays:
            self._open_arrays(rows)
        end = self.num_rows + len(indices)
        for name, array in self._arrays.items():
            array[self.num_rows : end] = rows[name]
        self.num_rows = end

    def save(self) -> None:
        """Put everything on disk, then note how far it goes."""
        for array in self._arrays.values():
            array.flush()
        state = {
            "settings": self._settings,
            "networks": self._networks,
            "num_images": self._num_images,
            "next_image": self.next_image,
            "num_rows": self.num_rows,
        }
        with whole_file(self._folder / _STATE) as temporary:
            temporary.write_text(json.dumps(state), encoding="utf-8")

    def read(self) -> Extracted:
        """All rows."""
        if self.num_rows == 0:
            raise UserError(
                f"Of {counted(self._num_images, 'image')}, none could be read. Check that the files still exist "
                "and are images."
            )
        rows = {
            name: torch.from_numpy(np.load(self._path(name), mmap_mode="c")[: self.num_rows])
            for name in (*self._networks, _INDICES)
        }
        indices = rows.pop(_INDICES)
        return Extracted(rows, indices)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.npy"

    def _open_arrays(self, rows: Mapping[str, npt.NDArray[Any]]) -> None:
        shapes = {name: (self._num_images, *part.shape[1:]) for name, part in rows.items()}
        if self.next_image == 0:
            self._check_room(sum(int(np.prod(shapes[name])) * part.itemsize for name, part in rows.items()))
        mode = "w+" if self.next_image == 0 else "r+"
        for name, part in rows.items():
            self._arrays[name] = open_memmap(self._path(name), mode=mode, dtype=part.dtype, shape=shapes[name])

    def _check_room(self, needed: int) -> None:
        # Checked before, as a mapped file that finds the disk full ends the process without a word.
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise UserError(
                f"The features of {counted(len(self._networks), 'network')} need {needed / 1e9:.1f} GB in "
                f"{self._folder}, but only {free / 1e9:.1f} GB are free. Name fewer --sizes at a time, or free "
                "some space."
            )
