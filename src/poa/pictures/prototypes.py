"""The images that fill the prototypes of a projection head."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from poa.config.pretraining import SELF_DISTILLED
from poa.elastic.skeleton import skeleton
from poa.elastic.space import Size
from poa.elastic.switchable import SwitchableNetworks
from poa.errors import UserError
from poa.methods.layers import ProjectionHead
from poa.methods.poa import Network
from poa.models.run import Run
from poa.training.checkpoint import load_checkpoint

SHOWN = 8
"""Prototypes on a sheet, and images of each."""


class Members(NamedTuple):
    """Images whose best prototype is the one of this number."""

    prototype: int
    num_images: int
    images: tuple[int, ...]
    """The best of them, best first."""


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


def heads_of(run: Run, size: str) -> tuple[ProjectionHead, ...]:
    """The teacher's heads, cut for a size as its sub-network was trained with them."""
    if run.config.method not in SELF_DISTILLED:
        raise UserError(
            f"Runs of the method {run.config.method} have no prototypes; runs of the methods "
            f"{', '.join(SELF_DISTILLED)} do."
        )
    if run.config.losses.kind != "prototypes":
        raise UserError(
            f"Runs with --losses.kind {run.config.losses.kind} have no prototypes; leave this kind of picture out."
        )
    family, wanted = run.family, run.space.find(size)

    def build(each: Size) -> Network:
        return Network(family.build(each), run.config.heads)

    sub_networks = family.sub_networks(build)
    assert not isinstance(sub_networks, SwitchableNetworks)
    intact = skeleton(sub_networks.whole)
    state = load_checkpoint(run.checkpoint)["method"]
    intact.load_state_dict({name: state[f"teacher.{name}"] for name in intact.state_dict()}, assign=True)
    network = sub_networks.extract(wanted, intact)
    assert isinstance(network, Network)
    return tuple(head for head in network.heads if isinstance(head, ProjectionHead))
