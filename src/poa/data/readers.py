"""Readers of files that hold more than Pillow gives: deep colour PNG, TIFF of any bands, NumPy, DICOM.

A reader takes the bytes of a file and the number of channels that are wanted, and gives the values as they are stored.
"""

import io
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from poa.config.channels import RGB
from poa.data.images import DICOM, NUMPY, PNG, TIFF, BadImage, most_pixels, open_image
from poa.errors import installing

Stored = Shaped[np.ndarray, "height width stored"]
_WITH_ALPHA = (4, 6)  # colour types of a PNG
_BITS, _BANDS, _ORIENTATION, _KIND_OF_VALUE = 258, 277, 274, 339  # tags of a TIFF
_UNSIGNED, _FLOAT = 1, 3


class Reader(NamedTuple):
    """Of one kind of file."""

    name: str
    knows: Callable[[bytes], bool]
    """Whether a file is of this kind, by its bytes."""
    read: Callable[[bytes, int], Stored]
    package: str = ""
    """That the reader needs, of the extra `channels`."""


def reader_of(encoded: bytes) -> Callable[[bytes, int], Stored] | None:
    """The reader for a file; None for one that Pillow reads whole.

    Raises:
        BadImage: The package that reads it is not installed.
    """
    reader = next((reader for reader in READERS if reader.knows(encoded)), None)
    if reader is not None and reader.package and find_spec(reader.package) is None:
        raise BadImage(f"not supported: {reader.name}, whose reader is not installed. {installing('channels')}")
    return None if reader is None else reader.read


def stored_of(image: Image.Image) -> Stored:
    """The values of an image that is open."""
    array = np.asarray(image)
    return array if array.ndim == 3 else array[:, :, None]


def read_png(encoded: bytes, channels: int) -> Stored:
    """A PNG of 16 bits in colour, or with transparency; grey and colours are laid on white as those of 8 bits are."""
    values = decode_image(
        torch.frombuffer(bytearray(encoded), dtype=torch.uint8),
        mode=ImageReadMode.UNCHANGED,
        apply_exif_orientation=True,
    )
    array: Stored = values.permute(1, 2, 0).numpy()
    if encoded[25] not in _WITH_ALPHA or channels not in (1, RGB):
        return array
    alpha = array[:, :, -1:] / np.float32(65535)
    white: Stored = np.rint(array[:, :, :-1] * alpha + 65535 * (1 - alpha)).astype(np.uint16)
    return white


def read_tiff(encoded: bytes, channels: int) -> Stored:
    """All bands of a TIFF, one after another or in pages."""
    from tifffile import TiffFile

    with TiffFile(io.BytesIO(encoded)) as file:
        pages = file.series[0]
        if file.pages.first.tags.valueof(_ORIENTATION, 1) != 1:
            raise BadImage("not supported: a TIFF of several bands that is not upright; turn its values")
        check_sides(pages.shape)
        return arranged(pages.asarray(), channels)


def read_numpy(encoded: bytes, channels: int) -> Stored:
    """An array of height x width, with the channels last or first."""
    file = io.BytesIO(encoded)
    header: Any = np.lib.format
    shape, _, dtype = (header.read_array_header_1_0, header.read_array_header_2_0)[header.read_magic(file)[0] - 1](file)
    if dtype.hasobject:
        raise BadImage("not supported: an array of Python objects; save numbers")
    check_sides(shape)
    return arranged(np.load(io.BytesIO(encoded), allow_pickle=False), channels)


def read_dicom(encoded: bytes, channels: int) -> Stored:
    """The values of a DICOM as its rescale slope and intercept have them, brighter where they are larger."""
    from pydicom import dcmread
    from pydicom.pixels.processing import apply_rescale

    file: Any = dcmread(io.BytesIO(encoded))
    kind = str(file.PhotometricInterpretation)
    if not kind.startswith(("MONOCHROME", "RGB", "YBR")):
        raise BadImage(f"not supported: a DICOM whose pixels are {kind}; save values or RGB")
    check_sides((int(file.get("NumberOfFrames", 1) or 1), file.Rows, file.Columns))
    array = file.pixel_array
    if kind == "MONOCHROME1":  # the lowest value is white
        array = (2**file.BitsStored - 1 if file.PixelRepresentation == 0 else -1) - array
    rescaled = (file.get("RescaleSlope", 1), file.get("RescaleIntercept", 0)) != (1, 0)
    return arranged(apply_rescale(array, file) if rescaled else array, channels)


def check_sides(shape: tuple[int, ...]) -> None:
    """Refuse arrays of more values than an image may have pixels.

    Raises:
        BadImage: There are too many, or none.
    """
    number = int(np.prod(shape, dtype=object))
    if not 0 < number <= most_pixels() * 4:
        raise BadImage(
            f"too large or empty: {' x '.join(map(str, shape))} values; if you trust the file, set POA_MAX_PIXELS to "
            "a larger number"
        )


def arranged(array: Shaped[np.ndarray, "..."], channels: int) -> Stored:
    """Height x width x channels; of three axes the last holds the channels if it is as long as they are, or the first.

    Raises:
        BadImage: It is no image.
    """
    array = np.squeeze(array) if array.ndim > 3 else array
    if array.ndim == 2:
        return array[:, :, None]
    if array.ndim != 3:
        raise BadImage(f"not supported: {array.ndim} axes instead of height, width and channels")
    is_first = array.shape[2] != channels and (array.shape[0] == channels or array.shape[0] < array.shape[2])
    return np.moveaxis(array, 0, 2) if is_first else array


def _is_deep_png(encoded: bytes) -> bool:
    return encoded.startswith(PNG) and encoded[24:25] == b"\x10" and encoded[25:26] != b"\0"


def _is_rich_tiff(encoded: bytes) -> bool:
    """Whether Pillow does not give all that a TIFF holds: several pages, more bands than it knows, signed values."""
    if not encoded.startswith(TIFF):
        return False
    try:
        image: Any = open_image(encoded)
    except Exception:  # of a kind that it does not know
        return True
    tags, bands = image.tag_v2, image.getbands()
    kinds, bits = set(tags.get(_KIND_OF_VALUE, (_UNSIGNED,))), max(tags.get(_BITS, (1,)))
    plain = kinds == {_FLOAT} if bits > 16 else kinds == {_UNSIGNED}
    return image.n_frames > 1 or tags.get(_BANDS, 1) != len(bands) or not plain


READERS = (
    Reader("a PNG of 16 bits in colour", _is_deep_png, read_png),
    Reader("a TIFF of several bands", _is_rich_tiff, read_tiff, "tifffile"),
    Reader("a NumPy array", lambda encoded: encoded.startswith(NUMPY), read_numpy),
    Reader("a DICOM image", lambda encoded: encoded[128:132] == DICOM, read_dicom, "pydicom"),
)
"""One for each kind of file; the first that knows a file reads it."""
