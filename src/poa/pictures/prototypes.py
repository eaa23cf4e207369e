"""The images that fill the prototypes of a projection head."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

SHOWN = 8
"""Prototypes on a sheet, and images of each."""


class Members(NamedTuple):
    """What one prototype holds.

    Attributes:
        prototype: Its number.
        num_images: Images whose best prototype it is.
        images: The best of them, best first.
    """

    prototype: int
    num_images: int
    images: tuple[int, ...]


def members(
    projected: Float[Tensor, "images dim"],
    prototypes: Float[Tensor, "prototypes dim"],
    *,
    most: int = SHOWN,
    images: int = SHOWN,
) -> list[Members]:
    """The prototypes that most images go to, each with the images that score highest on it.

    An image goes to the prototype of its highest score ``projected @ prototypes.T``; equal counts and scores are
    decided by number.

    Args:
        projected: What the head makes of the class features.
        prototypes: Of the head.
        most: How many prototypes.
        images: How many images of each.
    """
    scores = projected.double().cpu() @ prototypes.double().cpu().T
    best, owner = scores.max(dim=1)
    counts = owner.bincount(minlength=len(prototypes))
    fullest = sorted(range(len(prototypes)), key=lambda prototype: (-int(counts[prototype]), prototype))[:most]
    found = []
    for prototype in fullest:
        own = (owner == prototype).nonzero()[:, 0].tolist()
        own = sorted(own, key=lambda image: (-float(best[image]), image))
        found.append(Members(prototype, len(own), tuple(own[:images])))
    return [each for each in found if each.num_images]
