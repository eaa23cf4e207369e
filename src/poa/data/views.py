"""Crops of an image and their random numbers, and the layout of the crops of a batch."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from poa.config.channels import RGB
from poa.config.own import own_function
from poa.config.pretraining import ViewSettings
from poa.data.channels import alike
from poa.data.resize import resize
from poa.errors import UserError, first_line

RATIO = (3 / 4, 4 / 3)
"""Least and greatest width-to-height ratio of the region that a crop shows."""
BLUR_SIGMA = (0.1, 2.0)
"""Least and greatest standard deviation of the blur, in pixels."""
BOX_TRIES = 10
SPARE = 3.4
"""How many times as many pixels a side as its crop a region has at least in a reduced image."""
MOST_REDUCED = 4
CROP_STREAM = 1  # keeps crop parameters apart from other numbers drawn with the same seed

# Columns of the drawn colour parameters, one row a crop.
ORDER = slice(0, 4)  # which operation (by its place in FACTORS) comes first, second, third, fourth
FACTORS = slice(4, 8)  # brightness, contrast, saturation, hue; 1, 1, 1, 0 change nothing
GREY, SIGMA, SOLARIZE = 8, 9, 10  # 0 or 1; blur in pixels or 0; 0 or 1
NUM_PARAMETERS = 11

# Columns of the uniform numbers drawn for a crop. Each has its own, so that a setting changes nothing but itself.
FLIP, _JITTER, _GREY, _BLUR, _SIGMA, _SOLARIZE = range(6)
_FACTORS, _ORDER, BOX = slice(6, 10), slice(10, 14), 14
NUM_UNIFORMS = BOX + 4 * BOX_TRIES


class Views(NamedTuple):
    """A batch as the networks get it, normalised."""

    globals: Float[Tensor, "crops channels height width"]
    """The first global crop of all images, then the second of all images."""
    locals: Float[Tensor, "local_crops channels local_height local_width"]
    """The first local crop of all images, then the second, ...; may have no rows."""
    masks: Bool[Tensor, "crops patches"]
    """For each global crop, which patches are hidden from the students."""
    kept: Int[Tensor, "crops kept"] | None = None
    """For each global crop, the patches that students compute, ascending; None for all."""
    hidden: Int[Tensor, " hidden"] | None = None
    """Which of all patches the masks hide, counted over the crops, if they were found where no GPU is waited for."""

    def hidden_of(self, patches: Float[Tensor, "crops patches *values"]) -> Float[Tensor, "hidden *values"]:
        """What belongs to the hidden patches, in row-major order."""
        rows = self.masks.flatten().nonzero().flatten() if self.hidden is None else self.hidden
        return patches.flatten(0, 1).index_select(0, rows)

    def seen_of(self, patches: Float[Tensor, "crops patches width"]) -> Float[Tensor, "crops seen width"]:
        """What belongs to the patches that students compute."""
        return patches if self.kept is None else patches.take_along_dim(self.kept[:, :, None], dim=1)


class RawViews(NamedTuple):
    """A batch as a worker makes it: crops before colour, and their drawn colour parameters; rows are as in `Views`."""

    globals: Num[Tensor, "crops channels size size"]
    locals: Num[Tensor, "local_crops channels local_size local_size"]
    global_parameters: Float[Tensor, "crops parameters"]
    """Columns are named at the top of this file."""
    local_parameters: Float[Tensor, "local_crops parameters"]
    masks: Bool[Tensor, "crops patches"]
    bad: tuple[int, ...]
    """Indices of images that could not be read and were replaced by the next one."""
    kept: Int[Tensor, "crops kept"] | None = None


class SampleCrops(NamedTuple):
    """The crops of one image and what was drawn for their colours (two global rows, then the local ones)."""

    globals: Num[Tensor, "2 channels size size"]
    locals: Num[Tensor, "num_locals channels local_size local_size"]
    parameters: npt.NDArray[np.float32]


class Box(NamedTuple):
    """A region of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def sample_generator(seed: int, step: int, position: int) -> np.random.Generator:
    """Random numbers of the image at one position of the global batch of a step."""
    key = np.array([seed, (step << 32) | position], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, CROP_STREAM]))


def reduction(height: int, width: int, *, augmentation: ViewSettings) -> int:
    """By what the sides of a large image can be divided so that its crops stay the same but for rounding.

    The smallest region that may be drawn decides, for the size of its crop. Of the values of its crop, 97 % in sharp
    photographs are then within one step of 255 of those that the same region of the whole gives, and all within ten;
    most regions are larger, and nearer.
    """
    areas = zip(augmentation.crop_sizes, augmentation.crop_scales, strict=True)
    density = min(min(math.sqrt(low * RATIO[0] * height * width), height, width) / size for size, (low, _) in areas)
    return next((divisor for divisor in (MOST_REDUCED, 2) if density >= SPARE * divisor), 1)


def make_crops(
    pixels: Num[Tensor, "1 channels height width"], *, augmentation: ViewSettings, generator: np.random.Generator
) -> SampleCrops:
    """Cut, resize and mirror the crops of one image, and draw their colour parameters, by one block of numbers."""
    uniforms = generator.random((2 + augmentation.num_locals, NUM_UNIFORMS))
    height, width = pixels.shape[2:]
    crops = []
    for size, scale, row in zip(augmentation.crop_sizes, augmentation.crop_scales, uniforms.tolist(), strict=True):
        box = crop_box(height, width, scale=scale, ratio=RATIO, uniforms=row[BOX:])
        crop = resize(pixels[:, :, box.top : box.top + box.height, box.left : box.left + box.width], size, size)
        crops.append(crop.flip(-1) if row[FLIP] < augmentation.flip else crop)
    local_crops = crops[2:] or [pixels.new_empty(0, pixels.shape[1], *[augmentation.local_size] * 2)]
    return SampleCrops(torch.cat(crops[:2]), torch.cat(local_crops), colour_parameters(uniforms, augmentation))


def changed(crops: SampleCrops, *, own: str, generator: np.random.Generator) -> SampleCrops:
    """The crops of one image as a function from outside makes them (``--views.own``), all of one size at a time.

    Raises:
        UserError: The function fails, or gives something else than crops of the same shape and type.
    """
    function = own_function(own, flag="--views.own")

    def made(given: Tensor) -> Tensor:
        try:
            crop = function(given, generator) if len(given) else given
        except Exception as error:  # whatever is wrong in it
            raise UserError(f"--views.own {own} failed: {first_line(error)}.") from error
        if not isinstance(crop, Tensor) or (crop.shape, crop.dtype) != (given.shape, given.dtype):
            got = f"{crop.dtype} {list(crop.shape)}" if isinstance(crop, Tensor) else type(crop).__name__
            raise UserError(f"--views.own {own} has to return {given.dtype} {list(given.shape)}, as given, got {got}.")
        return crop

    return crops._replace(globals=made(crops.globals), locals=made(crops.locals))


def crop_box(
    height: int,
    width: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    uniforms: Sequence[float],
) -> Box:
    """A random region: even in area, even in the logarithm of its shape (torchvision's ``RandomResizedCrop``).

    Args:
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        scale: Least and greatest share of the image's area.
        ratio: Least and greatest width-to-height ratio.
        uniforms: Four numbers in 0 ... 1 for each try.

    Returns:
        The first try that lies inside the image; if none does, the largest central region of an allowed shape.
    """
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for first in range(0, len(uniforms), 4):
        area_draw, shape_draw, top_draw, left_draw = uniforms[first : first + 4]
        area = height * width * (scale[0] + area_draw * (scale[1] - scale[0]))
        shape = math.exp(log_low + shape_draw * (log_high - log_low))
        box_width, box_height = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(top_draw * (height - box_height + 1))
            left = int(left_draw * (width - box_width + 1))
            return Box(top, left, box_height, box_width)
    box_width = min(width, round(height * ratio[1]))
    box_height = min(height, round(width / ratio[0]))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def colour_parameters(uniforms: npt.NDArray[np.float64], augmentation: ViewSettings) -> npt.NDArray[np.float32]:
    """Turn uniform numbers into the colour parameters of an image's crops, a row a crop (two global ones first).

    Saturation, hue and grey are left out where the channels are not red, green and blue.
    """
    is_rgb = len(augmentation.mean) == RGB
    strength = np.array(augmentation.jitter) * (1, 1, is_rgb, is_rgb)
    neutral = np.array([1.0, 1.0, 1.0, 0.0])
    blur = np.array([*augmentation.blur_probabilities[:2]] + [augmentation.blur_probabilities[2]] * (len(uniforms) - 2))
    jittered = uniforms[:, _JITTER, None] < augmentation.jitter_probability
    low, high = BLUR_SIGMA
    parameters = np.zeros((len(uniforms), NUM_PARAMETERS), dtype=np.float32)
    parameters[:, ORDER] = np.argsort(uniforms[:, _ORDER], axis=1)
    parameters[:, FACTORS] = neutral + jittered * strength * (2 * uniforms[:, _FACTORS] - 1)
    parameters[:, GREY] = uniforms[:, _GREY] < augmentation.grey_probability * is_rgb
    parameters[:, SIGMA] = (uniforms[:, _BLUR] < blur) * (low + (high - low) * uniforms[:, _SIGMA])
    parameters[1, SOLARIZE] = uniforms[1, _SOLARIZE] < augmentation.solarize_probability
    return parameters


def collate(
    samples: Sequence[SampleCrops],
    *,
    masks: Bool[Tensor, "crops patches"],
    bad: tuple[int, ...],
    kept: Int[Tensor, "crops kept"] | None = None,
) -> RawViews:
    """Lay the crops of some images out as one batch, all first crops before all second ones."""
    parameters = torch.from_numpy(np.stack([sample.parameters for sample in samples], axis=1))
    return RawViews(
        torch.stack(alike(sample.globals for sample in samples), dim=1).flatten(0, 1),
        torch.stack(alike(sample.locals for sample in samples), dim=1).flatten(0, 1),
        parameters[:2].flatten(0, 1),
        parameters[2:].flatten(0, 1),
        masks,
        bad,
        kept,
    )
