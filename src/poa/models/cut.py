"""Sizes cut out of trained weights of others, without any training."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from poa.config.channels import USUAL
from poa.config.resolve import resolve
from poa.data.images import Preprocessing
from poa.elastic.network import SubNetworks, state
from poa.elastic.space import SearchSpace, Size
from poa.errors import UserError
from poa.export.card import UNKNOWN, Origin
from poa.export.timm import write_size
from poa.families.base import Backbone, Family
from poa.models import hub, registry
from poa.models.folder import made_for, resized_for, values_of
from poa.models.init import fit
from poa.models.origin import base_name, licence_of
from poa.models.run import is_run
from poa.models.source import check_side
from poa.models.weights import TrainedWeights, read

COST = (
    "A size that is cut without training has lost most of what the whole network knew; with fewer blocks and channels "
    "it has lost more. Score it first (`poa evaluate knn FOLDER`), or train all sizes from these weights "
    "(`poa pretrain --init`) and extract them then."
)
"""What cutting alone costs, for the user and for model cards."""


class CutWeights:
    """Trained weights from which sizes are cut; the same network and weights as a run with ``--init`` begins with."""

    def __init__(self, name: str, *, model: Mapping[str, Any] | None = None, image_size: int | None = None) -> None:
        """Read the weights.

        Args:
            name: A folder that timm loads, a timm name, or a file of weights.
            model: Settings of the search space and the network, as ``model`` of a run; the network that the weights are
                named after by default.
            image_size: Side of the images in pixels; that of the weights by default.

        Raises:
            UserError: The weights cannot be read, or their network cannot be cut.
        """
        check_side(image_size)
        if is_run(registry.folder_of(name)):
            raise UserError(f"{name} is the folder of a run. Extract its trained sizes: leave out --from.")
        self.name = name
        self._source = _told_as_from(read, name)
        if self._source.model is None and "name" not in (model or {}):
            raise UserError(f"{name} is a file of weights, which does not name its network. Add --model NAME.")
        self._made = None if self._source.model is None else made_for(self._source.model, name=name)
        side = image_size or (None if self._made is None else self._made.side)
        views: dict[str, Any] = {"num_locals": 0} | ({} if side is None else {"global_size": side})
        network = {"name": _network_of(name, self._source)} | dict(model or {})
        values = USUAL if self._made is None else values_of(registry.folder_of(name), self._made)
        if self._made is not None and values != USUAL:
            views |= {"mean": self._made.mean, "std": self._made.std}
        of_images = {"channels": values.channels, "value_range": values.range}
        self.config = resolve({"model": network, "init": name, "views": views, **of_images})

    @cached_property
    def family(self) -> Family:
        """The family of backbones, and with it all sizes."""
        return registry.family_of(self.config)

    @property
    def space(self) -> SearchSpace:
        """All sizes that can be cut."""
        return self.family.space

    @cached_property
    def _networks(self) -> SubNetworks:
        networks = self.family.sub_networks()
        if not isinstance(networks, SubNetworks):
            raise UserError(
                f"{self.name} has BatchNorm, whose statistics hold for one width and cannot be cut. Train its sizes: "
                "`poa pretrain --init`."
            )
        return networks

    @cached_property
    def intact(self) -> Backbone:
        """The whole network, with the weights."""
        backbone = self.family.build(self.space.intact)
        weights, _ = _told_as_from(fit, self._source, backbone)
        backbone.load_state_dict(weights)
        return backbone.requires_grad_(False).eval()

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are prepared: as for the weights, where that is known."""
        side, views = self.family.image_size, self.config.views
        if self._made is None:
            return Preprocessing(side, self.config.scoring_resize, views.mean, views.std, self.config.values)
        return resized_for(side, self._made, self.config.values)

    def extract(
        self, size: str | Size, *, out: str | Path | None = None, overwrite: bool = False, licence: str = UNKNOWN
    ) -> Path:
        """Write a size as a plain timm model; arguments as of ``Run.extract``.

        The folder is ``models/NAME/SIZE`` by default.
        """
        wanted = self.space.find(str(size))
        label = base_name(self.name)
        origin = Origin(
            f"{label}, cut to {wanted} without any training",
            {"cost": COST.replace("`", "")},
            {label: licence_of(self.name)},
            licence=licence,
        )
        network = self._networks.extract(wanted, self.intact)
        assert isinstance(network, Backbone)
        return write_size(
            network,
            self._networks.bind(wanted, state(self.intact), training=False),
            family=self.family,
            size=wanted,
            folder=Path(out) if out is not None else Path("models", label.replace("/", "-"), str(wanted)),
            preprocessing=self.preprocessing,
            origin=origin,
            overwrite=overwrite,
        )


def _network_of(name: str, source: TrainedWeights) -> str:
    """What ``--model`` names it by; models of the hub are not in timm's list, but their architectures are."""
    known: Any = source.model
    return str(known.pretrained_cfg["architecture"]) if name.startswith(hub.PREFIXES) else name


def _told_as_from(function: Any, *arguments: Any) -> Any:
    """Call a function whose errors tell of ``--init``."""
    try:
        return function(*arguments)
    except UserError as error:
        raise UserError(str(error).replace("--init", "--from")) from None
