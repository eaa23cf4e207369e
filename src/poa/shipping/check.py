"""What an exported file has to do: the same as the network that it was made from, as nearly as its precision allows."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Num
from torch import Tensor, nn

from poa.config.channels import USUAL, Values
from poa.data.augment import normalise
from poa.data.channels import alike
from poa.data.images import Preprocessing
from poa.data.index import ImageIndex
from poa.data.loader import read_or_none
from poa.data.resize import centre_crop
from poa.errors import UserError
from poa.export.about import Precision

BATCHES = (1, 2, 5)
"""In which the images of the comparison go through a file, so that no size of a batch is frozen in it."""
TOLERANCES: Mapping[Precision, float] = {"fp32": 1e-5, "fp16": 2e-2}
"""Largest difference allowed, as a share of the largest value that the network gives."""
LEAST_COSINE = 0.9
"""Between the outputs of an int8 file and of the network, in the mean over images."""


Outputs = Sequence[Tensor]
"""All that comes out for some images, each with the rows of all of them."""


class Agreement(NamedTuple):
    """How near the outputs of a file are to those of the network.

    Attributes:
        difference: The largest, as a share of the largest value of the network.
        cosine: In the mean over images.
    """

    difference: float
    cosine: float


def agreement(found: Outputs, expected: Outputs) -> Agreement:
    """Compare outputs for the same images, of several the worst."""
    each = [_agreement(*pair) for pair in zip(found, expected, strict=True)]
    return Agreement(max(one.difference for one in each), min(one.cosine for one in each))


def _agreement(found: Tensor, expected: Tensor) -> Agreement:
    """What is not finite, or not of that shape, agrees in nothing; nothing agrees with nothing."""
    if found.shape != expected.shape or not bool(torch.isfinite(found).all()):
        return Agreement(float("inf"), 0.0)
    if not expected.numel():
        return Agreement(0.0, 1.0)
    rows, wanted = (each.reshape(len(each), -1).double() for each in (found, expected))
    most = float((rows - wanted).abs().max()) / max(float(wanted.abs().max()), torch.finfo(torch.float32).tiny)
    return Agreement(most, float(torch.cosine_similarity(rows, wanted, dim=1).mean()))


def refusal(found: Agreement, precision: Precision, *, tolerance: float | None) -> str | None:
    """Why a file must not be used, or None."""
    allowed = TOLERANCES.get(precision) if tolerance is None else tolerance
    if allowed is not None and not found.difference <= allowed:
        return (
            f"its outputs differ by up to {found.difference:.1e} of the largest value, more than {allowed:.0e}; if "
            f"that is good enough, give a higher --tolerance"
        )
    if precision == "int8" and not found.cosine >= LEAST_COSINE:
        return (
            f"the cosine between its outputs and those of the network is {found.cosine:.3f}, less than {LEAST_COSINE}; "
            "calibrate on more images or on others (--calibrate), or take fp16"
        )
    return None


def sample(index: ImageIndex, preprocessing: Preprocessing, *, most: int) -> Num[Tensor, "images channels side side"]:
    """Images evenly spread over an index, prepared as for a test; those that cannot be read are left out.

    Digits, which are compared on where nothing else is known, are the same in all channels.

    Raises:
        UserError: None can be read.
    """
    values, digits = preprocessing.values, index.source == "digits" and preprocessing.values != USUAL
    chosen = np.linspace(0, len(index) - 1, min(most, len(index))).round().astype(int)
    opened = (read_or_none(index, int(number), Values(1) if digits else values) for number in chosen)
    crops = [
        centre_crop(pixels, size=preprocessing.image_size, resize_to=preprocessing.resize)
        for pixels in opened
        if pixels is not None
    ]
    if not crops:
        raise UserError(f"None of the images tried in {index.source} can be read. Check that the files are images.")
    found = torch.cat(alike(crops))
    return found.expand(-1, values.number, -1, -1) if digits else found


def as_input(
    images: Num[Tensor, "images channels side side"], preprocessing: Preprocessing, *, pixels: bool
) -> npt.NDArray[Any]:
    """Images as a file takes them."""
    if pixels:
        return images.permute(0, 2, 3, 1).contiguous().numpy()
    return normalise(images, mean=preprocessing.mean, std=preprocessing.std).numpy()


@torch.inference_mode()
def outputs(
    network: nn.Module,
    images: Num[Tensor, "images channels side side"],
    preprocessing: Preprocessing,
    *,
    at_once: int = 32,
) -> Outputs:
    """What the network itself gives, for some images ``at_once``."""
    parts = [
        network(normalise(some, mean=preprocessing.mean, std=preprocessing.std))
        for some in torch.split(images, at_once)
    ]
    return [torch.cat(each) for each in zip(*(_several(part) for part in parts), strict=True)]


def _several(found: Tensor | Outputs) -> Outputs:
    return [found] if isinstance(found, Tensor) else found
