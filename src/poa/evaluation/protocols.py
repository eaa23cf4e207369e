"""What a way of scoring frozen features is: settings, and a function from the rows of a network to scores."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from poa.errors import UserError
from poa.evaluation.intervals import bootstrap_interval

LEVEL = 0.95
"""Of the intervals beside scores."""
Columns = Mapping[str, tuple[int, int]]
"""First column and the one after the last, by name."""
_UNNAMED: Columns = MappingProxyType({})


class Rows(NamedTuple):
    """Features of images from one network, with the images' classes.

    Attributes:
        features: One row an image.
        labels: Classes from 0.
        columns: Pieces of a row by name, where a protocol has prepared the network to give several.
    """

    features: Float[Tensor, "images width"]
    labels: Int[Tensor, " images"]
    columns: Columns = _UNNAMED


class Prepared(NamedTuple):
    """A network as a protocol wants to see it.

    Attributes:
        network: Gives ``poa.families.base.Features``, whose ``cls`` become the rows.
        columns: Pieces of a row by name.
    """

    network: nn.Module
    columns: Columns = _UNNAMED


@dataclass(frozen=True)
class Outcome:
    """What a protocol found out about one network.

    Attributes:
        scores: In percent, by name.
        values: The same for each test image, of those scores that are a mean over images.
        details: What else is worth to be written down, such as what was chosen on the way; no scores.
    """

    scores: Mapping[str, float]
    values: Mapping[str, Float[Tensor, " _"]] = field(default_factory=dict)
    details: Mapping[str, float] = field(default_factory=dict)

    def intervals(self) -> dict[str, tuple[float, float]]:
        """Bootstrap intervals over test images, of the scores that have values of more than one image."""
        found = {
            name: bootstrap_interval(values, level=LEVEL) for name, values in self.values.items() if len(values) > 1
        }
        return {name: (interval.low, interval.high) for name, interval in found.items()}


@dataclass(frozen=True)
class Protocol(ABC):
    """A way of scoring frozen features; a subclass is a frozen dataclass, whose fields are its settings.

    Attributes:
        name: Of the command and of the files of results.
        headline: The score to show where there is room for one.
        needs_train: Whether it looks at training images; without, it gets no rows of them.
        joint: Whether the scores of a network depend on which others are scored with it.
    """

    name: ClassVar[str]
    headline: ClassVar[str]
    needs_train: ClassVar[bool] = True
    joint: ClassVar[bool] = False

    def settled(
        self,
        train_labels: Int[Tensor, " train"],  # noqa: ARG002  # for subclasses
        test_labels: Int[Tensor, " test"],  # noqa: ARG002
    ) -> "Protocol":
        """The same with every setting as it will be used, so that results say it.

        Args:
            train_labels: Classes from 0 of all training images.
            test_labels: Of all test images.

        Raises:
            UserError: These images cannot be scored with these settings; told before features are extracted.
        """
        return self

    def prepare(self, network: nn.Module, *, image_size: int) -> Prepared:  # noqa: ARG002  # for subclasses
        """The network as it is to be seen; by default as it is.

        Args:
            network: In evaluation mode.
            image_size: Side of the images, in pixels.
        """
        return Prepared(network)

    @abstractmethod
    def __call__(self, train: Rows, test: Rows, *, num_classes: int, device: torch.device) -> Outcome:
        """Score one network.

        Args:
            train: Rows of the training images that could be read.
            test: Rows of the test images.
            num_classes: Number of classes.
            device: Where to compute.

        Raises:
            UserError: The features or the labels cannot be used.
        """

    def outcomes(
        self, rows: Mapping[str, tuple[Rows, Rows]], *, num_classes: int, device: torch.device
    ) -> Iterator[tuple[str, Outcome | UserError]]:
        """Score networks whose features were taken together, or say why one cannot be scored.

        Args:
            rows: Training and test rows of each network.
            num_classes: Number of classes.
            device: Where to compute.
        """
        for name, (train, test) in rows.items():
            try:
                yield name, self(train, test, num_classes=num_classes, device=device)
            except UserError as error:
                yield name, error


def percent(hits: Bool[Tensor, " images"]) -> Float[Tensor, " images"]:
    """100 for a hit, 0 for a miss.

    Args:
        hits: One an image.
    """
    return 100.0 * hits.double()
