"""Decoding of image files to tensors: 8-bit RGB, or any number of channels with all their bits (ADR 0038)."""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Num, Shaped, UInt8
from PIL import Image
from torch import Tensor

from poa.config.channels import RGB, USUAL, Values
from poa.data.images import BadImage, as_rgb, as_stored, decode_reduced, explained, image_tensor, load_reduced
from poa.data.readers import reader_of, stored_of
from poa.errors import UserError, counted

Divisor = Callable[[int, int], int]
"""By what the sides of a photograph of some height and width may be divided, see ``decode_reduced``."""


def whole(_height: int, _width: int) -> int:
    """The divisor of images that are decoded as they are."""
    return 1


def pixels_of(encoded: bytes, values: Values = USUAL, by: Divisor = whole) -> Num[Tensor, "1 channels height width"]:
    """The image in a file: uint8 where that holds all of it, else float32 in 0..1, channels last in memory.

    Raises:
        BadImage: It cannot be decoded, has another number of channels, or values outside of the range.
    """
    if values == USUAL:
        return image_tensor(decode_reduced(encoded, by))
    with explained(encoded):
        read = reader_of(encoded)
        if read is not None:
            return in_range(with_channels(read(encoded, values.number), values.number), values)
        return of_image(load_reduced(encoded, by), values)


def of_image(image: Image.Image, values: Values) -> Num[Tensor, "1 channels height width"]:
    """The same of an image that is open."""
    if values == USUAL or (values.number == RGB and not image.mode.startswith(("I", "F"))):
        return in_range(np.asarray(as_rgb(image)), values)
    return in_range(with_channels(stored_of(as_stored(image, values.number)), values.number), values)


def with_channels(
    array: Shaped[np.ndarray, "height width stored"], channels: int
) -> Shaped[np.ndarray, "height width channels"]:
    """Grey in three channels, or three equal channels as grey; other images must have the channels that are read.

    Raises:
        BadImage: They do not.
    """
    stored = array.shape[2]
    if stored == channels:
        return array
    if (stored, channels) == (1, RGB):
        return array.repeat(RGB, axis=2)
    if (stored, channels) == (RGB, 1) and (array == array[:, :, :1]).all():
        return array[:, :, :1]
    raise BadImage(f"not supported: it has {counted(stored, 'channel')}, and --channels is {channels}")


def in_range(
    array: Shaped[np.ndarray, "height width channels"], values: Values
) -> Num[Tensor, "1 channels height width"]:
    """Stored values as uint8 if they are, else as float32 in 0..1.

    Raises:
        BadImage: They are outside of 0..1, or signed, and no range is given.
    """
    if values.range is None and array.dtype == np.uint8:
        return _tensor(np.array(array))
    kind, largest = array.dtype.kind, np.iinfo(array.dtype).max if array.dtype.kind in "iu" else 1
    finite = array[np.isfinite(array)] if kind == "f" else array
    if kind not in "iuf" or not finite.size:
        raise BadImage(f"not supported: values of type {array.dtype}, or none that is a finite number")
    low, high = values.range or (0.0, float(largest))
    least, most = float(finite.min()), float(finite.max())
    if values.range is None and (kind == "i" or least < low or most > high):
        asked = "floats from 0 to 1 are read" if kind == "f" else "signed values need a range"
        raise BadImage(
            f"not supported: its values go from {least:,.7g} to {most:,.7g}, and {asked}; say what becomes 0 and 1, "
            "for all images alike, with --value-range LOW HIGH"
        )
    scaled = (array.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    return _tensor(np.nan_to_num(scaled, nan=0.0, posinf=1.0, neginf=0.0).clip(0.0, 1.0))


def require_rgb(values: Values, *, what: str, name: str) -> None:
    """Refuse networks of other images in parts that know no others.

    Raises:
        UserError: The networks see other channels, or more bits.
    """
    if values != USUAL:
        raise UserError(
            f"{what} takes 8-bit RGB images, but {name} sees {counted(values.number, 'channel')} with all their bits "
            "(--channels). Score its frozen features (`poa evaluate knn`, linear, clusters ...), or extract a size and "
            "train it further with timm."
        )


def _tensor(array: npt.NDArray[np.uint8] | npt.NDArray[np.float32]) -> Num[Tensor, "1 channels height width"]:
    return torch.from_numpy(array).permute(2, 0, 1)[None]


def in_unit(images: Num[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Values in 0..1, a tensor of their own: bytes are divided by 255, floats are in that range already."""
    return images.to(torch.float32, copy=True).div_(255) if images.dtype == torch.uint8 else images.clone()


def as_pixels(
    images: Float[Tensor, "batch channels height width"], *, like: Num[Tensor, "_ channels _height _width"]
) -> Num[Tensor, "batch channels height width"]:
    """Values in 0..1 as bytes again, where other images are bytes."""
    return images.mul(255).round().to(torch.uint8) if like.dtype == torch.uint8 else images


def channels_last(pixels: Num[Tensor, "channels height width"]) -> Num[Tensor, "1 channels height width"]:
    """A crop as decoded images lie in memory."""
    return pixels[None].contiguous(memory_format=torch.channels_last)


def image_of(pixels: UInt8[Tensor, "1 3 height width"]) -> Image.Image:
    """RGB pixels as Pillow has them."""
    return Image.fromarray(pixels[0].permute(1, 2, 0).numpy())


def alike(parts: Iterable[Num[Tensor, "_ channels _height _width"]]) -> list[Num[Tensor, "_ channels _height _width"]]:
    """Images of one type, so that they can be laid together: bytes, or floats if some are."""
    listed = list(parts)
    same = all(part.dtype == torch.uint8 for part in listed)
    return listed if same else [in_unit(part) for part in listed]
