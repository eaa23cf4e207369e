"""One protocol on features at hand."""

import torch
from torch import Tensor

from poa.evaluation.protocol import Outcome, Protocol, Rows

CPU = torch.device("cpu")


def scored(
    protocol: Protocol, train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, *, num_classes: int
) -> Outcome:
    """The outcome for training features and labels, then those of the test images."""
    return protocol(Rows(train, labels), Rows(test, test_labels), num_classes=num_classes, device=CPU)


def hits(outcome: Outcome, score: str = "top1") -> list[bool]:
    """Whether each test image is a hit."""
    return [value > 0 for value in outcome.values[score].tolist()]


def same(first: Outcome, second: Outcome) -> bool:
    """Scores, details and values of all images are equal."""
    return (
        first.scores == second.scores
        and first.details == second.details
        and all(torch.equal(values, second.values[name]) for name, values in first.values.items())
    )
