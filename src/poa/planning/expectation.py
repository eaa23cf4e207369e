"""What to expect of a run: what the run of ours came to that is nearest to it, and how far from it that was."""

import math
from typing import NamedTuple

Percent = tuple[float, float]
"""Lowest and highest score of the sizes of a run."""


class Reference(NamedTuple):
    """A run of docs/results.md: k-NN of 20 neighbours in percent."""

    images: str
    number: int
    side: int
    """Shorter side of the images, in pixels."""
    classes: int
    family: str
    crop: int
    steps: int
    trained: Percent
    untrained: Percent | None = None


REFERENCES = (
    Reference("digits", 1352, 8, 10, "vit", 16, 420, (98.4, 99.3), (92.1, 94.6)),
    Reference("CIFAR-10", 5_000, 32, 10, "vit", 32, 858, (50.2, 51.6), (32.6, 34.3)),
    Reference("CIFAR-10", 10_000, 32, 10, "vit", 32, 3432, (57.6, 59.7), (33.3, 35.3)),
    Reference("CIFAR-10", 10_000, 32, 10, "vit", 32, 9204, (59.6, 61.7), (33.3, 35.3)),
    Reference("Caltech-101", 9144, 160, 102, "vit", 48, 1136, (51.0, 51.6), (31.9, 34.4)),
    Reference("Caltech-101", 9144, 160, 102, "vit", 96, 710, (48.6, 49.8), (28.4, 30.0)),
    Reference("CIFAR-10", 10_000, 32, 10, "swin", 32, 1248, (38.4, 40.2), (28.6, 29.7)),
    Reference("CIFAR-10", 10_000, 32, 10, "resnet", 32, 7020, (47.5, 48.8), (29.7, 34.1)),
    Reference("CIFAR-10", 10_000, 32, 10, "convnext", 32, 780, (46.3, 46.7), (32.2, 36.4)),
    Reference("CIFAR-10", 10_000, 32, 10, "convnext", 48, 2184, (48.1, 48.6)),
    Reference("Caltech-101", 9144, 160, 102, "convnext", 48, 568, (43.2, 44.3), (33.2, 36.9)),
)
TITLES = {"vit": "ViT", "swin": "Swin", "resnet": "ResNet", "convnext": "ConvNeXt"}
IMAGES_A_STEP = 64
"""Of these runs."""
OTHER_FAMILY = 3.0
"""As far away as eight times as many images."""


def nearest_run(*, family: str, number: int, side: int, steps: int) -> Reference:
    """The run whose images, their sides and its steps differ least, by factors, from those of a run."""

    def distance(run: Reference) -> float:
        ratios = (number / run.number, side / run.side, steps / run.steps)
        return sum(abs(math.log2(ratio)) for ratio in ratios) + OTHER_FAMILY * (family != run.family)

    return min(REFERENCES, key=distance)


def expectation(*, family: str, number: int, side: int, images_seen: int) -> str:
    """Some sentences that promise no more than our results do."""
    run = nearest_run(family=family, number=number, side=side, steps=max(1, images_seen // IMAGES_A_STEP))
    untrained = "" if run.untrained is None else f" ({_range(run.untrained)} % untrained)"
    network = f"a {TITLES[run.family]}" if family == run.family else f"of another family, a {TITLES[run.family]},"
    ours = f"{run.number:,} images of {run.images} ({run.side} pixels)"
    return (
        f"The nearest of our runs, {network} on {ours}, trained on {IMAGES_A_STEP * run.steps:,} images in all its "
        f"steps and came to {_range(run.trained)} % by k-NN in {run.classes} classes{untrained}. Yours has {number:,} "
        f"images of {side} pixels and trains on {images_seen:,}. Scores of other images and classes differ: take from "
        "it only that training helps."
    )


def _range(scores: Percent) -> str:
    return f"{scores[0]:.1f} to {scores[1]:.1f}"
