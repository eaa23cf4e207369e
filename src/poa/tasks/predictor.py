"""What a trained model says of images, part by part, and the files that this becomes."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from poa.data.index import ImageIndex
from poa.data.loader import whole_images
from poa.errors import UserError


class Part(NamedTuple):
    """Predictions for images that follow one another.

    Attributes:
        num_images: How many images, also those that could not be read.
        lines: A line of text for each image that could be read, for ``Predictor.finish``.
        files: The content of further files by path.
        bad: Names of the images that could not be read.
    """

    num_images: int
    lines: Sequence[str] = ()
    files: Mapping[str, bytes] = MappingProxyType({})
    bad: Sequence[str] = ()


class Predictor(ABC):
    """A trained model; subclasses are frozen dataclasses of the network and how images are prepared for it.

    Attributes:
        kind: What the model is, in words.
        example: What ``--out`` may be called.
        is_file: Whether a file is written; else a folder.
        weights: What the parameters are, in words: predictions depend on it.
    """

    kind: str
    example: str
    is_file: bool
    weights: str

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """All that predictions depend on besides the weights and the images, as far as JSON can hold it."""

    @abstractmethod
    def parts(self, index: ImageIndex, *, start: int, workers: int) -> Iterator[Part]:
        """The predictions for all images of an index from ``start`` on, which is the end of an earlier part."""

    @abstractmethod
    def finish(self, lines: Iterator[str], whole: Path) -> None:
        """Write the file ``whole`` from the lines of all parts, or what is missing in the folder of that name."""

    def check_out(self, out: Path) -> None:
        """Refuse a name for the output that does not fit what is written."""
        right = out.suffix.lower() == Path(self.example).suffix if self.is_file else not out.is_file()
        if not right:
            what = f"a file that ends in {Path(self.example).suffix}" if self.is_file else "a folder"
            raise UserError(
                f"--out must be {what} for {self.kind}, got {out}. Write, for example, --out {self.example}."
            )

    def check_images(self, index: ImageIndex) -> None:  # noqa: B027  # optional
        """Refuse images of which not all can be written; called before the first part."""


class ImagePredictor(Predictor):
    """A trained model that takes images one by one, each of its own size."""

    def parts(self, index: ImageIndex, *, start: int, workers: int) -> Iterator[Part]:
        """One image after the other."""
        for number, image in enumerate(whole_images(index, workers=workers, start=start), start=start):
            name = index.name(number)
            yield Part(1, bad=[name]) if image is None else self.part(number, name, image)

    @abstractmethod
    def part(self, number: int, name: str, image: UInt8[Tensor, "1 3 height width"]) -> Part:
        """The prediction for the image of that number and name."""


def check_finite(values: Tensor, *, name: str) -> None:
    """Refuse what a network gives for the image of that name."""
    if not bool(torch.isfinite(values).all()):
        raise UserError(
            f"The model gives values that are not finite for the image {name!r}, so it cannot be used. Train it again "
            "with a lower --lr."
        )
