"""Images as Python programs hold them: files by path, PIL images, NumPy arrays, tensors, and lists of these."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Num
from PIL import Image
from torch import Tensor

from poa.config.channels import USUAL, Values
from poa.data.channels import alike, in_range, of_image, pixels_of, with_channels
from poa.data.images import BadImage, Preprocessing
from poa.data.readers import arranged
from poa.data.resize import centre_crop
from poa.data.sources import read_file
from poa.errors import UserError

OneImage: TypeAlias = str | PathLike[str] | Image.Image | npt.NDArray[Any] | Tensor
Images: TypeAlias = OneImage | Sequence[OneImage]


def given_images(images: Images, preprocessing: Preprocessing) -> Num[Tensor, "images channels height width"]:
    """Images as bytes for a network: files and PIL images resized and cropped as for a test, others as they are.

    Raises:
        UserError: They are no RGB images of 0..255, cannot be read, or differ in size.
    """
    if not isinstance(images, list | tuple):
        return _batch(images, preprocessing)
    parts = [_batch(image, preprocessing) for image in images]
    sizes = sorted({tuple(part.shape[2:]) for part in parts})
    if len(sizes) != 1:
        got = " and ".join(f"{width}x{height}" for height, width in sizes[:2]) or "none"
        raise UserError(
            f"Images in one list need the same size in pixels, got {got}. "
            "Give PIL images, which are resized, or resize them to one size."
        )
    return torch.cat(alike(parts))


def _batch(image: Any, preprocessing: Preprocessing) -> Num[Tensor, "images channels height width"]:
    if isinstance(image, str | PathLike | Image.Image):
        pixels = _opened(image, preprocessing.values)
        return centre_crop(pixels, size=preprocessing.image_size, resize_to=preprocessing.resize)
    if not isinstance(image, np.ndarray | Tensor):
        raise UserError(f"Images are paths of files, PIL images, NumPy arrays or tensors, got {type(image).__name__}.")
    if preprocessing.values != USUAL:
        return _deep(np.asarray(image), preprocessing.values)
    if image.dtype not in (np.uint8, torch.uint8):
        raise UserError(
            f"Images are RGB values of 0..255 of type uint8, got {image.dtype}. Multiply values from 0 to 1 by 255, "
            "round them and convert them to uint8."
        )
    pixels = torch.tensor(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    if pixels.ndim == 4 and pixels.shape[1] != 3:
        pixels = pixels.permute(0, 3, 1, 2)
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise UserError(
            "Images are tensors of 3 x height x width or arrays of height x width x 3, or batches of these, "
            f"got {' x '.join(map(str, image.shape))}. Turn grey images into RGB."
        )
    return pixels


def _deep(array: npt.NDArray[Any], values: Values) -> Num[Tensor, "images channels height width"]:
    """One array or a batch of them, of values as files hold them."""
    try:
        parts = [arranged(each, values.number) for each in (array if array.ndim == 4 else array[None])]
        return torch.cat([in_range(with_channels(part, values.number), values) for part in parts])
    except BadImage as error:
        raise UserError(f"An array cannot be used ({error}). Give height x width x channels.") from None


def _opened(image: str | PathLike[str] | Image.Image, values: Values) -> Num[Tensor, "1 channels height width"]:
    try:
        if isinstance(image, Image.Image):
            return of_image(image, values)
        return pixels_of(read_file(Path(image)), values)
    except BadImage as error:
        name = "The image" if isinstance(image, Image.Image) else f"The image {image}"
        raise UserError(f"{name} cannot be used ({error}). Give another one.") from None
    except OSError as error:
        raise UserError(f"The image {image} cannot be read: {error.strerror}. Check the path.") from None
