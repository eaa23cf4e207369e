"""Colour, grey, blur, solarise and normalise the crops of a batch on the device, each with its own parameters.

Every operation means what the one of the same name in ``torchvision.transforms.v2.functional`` means on float images.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Num, Shaped
from torch import Tensor

from poa.config.channels import RGB
from poa.config.pretraining import ViewSettings
from poa.data.channels import in_unit
from poa.data.views import FACTORS, GREY, ORDER, SIGMA, SOLARIZE, RawViews, Views

# On a CPU, a few crops at a time stay in its cache, which takes two thirds of the time of the whole batch at once.
CPU_CHUNK_VALUES = 2**20
SOLARIZE_THRESHOLD = 128 / 255
"""Values from here on are inverted; 1 is white."""


def augment(
    raw: RawViews,
    *,
    augmentation: ViewSettings,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Views:
    """Finish the crops of a batch, in the same order of rows.

    Args:
        raw: Crops and what was drawn for them.
        augmentation: The settings with which it was drawn.
        device: Where to compute and where the views end up; pinned memory is copied without waiting.
        dtype: Of the crops returned; the arithmetic is float32.
        memory_format: Of the crops returned.
    """
    device = torch.device(device)

    def finish(crops: Tensor, parameters: Tensor) -> Tensor:
        finished = torch.empty(crops.shape, dtype=dtype, device=device, memory_format=memory_format)
        return _finish(moved(crops, device), parameters, augmentation=augmentation, out=finished)

    return Views(
        finish(raw.globals, raw.global_parameters),
        finish(raw.locals, raw.local_parameters),
        moved(raw.masks, device),
        None if raw.kept is None else moved(raw.kept, device),
        moved(raw.masks.flatten().nonzero().flatten(), device),
    )


def moved(values: Shaped[Tensor, "*shape"], device: torch.device) -> Shaped[Tensor, "*shape"]:
    """On the device; CUDA is not waited for. It keeps what it copies until then, which MPS does not promise."""
    return values.to(device, non_blocking=device.type == "cuda")


def normalise(
    images: Num[Tensor, "batch channels height width"], *, mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "batch channels height width"]:
    """Bytes, or floats in 0..1, to float32 with the given mean and standard deviation of each channel taken out."""
    return _normalise_(in_unit(images), mean=mean, std=std)


def adjust_brightness(
    images: Float[Tensor, "batch channels height width"], factors: Float[Tensor, "batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Multiply each image by its factor."""
    return (images * _column(factors)).clamp_(0, 1)


def adjust_contrast(
    images: Float[Tensor, "batch channels height width"], factors: Float[Tensor, "batch"]
) -> Float[Tensor, "batch channels height width"]:
    """Blend each image with the mean of its grey version, or channels that are no RGB with their own: 0 is the mean."""
    is_rgb = images.shape[1] == RGB
    mean = to_grey(images).mean((1, 2, 3), keepdim=True) if is_rgb else images.mean((2, 3), keepdim=True)
    return (images * _column(factors)).add_(mean * _column(1 - factors)).clamp_(0, 1)


def adjust_saturation(
    images: Float[Tensor, "batch 3 height width"], factors: Float[Tensor, "batch"]
) -> Float[Tensor, "batch 3 height width"]:
    """Blend each image with its grey version: 0 is grey, 1 the image."""
    return (images * _column(factors)).add_(to_grey(images) * _column(1 - factors)).clamp_(0, 1)


def adjust_hue(
    images: Float[Tensor, "batch 3 height width"], factors: Float[Tensor, "batch"]
) -> Float[Tensor, "batch 3 height width"]:
    """Turn the hue of each image by its factor, in turns, with lightness and chroma kept (HSV).

    Written without comparisons, which are slow on a CPU: with the least value l and the chroma c of a pixel, its hue
    counted from red in sixths of a turn is 1 + (g + b - r - l) / c, with the sign of g - b.
    """
    red, green, blue = images.unbind(1)
    least = torch.minimum(torch.minimum(red, green), blue)
    chroma = torch.maximum(torch.maximum(red, green), blue).sub_(least)
    hue = (green + blue).sub_(red).sub_(least).div_(chroma.clamp(min=1e-12)).add_(1).copysign_(green - blue)
    hue.add_(6 * factors[:, None, None])
    hue.sub_((hue / 6).round_(), alpha=6)  # back to -3 ... 3
    turned = torch.empty_like(images)
    torch.addcmul(least, chroma, (2 - hue.abs()).clamp_(0, 1), out=turned[:, 0])
    for channel, centre in ((1, 2), (2, -2)):
        # The circular distance to the channel's own hue is 3 - |3 - |hue - centre||; full within 1, nothing from 2 on.
        share = (hue - centre).abs_().sub_(3).abs_().sub_(1).clamp_(0, 1)
        torch.addcmul(least, chroma, share, out=turned[:, channel])
    return turned


def to_grey(images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1 height width"]:
    """Luma of each pixel (ITU-R BT.601 weights)."""
    red, green, blue = images.unbind(1)
    return (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)[:, None]


def gaussian_blur(
    images: Float[Tensor, "batch channels height width"], sigmas: Float[Tensor, "batch"], *, kernel: int
) -> Float[Tensor, "batch channels height width"]:
    """Blur each image with its own standard deviation; pixels, and an odd side of the kernel. Edges are mirrored."""
    batch, channels, height, width = images.shape
    half = kernel // 2
    offsets = torch.arange(-half, half + 1, dtype=images.dtype, device=images.device)
    weights = torch.softmax(-0.5 * (offsets / sigmas[:, None]) ** 2, dim=1).repeat_interleave(channels, dim=0)
    padded = F.pad(images, (half,) * 4, mode="reflect").flatten(0, 1)[None]  # [1, batch * channels, ...]
    rows = F.conv2d(padded, weights[:, None, None, :], groups=batch * channels)
    blurred = F.conv2d(rows, weights[:, None, :, None], groups=batch * channels)
    return blurred.view(batch, channels, height, width)


def solarize(
    images: Float[Tensor, "batch channels height width"], *, threshold: float
) -> Float[Tensor, "batch channels height width"]:
    """Invert the values from the threshold on."""
    return torch.where(images >= threshold, 1 - images, images)


JITTER: tuple[tuple[Callable[[Tensor, Tensor], Tensor], float], ...] = (
    (adjust_brightness, 1.0),
    (adjust_contrast, 1.0),
    (adjust_saturation, 1.0),
    (adjust_hue, 0.0),
)
"""The four changes in the order of `FACTORS`, each with the factor that changes nothing."""


def _finish(
    crops: Num[Tensor, "batch channels height width"],
    parameters: Float[Tensor, "batch parameters"],
    *,
    augmentation: ViewSettings,
    out: Float[Tensor, "batch channels height width"],
) -> Float[Tensor, "batch channels height width"]:
    """The whole chain for crops of one size, into memory that is there for them."""
    for rows in _chunks(crops):
        images = in_unit(crops[rows])
        _recolour_(images, parameters[rows], augmentation=augmentation)
        out[rows] = _normalise_(images, mean=augmentation.mean, std=augmentation.std)
    return out


def _chunks(crops: Tensor) -> Iterator[slice]:
    """Slices of rows to work on at a time."""
    if not len(crops):
        return
    size = max(1, CPU_CHUNK_VALUES // crops[0].numel()) if crops.device.type == "cpu" else len(crops)
    yield from (slice(first, first + size) for first in range(0, len(crops), size))


def _recolour_(
    images: Float[Tensor, "batch channels height width"],
    parameters: Float[Tensor, "batch parameters"],
    *,
    augmentation: ViewSettings,
) -> None:
    """Jitter, grey, blur and solarise in place. Parameters stay on the CPU, so picking rows never waits for a GPU."""
    factors = parameters[:, FACTORS]
    for place in range(len(JITTER)):
        turn = parameters[:, ORDER][:, place]
        for column, (adjust, neutral) in enumerate(JITTER):
            chosen = (turn == column) & (factors[:, column] != neutral)
            _apply_(images, chosen, adjust, factors[:, column])
    _apply_(images, parameters[:, GREY] > 0, lambda some, _: to_grey(some).expand_as(some), parameters[:, GREY])
    kernel, sigmas = augmentation.blur_kernel, parameters[:, SIGMA]
    _apply_(images, sigmas > 0, lambda some, values: gaussian_blur(some, values, kernel=kernel), sigmas)
    _apply_(
        images,
        parameters[:, SOLARIZE] > 0,
        lambda some, _: solarize(some, threshold=SOLARIZE_THRESHOLD),
        parameters[:, SOLARIZE],
    )


def _apply_(
    images: Float[Tensor, "batch channels height width"],
    chosen: Bool[Tensor, "batch"],
    operation: Callable[[Tensor, Tensor], Tensor],
    values: Float[Tensor, "batch"],
) -> None:
    """Run an operation on the chosen images and their values, in place; the others are not touched."""
    rows = chosen.nonzero().flatten()
    if not len(rows):
        return
    some = moved(values[rows], images.device)
    rows = moved(rows, images.device)
    images.index_copy_(0, rows, operation(images.index_select(0, rows), some))


def _normalise_(
    images: Float[Tensor, "batch channels height width"], *, mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "batch channels height width"]:
    """Take mean and standard deviation of each channel out, in place."""
    shift, scale = moved(torch.tensor((mean, std))[:, :, None, None], images.device)
    return images.sub_(shift).div_(scale)


def _column(values: Float[Tensor, "batch"]) -> Float[Tensor, "batch 1 1 1"]:
    """One value an image, so that it spreads over channels and pixels."""
    return values[:, None, None, None]
