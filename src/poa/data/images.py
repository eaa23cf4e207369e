"""Decoding of image files by Pillow, to 8-bit RGB, and central crops."""

import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from poa.config.channels import RGB, USUAL, Values
from poa.errors import UserError, installing

# Naming the formats keeps Pillow from handing a file to its rarer readers, some of which start other programs.
_WANTED = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "HEIF", "JPEG2000")
Image.init()


class PlugIn(NamedTuple):
    """A format that not every installation of Pillow reads."""

    format: str
    endings: tuple[str, ...]
    brands: tuple[bytes, ...]
    """What follows ``ftyp`` at the start of such a file."""
    module: str
    """Registers the reader when it is imported."""
    advice: str
    """How to get it."""


_AVIF = PlugIn(
    "AVIF",
    (".avif", ".avifs"),
    (b"avif", b"avis"),
    "pillow_avif",
    "Install it with: pip install --upgrade pillow",
)
_HEIF = PlugIn(
    "HEIF",
    (".heic", ".heif", ".hif"),
    (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"),
    "pillow_heif.HeifImagePlugin",
    installing("heif"),
)


def reads(plug_in: PlugIn) -> bool:
    """Whether Pillow reads a format, its plug-in loaded if it is installed."""
    if plug_in.format in Image.OPEN:
        return True
    try:
        import_module(plug_in.module)
    except ImportError:
        return False
    return plug_in.format in Image.OPEN


_READABLE = tuple(plug_in for plug_in in (_AVIF, _HEIF) if reads(plug_in))
_MISSING = tuple(plug_in for plug_in in (_AVIF, _HEIF) if plug_in not in _READABLE)
OPTIONAL_FORMATS = tuple(plug_in.format for plug_in in _READABLE)
_FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)
LACKING = {ending: plug_in.advice for plug_in in _MISSING for ending in plug_in.endings}
"""Endings of images that this installation of Pillow does not read, and how to get what reads them."""
ARRAY_ENDINGS = (".npy", ".dcm")
"""Of files that are images too (``readers``), but only of sets without others: beside images they may be anything."""
IMAGE_ENDINGS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib"})
IMAGE_ENDINGS |= {".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"}
IMAGE_ENDINGS |= {".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"}
IMAGE_ENDINGS |= {ending for plug_in in _READABLE for ending in plug_in.endings}
IMAGE_ENDINGS |= {*ARRAY_ENDINGS}
"""Endings of files in these formats."""
LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "HEIF", "JPEG2000")
"""Formats that do not keep values exactly."""
MIN_BRIGHTEST = 8192
"""An image of 16 bits whose brightest value is lower would have none above 31 of 255."""
_ON_THEIR_SIDE = (5, 6, 7, 8)
"""Orientations of images whose rows are columns."""
PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*")
NUMPY, DICOM = b"\x93NUMPY", b"DICM"
_STARTS = (*TIFF, PNG, b"\xff\xd8\xff", b"GIF8", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")
_UNUSED_CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_BITS, _BANDS, _KIND_OF_VALUE = 258, 277, 339  # tags of a TIFF
_SIGNED, _FLOAT = 2, 3
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How images are prepared for a network; sides in pixels, mean and standard deviation of values in 0..1."""

    image_size: int
    resize: int
    """Shorter side of a test image before its central crop."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    values: Values = USUAL
    """Which channels and bits of a file a network sees."""

    def stated(self) -> dict[str, Any]:
        """By name, for files of settings and results; what is said of channels only where they are not as usual."""
        names = ("image_size", "resize", "mean", "std")
        return {name: getattr(self, name) for name in names} | self.values.stated()


class BadImage(ValueError):  # noqa: N818 (named for what it says of the image)
    """An image that cannot be used; the text is the reason in one line, without the name of the file.

    It begins with ``damaged``, ``too large`` or ``not supported``, unless the file is empty or cannot be read.
    """


def most_pixels() -> int:
    """How many pixels an image may have: $POA_MAX_PIXELS, else Pillow's limit against decompression bombs."""
    wanted = os.environ.get("POA_MAX_PIXELS")
    if wanted is not None:
        if not wanted.isdecimal() or not int(wanted):
            raise UserError(f"POA_MAX_PIXELS must be a number of pixels such as 500000000, got {wanted!r}.")
        Image.MAX_IMAGE_PIXELS = (int(wanted) + 1) // 2  # Pillow warns of more, and refuses more than twice as many
    return sys.maxsize if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


def check_bytes(size: int) -> None:
    """Refuse to read an encoded image of more than four bytes for each pixel that an image may have."""
    most = 4 * most_pixels()
    if size > most:
        raise BadImage(
            f"too large: more than {most:,} bytes; if you trust the file, set POA_MAX_PIXELS={size // 4 + 1}"
        )


def begins_as_image(start: bytes) -> bool:
    """Whether the first 16 bytes of a file are those of an image; for files without an ending."""
    return (
        start.startswith(_STARTS)
        or (start[:4], start[8:12]) == (b"RIFF", b"WEBP")
        or any(_is_of(plug_in, start) for plug_in in _READABLE)
        or (start[:2], start[6:10]) == (b"BM", bytes(4))
    )


def _is_of(plug_in: PlugIn, start: bytes) -> bool:
    return start[4:8] == b"ftyp" and start[8:12] in plug_in.brands


class Opened(NamedTuple):
    """An image in the mode in which it is stored, and as ``decode`` gives it."""

    stored: Image.Image
    rgb: Image.Image


def opened(encoded: bytes) -> Opened:
    """The image in a file in both forms; raises ``BadImage`` as ``decode`` does."""
    with explained(encoded):
        stored = _tolerant(encoded, _load)
        return Opened(stored, as_rgb(stored))


def decode(encoded: bytes) -> Image.Image:
    """Decode an image file to 8-bit RGB; the content decides on the format, not the ending.

    - Transparent pixels are laid on white.
    - Grey values of 16 or 32 bits, integer or float, are scaled from 0..65535 to 0..255, never by the range of the
      single image: brightness stays comparable between images. Values outside of that range, and images that would be
      nearly black, are refused (ADR 0020).
    - Of several frames the first is taken; the EXIF orientation is applied; colour profiles are ignored.

    Raises:
        BadImage: The bytes are damaged, too many, or of a kind that is not supported.
    """
    return opened(encoded).rgb


def decode_reduced(encoded: bytes, by: Callable[[int, int], int]) -> Image.Image:
    """The image as ``decode`` gives it, but a JPEG at a fraction of its sides, which takes less time and memory.

    Args:
        encoded: The file.
        by: The divisor (1, 2, 4 or 8) for an image of some height and width; sides are rounded up.

    Raises:
        BadImage: As ``decode``.
    """
    with explained(encoded):
        return as_rgb(load_reduced(encoded, by))


def load_reduced(encoded: bytes, by: Callable[[int, int], int]) -> Image.Image:
    """The same in its own mode, not turned upright; what Pillow raises goes through ``explained``."""
    return _tolerant(encoded, partial(_load, by=by))


def load(encoded: bytes) -> Image.Image:
    """The image in a file in its own mode; raises ``BadImage`` as ``decode`` does."""
    with explained(encoded):
        return _tolerant(encoded, _load)


def upright_sides(encoded: bytes) -> tuple[int, int]:
    """Height and width of an image once it is upright, without decoding it; raises ``BadImage`` as ``decode`` does."""
    with explained(encoded):
        image = _tolerant(encoded, open_image)
    is_aside = image.format != "TIFF" and _orientation(image) in _ON_THEIR_SIDE  # Pillow turns a TIFF by itself
    return (image.width, image.height) if is_aside else (image.height, image.width)


def _tolerant(encoded: bytes, read: Callable[[bytes], Image.Image]) -> Image.Image:
    """Read an image, without its texts if they are in the way."""
    if not encoded:
        raise BadImage("the file is empty")
    most_pixels()
    try:
        return read(encoded)
    except Image.DecompressionBombError:
        raise
    except Exception:
        bare = _without_texts(encoded)
        if bare == encoded:
            raise
        return read(bare)


def open_image(encoded: bytes) -> Image.Image:
    """The image in a file, of which no pixel is decoded yet."""
    return Image.open(io.BytesIO(encoded), formats=_FORMATS)


def _load(encoded: bytes, *, by: Callable[[int, int], int] = lambda *_: 1) -> Image.Image:
    image = open_image(encoded)
    divisor = by(image.height, image.width) if isinstance(image, JpegImageFile) else 1
    if divisor > 1:
        image.draft(None, (image.width // divisor, image.height // divisor))
    image.load()
    return image


@contextmanager
def explained(encoded: bytes) -> Iterator[None]:
    """Turn what readers raise into a ``BadImage``."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except (BadImage, UserError):
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(
            f"too large: more than {most_pixels():,} pixels; if you trust the file, set POA_MAX_PIXELS to a larger "
            "number"
        ) from error
    except UnidentifiedImageError as error:
        raise BadImage(_why_unidentified(encoded)) from error
    except Exception as error:  # damaged files make Pillow raise nearly every kind of exception
        raise BadImage(f"damaged: {_first_line(error)}") from error


def _why_unidentified(encoded: bytes) -> str:
    if encoded.startswith(TIFF):
        try:
            kind = _kind_of_tiff(encoded)
        except Exception:  # as above
            return "damaged at its start"
        return f"not supported: a TIFF of {kind}; save it as 8-bit RGB, or as grey of 8 or 16 bits, or set --channels"
    for plug_in in _MISSING:
        if _is_of(plug_in, encoded):
            return f"not supported: {plug_in.format}, whose reader is not installed. {plug_in.advice}"
    if encoded.startswith(NUMPY) or encoded[128:132] == DICOM:
        return "not supported as 8-bit RGB; say how many channels it has with --channels"
    if begins_as_image(encoded[:16]):
        return "damaged at its start, without pixels, or of a kind that Pillow does not read"
    return "not supported: not an image in a known format, or without pixels, or damaged at its start"


def _kind_of_tiff(encoded: bytes) -> str:
    file = io.BytesIO(encoded)
    tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
    file.seek(tags.next)
    tags.load(file)
    bits, bands, kind = (tags.get(tag, (1,)) for tag in (_BITS, _BANDS, _KIND_OF_VALUE))
    bands = bands if isinstance(bands, int) else bands[0]
    name = {_SIGNED: "signed ", _FLOAT: "float "}.get(kind[0], "")
    return f"{bands} {'band' if bands == 1 else 'bands'} of {name}{bits[0]}-bit values"


def _without_texts(encoded: bytes) -> bytes:
    """A PNG without the texts and the colour profile, for which Pillow has limits; other files as they are."""
    if not encoded.startswith(PNG):
        return encoded
    kept, place = [PNG], len(PNG)
    while place < len(encoded):
        end = place + 12 + int.from_bytes(encoded[place : place + 4])
        if encoded[place + 4 : place + 8] not in _UNUSED_CHUNKS:
            kept.append(encoded[place:end])
        place = end
    return b"".join(kept)


def as_rgb(image: Image.Image) -> Image.Image:
    """An image that is open already, as ``decode`` gives it; raises ``BadImage`` as that does."""
    return _turn_upright(image, _to_rgb(image))


def as_stored(image: Image.Image, channels: int) -> Image.Image:
    """An image that is open, upright, with its channels; those of 1 or 3 have colours for a palette and white below."""
    if image.has_transparency_data and channels in (1, RGB):
        return as_rgb(image)
    modes = {"1": "L", "P": "RGBA" if image.has_transparency_data else "RGB"}
    return _turn_upright(image, image.convert(modes[image.mode]) if image.mode in modes else image)


def image_tensor(image: Image.Image) -> UInt8[Tensor, "1 3 height width"]:
    """The pixels of an RGB image, with the channels last in memory: `resize` is twice as fast on that layout."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _deep_grey(image)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and _SIGNED in image.tag_v2.get(_KIND_OF_VALUE, ()):
        raise BadImage("not supported: signed values of 8 bits; save them as 0 to 255")  # Pillow ignores the sign
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(pixels, mask=pixels.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    finite = values[np.isfinite(values)] if image.mode == "F" else values
    if not finite.size:
        raise BadImage("not supported: none of its values is a finite number")
    lowest, highest = float(finite.min()), float(finite.max())
    if lowest < 0 or highest > 65535:
        raise BadImage(
            f"not supported: its grey values go from {lowest:,.10g} to {highest:,.10g}, and 0 to 65,535 are read; map "
            "the values of all images to that range in the same way"
        )
    if 0 < highest < MIN_BRIGHTEST:
        factor = 65535 if highest <= 1 else 2 ** (16 - int(highest).bit_length())
        raise BadImage(
            f"not supported: its brightest value is {highest:,.10g} of 65,535, so it would be nearly black; multiply "
            f"the values of all images by the same number, {factor:,} for example"
        )
    grey = np.rint(np.nan_to_num(values.astype(np.float32), posinf=65535, neginf=0).clip(0, 65535) / 257)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _turn_upright(image: Image.Image, rgb: Image.Image) -> Image.Image:
    orientation = _orientation(image)
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a damaged EXIF block, which Pillow may meet with any exception, leaves the pixels good
        return 1


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
