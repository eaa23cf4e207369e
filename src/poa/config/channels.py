"""What of an image a network sees: its channels, and the range of their values. Imports no torch."""

from typing import Any, NamedTuple

RGB = 3
"""Channels of images in colour."""


class Values(NamedTuple):
    """How the values of image files become those of a network, before mean and standard deviation are taken out."""

    channels: int | None = None
    """None: 8-bit RGB, whatever a file holds. Else files have so many channels, and keep all their bits."""
    range: tuple[float, float] | None = None
    """What becomes 0 and 1. None: 0 and the largest value of unsigned integers; floats are in 0..1 already."""

    @property
    def number(self) -> int:
        """Of the channels that a network sees."""
        return RGB if self.channels is None else self.channels

    def stated(self) -> dict[str, Any]:
        """For files of settings and results: only what is not as usual."""
        return {name: value for name, value in self._asdict().items() if value is not None}


USUAL = Values()
"""8-bit RGB."""


def values_in(stated: Any) -> Values:
    """What ``Values.stated`` gave, read from a file; ValueError or TypeError if it is nothing of the kind."""
    channels, limits = (stated or {}).get("channels"), (stated or {}).get("range")
    low, high = limits or (0, 1)
    return Values(None if channels is None else int(channels), None if limits is None else (float(low), float(high)))
