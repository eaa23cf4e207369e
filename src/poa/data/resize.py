"""Resizing of images as tensors, and their central crops."""

import torch.nn.functional as F
from jaxtyping import Num
from torch import Tensor

THIN = 8  # times as long as wide; of thinner images the ends are cut before a resize makes them huge


def centre_crop(
    pixels: Num[Tensor, "1 channels height width"], *, size: int, resize_to: int
) -> Num[Tensor, "1 channels size size"]:
    """Resize the shorter side, then cut the central square."""
    sides = pixels.shape[2:]
    shorter = min(sides)
    top, left = (max(0, (side - THIN * shorter) // 2) for side in sides)
    pixels = pixels[:, :, top : sides[0] - top, left : sides[1] - left]
    height, width = (int(resize_to * side / shorter) for side in pixels.shape[2:])
    top, left = round((height - size) / 2), round((width - size) / 2)
    return resize(pixels, height, width)[:, :, top : top + size, left : left + size]


def resize(
    pixels: Num[Tensor, "1 channels old_height old_width"], height: int, width: int
) -> Num[Tensor, "1 channels height width"]:
    """Bicubic resize with anti-aliasing, as torchvision's on uint8 tensors and within rounding of Pillow's.

    What goes beyond the range of values at edges is cut off, for floats in 0..1 too.
    """
    resized = F.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True)
    return resized.clamp_(0, 1) if resized.is_floating_point() else resized
