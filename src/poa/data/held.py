"""Images that a Python program names one by one, or holds: written once to a file that ``--data`` takes.

In the cache, that file is named by its content. So processes that do not share the program's memory read it, a run that
goes on finds the same images again, and what is known of them (list, digests, scores) is kept as for any other source.
"""

import csv
import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from PIL import Image
from torch import Tensor

from poa.data.cache import cache_folder
from poa.data.content import Count
from poa.data.images import IMAGE_ENDINGS, BadImage, as_rgb
from poa.data.sources import ending_of, left_out
from poa.errors import UserError
from poa.files import whole_file, working_folder

_LONG_AGO = (1980, 1, 1, 0, 0, 0)
_PLAIN_MODES = ("1", "L", "RGB", "I;16")
"""Of PIL images that a PNG file gives back as they are."""
_IMAGE, _LABEL = ("image", "img"), ("label", "labels", "class")
"""Columns of items that are dicts."""


@runtime_checkable
class Items(Protocol):
    """A map-style data set, such as torchvision's: images, pairs of image and label, or dicts of these."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Any: ...


Named: TypeAlias = str | PathLike[str] | Sequence[str | PathLike[str]] | Items
"""What functions of the Python API take as images: what ``--data`` takes, or images themselves."""


@runtime_checkable
class _WithClasses(Protocol):
    """A data set that names its classes, as torchvision's do."""

    classes: Sequence[Any]


def named(data: Named, progress: Count) -> Any:
    """What ``--data`` takes in place of images that a program names or holds.

    Paths and lists of folders stay what they are. Paths of images, alone or in pairs with labels, are written to a list
    in the cache, and images to a zip file there; each item of a data set is asked for once.

    Raises:
        UserError: They are no images, or a label cannot be the name of a class.
    """
    if isinstance(data, str | PathLike):
        return fspath(data)
    if not isinstance(data, Items) or isinstance(data, Mapping | bytes):
        raise UserError(
            f"Images are a path, a list of paths, or a data set with __len__ and __getitem__, got "
            f"{type(data).__name__}. Make a list of its items, or save the images to a folder."
        )
    if isinstance(data, list | tuple) and data and isinstance(_parted(data[0])[0], str | PathLike):
        paths = [_parted(item) for item in data]
        if not all(isinstance(path, str | PathLike) for path, _ in paths):
            raise UserError("A list of --data names paths and holds images: put them into two lists.")
        if not any(ending_of(fspath(path)) in IMAGE_ENDINGS for path, _ in paths):
            if any(label is not None for _, label in paths):
                raise UserError(
                    "A list has labels for paths that are no images. Give the paths of images, or no labels."
                )
            return [fspath(path) for path, _ in paths]
        return str(_in_cache("paths.csv", lambda file: _write_list(paths, file)))
    return str(_in_cache("images.zip", lambda file: _write_zip(data, file, progress)))


def save(data: Items, out: Path, progress: Count) -> Path:
    """Write the images of a data set to a new zip file; see ``poa.save_images``."""
    if out.suffix.lower() != ".zip":
        raise UserError(f"{out} does not end in .zip. Images are saved to a zip file: give it that ending.")
    if out.exists():
        raise UserError(f"{out} exists already. Delete it or name another file.")
    with whole_file(out) as temporary:
        _write_zip(data, temporary, progress)
    return out


def _in_cache(name: str, write: Callable[[Path], None]) -> Path:
    """Write a file of the cache that is named by its content."""
    root = cache_folder()
    with working_folder(root / name) as folder:
        file = folder / name
        write(file)
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        return file.replace(root / f"{digest[:32]}-{name}")


def _write_list(paths: Iterable[tuple[Any, Any]], file: Path) -> None:
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as opened:
        writer = csv.writer(opened)
        writer.writerow(["path", "label"])
        writer.writerows((Path(path).expanduser().absolute(), _class_name(label, ())) for path, label in paths)


def _write_zip(data: Items, file: Path, progress: Count) -> None:
    """Each image as a file CLASS/NUMBER; the same images give the same bytes."""
    classes = data.classes if isinstance(data, _WithClasses) else ()
    endings = set()
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(len(data)):
            image, label = _parted(data[number])
            try:
                ending, content = _encoded(image)
            except BadImage as error:
                raise UserError(f"Image {number} of the data set cannot be used ({error}). Leave it out.") from None
            endings.add(ending)
            folder = _folder_of(_class_name(label, classes))
            archive.writestr(zipfile.ZipInfo(f"{folder}{number:09d}{ending}", _LONG_AGO), content)
            progress("images stored", number + 1, len(data))
    if len(endings) != 1:
        what = "has 8-bit images and others" if endings else "has no images"
        raise UserError(f"The data set {what}. Images of one set are all of one kind: convert them, or give two sets.")


def _parted(item: Any) -> tuple[Any, Any]:
    """Image and label of an item; the label is None if it has none."""
    if isinstance(item, tuple | list) and item:
        return item[0], item[1] if len(item) > 1 else None
    if isinstance(item, Mapping):
        image = next((item[name] for name in _IMAGE if name in item), None)
        if image is None:
            raise UserError(f"An item with the keys {', '.join(map(str, item))} has no image. Call its image `image`.")
        return image, next((item[name] for name in _LABEL if name in item), None)
    return item, None


def _class_name(label: Any, classes: Sequence[Any]) -> str:
    if label is None or isinstance(label, str):
        return label or ""
    with suppress(TypeError, ValueError, RuntimeError):  # several labels, or other objects
        number = int(label)
        if number == label and number >= -1:
            return "" if number == -1 else str(classes[number] if number < len(classes) else number)
    raise UserError(
        f"The label {label!r} of an image is no class. Labels are texts or whole numbers from 0; -1 is none."
    )


def _folder_of(name: str) -> str:
    if name and (set(name) & set("/\\\0") or left_out(f"{name}/image.png", bytes) is not None):
        raise UserError(
            f"The class {name!r} cannot be the name of a folder. Rename it, without / and a dot at its start."
        )
    return f"{name}/" if name else ""


def _encoded(image: Any) -> tuple[str, bytes]:
    """Ending and content of a file that has the image without loss."""
    if isinstance(image, Image.Image):
        if image.mode in ("I", "F"):
            return ".npy", _numpy(np.asarray(image))
        return ".png", _png(image if image.mode in _PLAIN_MODES else as_rgb(image))
    if not isinstance(image, np.ndarray | Tensor):
        raise BadImage(f"not supported: {type(image).__name__}; give PIL images, NumPy arrays or tensors")
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    if isinstance(image, Tensor) and array.ndim == 3:
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        return ".png", _png(Image.fromarray(np.ascontiguousarray(array)))
    return ".npy", _numpy(array)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.asarray(image)).save(file, "PNG", compress_level=1)  # without what else the image carries
    return file.getvalue()


def _numpy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()
