"""What is measured of one image."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops

from poa.data.content import short_digest
from poa.data.images import BadImage, opened

SIDE = 16
"""Of the thumbnails, in pixels."""
GOOD, UNREADABLE, TRUNCATED = 0, 1, 2
"""States of a file."""
RECORD = np.dtype(
    [
        ("digest", "<u8"),  # of the whole file; 0 if it is empty or cannot be read from the disk
        ("width", "<i4"),  # once it is upright, in pixels
        ("height", "<i4"),
        ("mode", "S8"),  # Pillow's name of the kind of its pixels
        ("mean", "<f4", 3),  # of each channel, values in 0..1
        ("square", "<f4", 3),  # mean of the squares
        ("state", "u1"),
        ("grey", "?"),
        ("thumbnail", "u1", (SIDE, SIDE)),  # in grey
    ]
)
_SAME = 2
"""Of 255: channels that differ by no more are equal, since JPEG rounds."""
_VALUES = np.arange(256) / 255


class Measured(NamedTuple):
    """The record of an image, and why it cannot be read, if so."""

    record: npt.NDArray[Any]
    reason: str


def measure(encoded: bytes) -> Measured:
    """Measure an image file."""
    digest = int(short_digest(encoded), 16) if encoded else 0
    try:
        image = opened(encoded)
    except BadImage as error:
        return unread(str(error), digest)
    record = np.zeros((), RECORD)
    record["digest"] = digest
    record["width"], record["height"] = image.rgb.size
    record["mode"] = image.stored.mode.encode()
    record["mean"], record["square"] = _moments(image.rgb)
    record["grey"] = _is_grey(image.rgb)
    record["thumbnail"] = np.asarray(image.rgb.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))
    return Measured(record, "")


def unread(reason: str, digest: int = 0) -> Measured:
    """Of a file that is no image, or that the system does not give."""
    record = np.zeros((), RECORD)
    record["digest"] = digest
    record["state"] = TRUNCATED if "truncated" in reason.lower() else UNREADABLE
    return Measured(record, reason)


def _moments(image: Image.Image) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean of the values of each channel, and of their squares."""
    counts = np.array(image.histogram(), np.float64).reshape(3, 256)
    shares = counts / counts.sum(axis=1, keepdims=True)
    return shares @ _VALUES, shares @ _VALUES**2


def _is_grey(image: Image.Image) -> bool:
    red, green, blue = image.split()
    return not any(any(ImageChops.difference(red, other).histogram()[_SAME + 1 :]) for other in (green, blue))
