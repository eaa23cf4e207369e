"""Decoding of image files to 8-bit RGB, and central crops."""

import io
import warnings
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError
from torch import Tensor

THIN = 8  # times as long as wide; of thinner images the ends are cut before a resize makes them huge

# Naming the formats keeps Pillow from handing a file to its rarer readers, some of which start other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
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
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class BadImage(ValueError):  # noqa: N818 (named for what it says of the image)
    """An image that cannot be used; the text is the reason in one line, without the name of the file."""


def decode(encoded: bytes) -> Image.Image:
    """Decode an image file; the content decides on the format, not the ending.

    - Transparent pixels are laid on white.
    - Grey values of 16 or 32 bits, integer or float, are scaled from 0..65535 to 0..255 and clipped, never by the range
      of the single image: brightness stays comparable between images.
    - Of several frames the first is taken; the EXIF orientation is applied; colour profiles are ignored.

    Raises:
        BadImage: The bytes are damaged, of another kind, or hold too many pixels (Pillow's limit against bombs).
    """
    if not encoded:
        raise BadImage("the file is empty")
    try:
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(io.BytesIO(encoded), formats=_FORMATS)
            image.load()
            return _turn_upright(image, _to_rgb(image))
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage("not an image in a known format, or without pixels, or damaged at its start") from error
    except Exception as error:  # damaged files make Pillow raise nearly every kind of exception
        raise BadImage(f"cannot be decoded: {_first_line(error)}") from error


def centre_crop(image: Image.Image, *, size: int, resize_to: int) -> UInt8[Tensor, "1 3 size size"]:
    """Resize the shorter side, then cut the central square."""
    shorter = min(image.height, image.width)
    if max(image.height, image.width) > THIN * shorter:
        left, top = (max(0, (side - THIN * shorter) // 2) for side in (image.width, image.height))
        image = image.crop((left, top, image.width - left, image.height - top))
    height, width = (int(resize_to * side / shorter) for side in (image.height, image.width))
    top, left = round((height - size) / 2), round((width - size) / 2)
    return resize(image_tensor(image), height, width)[:, :, top : top + size, left : left + size]


def image_tensor(image: Image.Image) -> UInt8[Tensor, "1 3 height width"]:
    """The pixels of an RGB image, with the channels last in memory: `resize` is twice as fast on that layout."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]


def resize(
    pixels: UInt8[Tensor, "1 3 old_height old_width"], height: int, width: int
) -> UInt8[Tensor, "1 3 height width"]:
    """Bicubic resize with anti-aliasing, as torchvision's on uint8 tensors and within rounding of Pillow's."""
    return F.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _deep_grey(image)
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(pixels, mask=pixels.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image).astype(np.float32))
    if image.mode == "F" and 0 < values.max() <= 1:
        raise BadImage("its values are floats from 0 to 1, which would be black: multiply them by 65535")
    grey = np.rint(values.clip(0, 65535) / 257).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _turn_upright(image: Image.Image, rgb: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # a damaged EXIF block, which Pillow may meet with any exception, leaves the pixels good
        return rgb
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
