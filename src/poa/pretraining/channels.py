"""Channels of the images of a run: their mean and standard deviation, and what is not done to them."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Num
from rich.console import Console
from torch import Tensor

from poa.config.channels import RGB, Values
from poa.config.pretraining import Config
from poa.data.channels import in_unit
from poa.data.index import ImageIndex
from poa.data.loader import read_or_none, why_bad
from poa.errors import UserError, counted
from poa.text import note

SAMPLE = 256
"""Images that are decoded, evenly spread over all."""


class Sampled(NamedTuple):
    """What some images of a set are like."""

    number: int
    sides: tuple[tuple[int, int], ...]
    """Height and width of each."""
    mean: tuple[float, ...]
    """Of each channel, all images counting the same."""
    std: tuple[float, ...]
    """Of each channel; 1 where all values are the same."""


def some_images(index: ImageIndex, values: Values) -> Iterator[Num[Tensor, "1 channels height width"]]:
    """Images evenly spread over all; those that cannot be read are left out.

    Raises:
        UserError: None of them can be read.
    """
    tried = (read_or_none(index, i, values) for i in range(0, len(index), max(1, len(index) // SAMPLE)))
    found = (pixels for pixels in tried if pixels is not None)
    if (first := next(found, None)) is None:
        why = why_bad(index, 0, values)
        raise UserError(f"No image tried in {index.source} can be read ({why}). Fix them, or give another --data.")
    yield first
    yield from found


def sample(index: ImageIndex, values: Values) -> Sampled:
    """Decode some of the images.

    Raises:
        UserError: None of them can be read.
    """
    sides, means, squares = [], [], []
    for pixels in some_images(index, values):
        channels = in_unit(pixels)[0].double()
        sides.append((channels.shape[1], channels.shape[2]))
        means.append(channels.mean((1, 2)).numpy())
        squares.append(channels.square().mean((1, 2)).numpy())
    mean = np.mean(means, axis=0)
    std = np.sqrt(np.maximum(np.mean(squares, axis=0) - mean**2, 0.0))
    return Sampled(len(sides), tuple(sides), _rounded(mean), _rounded(np.where(std > 1e-6, std, 1.0)))


def with_channels(config: Config, index: ImageIndex, console: Console) -> Config:
    """The settings with mean and standard deviation of the channels, measured where those of RGB do not fit.

    Raises:
        UserError: Channels, their range, mean and standard deviation do not fit together.
    """
    check_range(config)
    values, views = config.values, config.views
    given = len(views.mean), len(views.std)
    if given == (RGB, RGB) == (values.number, RGB):
        return config
    what = counted(values.number, "channel")
    if given not in ((values.number,) * 2, (RGB, RGB)):  # the latter are those of the settings or of a recipe
        raise UserError(
            f"--views.mean has {counted(given[0], 'value')} and --views.std {given[1]}, but images have {what}. Give "
            "one for each channel, or leave both out to have them measured."
        )
    if any(views.jitter[2:]) or views.grey_probability:
        note(
            console,
            f"Images have {what}: colour jitter changes their brightness and contrast. Saturation, hue and conversion "
            "to grey are left out, since they are made for red, green and blue.",
        )
    if given == (values.number,) * 2:
        return config
    found = sample(index, values)
    mean, std = (" ".join(f"{value:g}" for value in each) for each in (found.mean, found.std))
    measured = f"Measured on {counted(found.number, 'image')} and kept with the run"
    note(console, f"{measured}: --views.mean {mean} --views.std {std}")
    return config.model_copy(update={"views": views.model_copy(update={"mean": found.mean, "std": found.std})})


def check_range(config: Config) -> None:
    """See that a range is one, and has images that keep their values.

    Raises:
        UserError: It is not.
    """
    given = config.value_range
    if given is not None and (config.values.channels is None or given[0] == given[1]):
        raise UserError(
            f"--value-range {given[0]:g} {given[1]:g} needs --channels, and two different values. Say how many "
            "channels the images have, or leave it out."
        )


def _rounded(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> tuple[float, ...]:
    """To four digits, so that they can be read and given again."""
    return tuple(float(f"{value:.4g}") for value in values)
