"""Projection heads of a run, for every size: what compares features with prototypes in training."""

from poa.elastic.plan import skeleton
from poa.elastic.space import Size
from poa.elastic.switchable import SwitchableNetworks
from poa.errors import UserError
from poa.families.base import Family
from poa.heads import ProjectionHead
from poa.methods.network import Network
from poa.methods.single import HeadSettings
from poa.run import Run
from poa.training.checkpoint import load_checkpoint

WITH_PROTOTYPES = ("poa", "single")
"""Methods whose heads have prototypes."""


def heads_of(run: Run, size: str) -> tuple[ProjectionHead, ...]:
    """The teacher's heads, cut for a size as its sub-network was trained with them.

    Args:
        run: With a checkpoint.
        size: Such as ``384x12``.

    Raises:
        UserError: The run has no prototypes, or no such size.
    """
    if run.config.method not in WITH_PROTOTYPES:
        raise UserError(
            f"Runs of the method {run.config.method} have no prototypes, only {', '.join(WITH_PROTOTYPES)}."
        )
    family, wanted = run.family, run.space.find(size)
    given = run.config.heads
    settings = HeadSettings(given.prototypes, given.hidden, given.bottleneck)

    def build(each: Size) -> Network:
        return _network(family, each, settings)

    sub_networks = family.sub_networks(build)
    assert not isinstance(sub_networks, SwitchableNetworks)
    intact = skeleton(sub_networks.whole)
    state = load_checkpoint(run.checkpoint)["method"]
    prefix = "teacher."
    intact.load_state_dict(
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}, assign=True
    )
    network = sub_networks.extract(wanted, intact)
    assert isinstance(network, Network)
    return tuple(head for head in network.heads if isinstance(head, ProjectionHead))


def _network(family: Family, size: Size, settings: HeadSettings) -> Network:
    backbone = family.build(size)
    return Network(
        backbone,
        [
            ProjectionHead(
                backbone.num_features, num_prototypes=number, hidden=settings.hidden, bottleneck=settings.bottleneck
            )
            for number in settings.prototypes
        ],
    )
