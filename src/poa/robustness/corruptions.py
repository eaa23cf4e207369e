"""Common corruptions of images at five severities: noise, blur, weather and digital losses, the same at every call.

Kinds and, where they carry over, strengths are those of ImageNet-C (Hendrycks & Dietterich, ICLR 2019, Sec. 4.1). The
code is our own and works on 8-bit images of any side; weather that cannot be made from one image without pictures of it
(snow, frost) is left out.

Lengths are given for images of 224 pixels and grow with the side: a blur removes the same details of the scene
however many pixels show it. Shares and levels of brightness are no lengths and stay: noise is drawn for each pixel,
pixelation keeps a share of the pixels, and JPEG works on blocks of eight pixels at any size.

What is drawn for an image depends on the seed, the corruption and the number of the image alone, and not on the
severity: at the next severity the same noise is stronger, the same fog thicker.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, cos, pi, sin

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from poa.errors import UserError, nearest

SEVERITIES = (1, 2, 3, 4, 5)
PUBLISHED_SIDE = 224
"""Side of the images, in pixels, for which lengths are given."""
STREAM = 2  # keeps these numbers apart from others drawn with the same seed
_OVERSAMPLING = 32  # points along a pixel's side when the edge of a disk or a line is spread over pixels

Floats = Float[Tensor, "batch 3 side side"]
"""Values from 0 to 1."""
Generators = Sequence[np.random.Generator]
"""One an image."""


@dataclass(frozen=True)
class Corruption:
    """One kind.

    Attributes:
        name: Of the scores.
        group: Noise, blur, weather or digital.
        what: What the strengths are, in words.
        strengths: One a severity.
        make: Images from 0 to 1, a generator an image and a strength, to images that need not stay in that range.
    """

    name: str
    group: str
    what: str
    strengths: tuple[float, float, float, float, float]
    make: Callable[[Floats, Generators, float], Floats]


def corrupt(
    images: UInt8[Tensor, "batch 3 side side"], name: str, severity: int, *, numbers: Sequence[int], seed: int = 0
) -> UInt8[Tensor, "batch 3 side side"]:
    """Images with a corruption, such as ``gaussian-noise``.

    The numbers of the images in their set and the seed key all that is drawn.

    Raises:
        UserError: There is no such corruption or severity.
    """
    check_corruptions([name], [severity])
    corruption = CORRUPTIONS[name]
    place = list(CORRUPTIONS).index(name)
    generators = [generator_of(seed, number, stream=place) for number in numbers]
    found = corruption.make(images.float() / 255, generators, corruption.strengths[severity - 1])
    return (found.clamp(0, 1) * 255).round().to(torch.uint8)


def check_corruptions(names: Sequence[str], severities: Sequence[int]) -> None:
    """See that corruptions and severities exist."""
    for name in names:
        if name not in CORRUPTIONS:
            raise UserError(f"There is no corruption {name!r}. {nearest(name, CORRUPTIONS)}")
    for severity in severities:
        if severity not in SEVERITIES:
            raise UserError(f"Severities of corruptions go from 1 to 5, got {severity}.")


def generator_of(seed: int, number: int, *, stream: int) -> np.random.Generator:
    """Random numbers of one image of an evaluation, for the purpose that ``stream`` stands for."""
    key = np.array([seed, number], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, stream, STREAM]))


def _scaled(length: float, side: int) -> float:
    return length * side / PUBLISHED_SIDE


def _fixed(make: Callable[[Floats, float], Floats]) -> Callable[[Floats, Generators, float], Floats]:
    """A corruption in which nothing is drawn."""
    return lambda images, _, strength: make(images, strength)


def _gaussian_noise(images: Floats, generators: Generators, strength: float) -> Floats:
    return images + strength * _drawn(images, generators, lambda each, shape: each.standard_normal(shape, np.float32))


def _shot_noise(images: Floats, generators: Generators, strength: float) -> Floats:
    """Photons are counted: ``strength`` of them make full brightness."""
    counts = [each.poisson(image.numpy() * strength) for each, image in zip(generators, images.cpu(), strict=True)]
    return torch.from_numpy(np.stack(counts)).to(images) / strength


def _impulse_noise(images: Floats, generators: Generators, strength: float) -> Floats:
    """A share of all values, each channel for itself, becomes 0 or 1."""
    drawn = _drawn(images, generators, lambda each, shape: each.random(shape, np.float32))
    return torch.where(drawn < strength / 2, 0.0, torch.where(drawn > 1 - strength / 2, 1.0, images))


def _drawn(
    images: Floats,
    generators: Generators,
    draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray],
) -> Floats:
    shape = tuple(images.shape[1:])
    return torch.from_numpy(np.stack([draw(each, shape) for each in generators])).to(images)


def _gaussian_blur(images: Floats, strength: float) -> Floats:
    sigma = _scaled(strength, images.shape[-1])
    radius = max(1, ceil(4 * sigma))
    places = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (places / sigma) ** 2)
    kernel = weights[:, None] * weights
    return _filtered(images, kernel[None])


def _defocus_blur(images: Floats, strength: float) -> Floats:
    """A point becomes a disk; pixels at its edge count by the part of them inside."""
    radius = _scaled(strength, images.shape[-1])
    reach = max(1, ceil(radius))
    offsets = (torch.arange((2 * reach + 1) * _OVERSAMPLING, dtype=torch.float64) + 0.5) / _OVERSAMPLING
    offsets = offsets - reach - 0.5
    inside = (offsets[:, None] ** 2 + offsets**2 <= radius**2).double()
    kernel = F.avg_pool2d(inside[None], _OVERSAMPLING)
    return _filtered(images, kernel)


def _motion_blur(images: Floats, generators: Generators, strength: float) -> Floats:
    """A point becomes a straight line, in another direction in each image."""
    length = _scaled(strength, images.shape[-1])
    kernels = [_line(length, float(each.uniform(0, pi))) for each in generators]
    return _filtered(images, torch.stack(kernels))


def _line(length: float, angle: float) -> Float[Tensor, "kernel kernel"]:
    """A line through the middle; each of many points on it is shared among the four pixels around it."""
    reach = ceil(length / 2) + 1
    kernel = torch.zeros(2 * reach + 1, 2 * reach + 1, dtype=torch.float64)
    along = torch.linspace(-length / 2, length / 2, 2 * ceil(length * _OVERSAMPLING / 2) + 1, dtype=torch.float64)
    rows, columns = reach + along * sin(angle), reach + along * cos(angle)
    top, left = rows.floor(), columns.floor()
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weights = (1 - (rows - top - down).abs()) * (1 - (columns - left - right).abs())
        kernel.index_put_(((top + down).long(), (left + right).long()), weights, accumulate=True)
    return kernel


def _filtered(images: Floats, kernels: Float[Tensor, "kernels kernel kernel"]) -> Floats:
    """Convolve each image with its kernel, or all with one, in the Fourier domain; borders are mirrored."""
    side, reach = images.shape[-1], kernels.shape[-1] // 2
    kernels = (kernels / kernels.sum((1, 2), keepdim=True)).to(images)
    padded = F.pad(images, (reach,) * 4, mode="reflect" if reach < side else "replicate")
    whole = list(padded.shape[-2:])
    product = torch.fft.rfft2(padded) * torch.fft.rfft2(kernels[:, None], s=whole)
    blurred: Tensor = torch.fft.irfft2(product, s=whole)
    return blurred[..., 2 * reach :, 2 * reach :]


def _fog(images: Floats, generators: Generators, strength: float) -> Floats:
    """Clouds laid over the image: noise whose amplitude falls with the square of the frequency, from 0 to 1."""
    side = images.shape[-1]
    frequencies = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]) * side
    falling = 1 / np.maximum(frequencies, 1) ** 2
    falling[0, 0] = 0
    clouds = []
    for each in generators:
        cloud = np.fft.irfft2(np.fft.rfft2(each.standard_normal((side, side))) * falling, s=(side, side))
        clouds.append((cloud - cloud.min()) / max(np.ptp(cloud), 1e-12))
    laid = torch.from_numpy(np.stack(clouds)).to(images)[:, None]
    return (images + strength * laid) / (1 + strength)


def _brightness(images: Floats, strength: float) -> Floats:
    """The greatest of a pixel's three values rises, with hue and saturation kept (HSV)."""
    value = images.amax(1, keepdim=True)
    raised = (value + strength).clamp(max=1)
    return torch.where(value > 0, images * (raised / value.clamp(min=1e-6)), raised)


def _contrast(images: Floats, strength: float) -> Floats:
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * strength + mean


def _pixelate(images: Floats, strength: float) -> Floats:
    side = images.shape[-1]
    coarse = F.adaptive_avg_pool2d(images, max(1, round(side * strength)))
    return F.interpolate(coarse, size=(side, side), mode="nearest-exact")


def _jpeg(images: Floats, strength: float) -> Floats:
    encoded = [_through_jpeg(image, round(strength)) for image in (images * 255).round().to(torch.uint8).cpu()]
    return torch.stack(encoded).to(images) / 255


def _through_jpeg(image: UInt8[Tensor, "3 side side"], quality: int) -> UInt8[Tensor, "3 side side"]:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


CORRUPTIONS: Mapping[str, Corruption] = {
    each.name: each
    for each in (
        Corruption("gaussian-noise", "noise", "standard deviation", (0.08, 0.12, 0.18, 0.26, 0.38), _gaussian_noise),
        Corruption("shot-noise", "noise", "photons at full brightness", (60.0, 25.0, 12.0, 5.0, 3.0), _shot_noise),
        Corruption("impulse-noise", "noise", "share of values", (0.03, 0.06, 0.09, 0.17, 0.27), _impulse_noise),
        Corruption(
            "gaussian-blur",
            "blur",
            "standard deviation, pixels of 224",
            (1.0, 2.0, 3.0, 4.0, 6.0),
            _fixed(_gaussian_blur),
        ),
        Corruption("defocus-blur", "blur", "radius, pixels of 224", (3.0, 4.0, 6.0, 8.0, 10.0), _fixed(_defocus_blur)),
        Corruption("motion-blur", "blur", "length, pixels of 224", (8.0, 12.0, 18.0, 24.0, 32.0), _motion_blur),
        Corruption("fog", "weather", "fog against image", (1.0, 1.5, 2.0, 2.5, 3.0), _fog),
        Corruption("brightness", "weather", "added to the value", (0.1, 0.2, 0.3, 0.4, 0.5), _fixed(_brightness)),
        Corruption("contrast", "digital", "share of the contrast", (0.4, 0.3, 0.2, 0.1, 0.05), _fixed(_contrast)),
        Corruption("pixelate", "digital", "share of the side", (0.6, 0.5, 0.4, 0.3, 0.25), _fixed(_pixelate)),
        Corruption("jpeg", "digital", "quality", (25.0, 18.0, 15.0, 10.0, 7.0), _fixed(_jpeg)),
    )
}
"""All kinds, in the order in which they are shown."""
