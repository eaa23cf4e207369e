"""One detector for all widths of a slimmable network (SlimCLR, official code, its Mask R-CNN on COCO).

Only the backbone has widths. What a narrow one hands to the feature pyramid is filled up with channels of zeros, so
that one pyramid and one set of heads serve all. Zeros add nothing: a detector of one width is an ordinary one, whose
pyramid has the weights of the channels that are there.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from poa.elastic.network import state
from poa.elastic.space import Size
from poa.elastic.switchable import SwitchableNetworks
from poa.tasks.detection.model import DetectorPlan, Levels, detector_on
from poa.tasks.maps import Maps

_INNER = "backbone.fpn.inner_blocks."
_MAPS = "backbone.maps."


class SlimDetectors(NamedTuple):
    """A detector on the widest network, and those on narrower ones with parts of its parameters.

    Attributes:
        whole: Holds all parameters, also BatchNorm layers of each width.
        narrower: By ascending width; share the pyramid and all heads with it.
        networks: The widths, the widest first.
    """

    whole: Any
    narrower: tuple[Any, ...]
    networks: SwitchableNetworks


class NarrowLevels(nn.Module):
    """The maps of a narrow network, filled up with zeros, through the pyramid of the whole one.

    Args:
        whole: Maps and pyramid of the widest network.
        networks: Its widths.
        size: Which one.
        trains_norms: Whether its BatchNorm layers look at the batch in training.
    """

    def __init__(self, whole: Levels, networks: SwitchableNetworks, size: Size, *, trains_norms: bool) -> None:
        super().__init__()
        self.whole = whole
        self._networks, self._size, self._trains_norms = networks, size, trains_norms

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> dict[str, Tensor]:
        """Maps by name, as ``Levels``.

        Args:
            images: Normalised; sides are multiples of that of the maps.
        """
        training = self.training and self._trains_norms
        narrow = self._networks.bind(self._size, state(self.whole.maps), training=training)
        filled = [
            F.pad(each, (0, 0, 0, 0, 0, level.channels - each.shape[1]))
            for each, level in zip(narrow(images), self.whole.maps.levels, strict=True)
        ]
        return self.whole.merge(filled)


def slim_detectors(
    build: Callable[[Size], nn.Module],
    weights: Mapping[Size, Mapping[str, Tensor]],
    plan: DetectorPlan,
    *,
    trains_norms: bool,
) -> SlimDetectors:
    """Put the detectors of all widths together; new layers are drawn by torch's global generator.

    Args:
        build: Makes the plain timm model of a width.
        weights: State dicts of the models of all widths.
        plan: What to build.
        trains_norms: Whether BatchNorm layers are trained.

    Raises:
        UserError: The networks have no maps for a detector.
    """
    sizes = sorted(weights, key=lambda size: size.width, reverse=True)
    networks = SwitchableNetworks(lambda size: Maps(build(size), image_size=(plan.side, plan.longest)), sizes)
    maps: Any = networks.whole()
    maps.load_state_dict(_joined(maps, sizes, weights))
    whole = detector_on(maps, plan)
    narrower = tuple(
        GeneralizedRCNN(
            NarrowLevels(whole.backbone, networks, size, trains_norms=trains_norms),
            whole.rpn,
            whole.roi_heads,
            whole.transform,
        )
        for size in reversed(sizes[1:])
    )
    return SlimDetectors(whole, narrower, networks)


def _joined(
    maps: nn.Module, sizes: Sequence[Size], weights: Mapping[Size, Mapping[str, Tensor]]
) -> Mapping[str, Tensor]:
    """The state of the network of all widths: all of the widest, and the own layers of the others."""
    wanted, found = maps.state_dict().keys(), dict[str, Tensor]()
    for number, size in enumerate(sizes):
        for name, value in weights[size].items():
            layer, _, what = f"model.{name}".rpartition(".")
            own = f"{layer}.{number}.{what}"
            if own in wanted:
                found[own] = value
            elif number == 0:
                found[f"model.{name}"] = value
    return found


@torch.no_grad()
def extract_detector(detectors: SlimDetectors, size: Size, backbone: nn.Module, plan: DetectorPlan) -> Any:
    """The detector of a width as an ordinary one, with copies of what it needs.

    Args:
        detectors: Of all widths.
        size: Which one.
        backbone: The plain timm model of that width; its weights are replaced.
        plan: As they were built by.
    """
    network = detector_on(Maps(backbone, image_size=(plan.side, plan.longest)), plan)
    maps = detectors.networks.extract(size, detectors.whole.backbone.maps).state_dict()
    wanted = network.state_dict()
    found = {}
    for name, value in detectors.whole.state_dict().items():
        if not name.startswith(_MAPS):
            is_inner = name.startswith(_INNER) and name.endswith("weight")
            found[name] = (value[:, : wanted[name].shape[1]] if is_inner else value).clone()
    network.load_state_dict(found | {f"{_MAPS}{name}": value.clone() for name, value in maps.items()})
    return network.eval()
