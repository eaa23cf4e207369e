"""What a run plan starts from: what the images are like, and what the machine has."""

from dataclasses import dataclass

import numpy as np
import torch

from poa.config.channels import RGB, USUAL, Values
from poa.data.images import BadImage
from poa.data.index import ImageIndex
from poa.errors import UserError, counted
from poa.examination.measures import GOOD, measure
from poa.machine.launchers import cores_of
from poa.machine.limits import memory_of_machine
from poa.pretraining.channels import sample

SAMPLE = 100
"""Images that are decoded, evenly spread over all."""
Colour = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What the images are like, as far as a sample tells."""

    number: int
    tried: int
    """Of the sample."""
    side: int
    """Median of the shorter sides, in pixels."""
    pixels: int
    """Median of width times height."""
    is_grey: bool
    mean: Colour
    """Of each channel, of values in 0..1."""
    std: Colour

    def line(self) -> str:
        """In words."""
        number = len(self.mean)
        kind = "grey" if self.is_grey else "colour" if number == RGB else counted(number, "channel")
        return f"{self.number:,}, {kind}, shorter side {self.side} pixels (median of {self.tried} tried)"


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What one process of the run has, and how many processes there are."""

    device: str
    """Kind of device, such as cpu or cuda."""
    memory: int | None
    """Bytes, of the machine or of one GPU; None where the system does not tell."""
    cores: int
    """Of one process."""
    processes: int = 1

    def line(self) -> str:
        """In words."""
        what = "no GPU" if self.device == "cpu" else counted(self.processes, f"{self.device} device")
        memory = "" if self.memory is None else f", {self.memory / 1e9:.0f} GB of memory"
        return f"{what}, {counted(self.cores, 'core')}{memory}"


def images_of(index: ImageIndex, values: Values = USUAL) -> ImageFacts:
    """Decode a sample of the images, perhaps with channels of their own.

    Raises:
        UserError: None of them can be read.
    """
    if values != USUAL:
        some = sample(index, values)
        height, width = np.array(some.sides).T
        side, pixels = int(np.median(np.minimum(width, height))), int(np.median(width * height))
        return ImageFacts(len(index), some.number, side, pixels, False, some.mean, some.std)
    records, reason = [], ""
    for i in range(0, len(index), max(1, len(index) // SAMPLE)):
        try:
            measured = measure(index.read(i))
        except BadImage as error:
            reason = str(error)
            continue
        reason = measured.reason or reason
        records += [measured.record] if measured.record["state"] == GOOD else []
    if not records:
        raise UserError(f"No image tried in {index.source} can be read ({reason}). Fix them, or give another --data.")
    found = np.stack(records)
    width, height = found["width"].astype(np.int64), found["height"].astype(np.int64)
    mean = found["mean"].mean(axis=0)
    variance = found["square"].mean(axis=0) - mean**2
    return ImageFacts(
        number=len(index),
        tried=len(found),
        side=int(np.median(np.minimum(width, height))),
        pixels=int(np.median(width * height)),
        is_grey=bool(found["grey"].all()),
        mean=_rounded(mean),
        std=_rounded(np.sqrt(np.maximum(variance, 0.0))),
    )


def _rounded(values: np.ndarray[tuple[int], np.dtype[np.floating]]) -> Colour:
    red, green, blue = (max(round(float(value), 3), 0.01) for value in values)
    return red, green, blue


def machine_of(device: torch.device, *, local: int, processes: int) -> MachineFacts:
    """What the machine of this process has, with ``local`` of all processes on it."""
    memory = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else memory_of_machine()
    return MachineFacts(device.type, memory, cores_of(local), processes)
