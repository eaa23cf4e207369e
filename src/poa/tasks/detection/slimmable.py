"""One detector for all widths of a slimmable network (SlimCLR, official code, its Mask R-CNN on COCO).

Only the backbone has widths. The maps of a narrow one are filled up with channels of zeros for the feature pyramid, so
that one pyramid and one set of heads serve all. Zeros add nothing: a detector of one width is an ordinary one, whose
pyramid has the weights of the channels that are there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from poa import distributed
from poa.elastic.network import state
from poa.elastic.space import Size
from poa.elastic.switchable import SwitchableNetworks
from poa.errors import UserError
from poa.evaluation.protocol import Outcome
from poa.families.slim_resnet import SlimResNet
from poa.features.extract import Progress
from poa.models.source import ModelSource, any_size, blueprint
from poa.tasks.detection.model import DetectorPlan, Levels, detector_on
from poa.tasks.detection.train import DetectionTask
from poa.tasks.maps import Maps
from poa.training.health import NonFinite

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

    ``trains_norms`` is whether its BatchNorm layers use the batch in training.
    """

    def __init__(self, whole: Levels, networks: SwitchableNetworks, size: Size, *, trains_norms: bool) -> None:
        super().__init__()
        self.whole = whole
        self._networks, self._size, self._trains_norms = networks, size, trains_norms

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> dict[str, Tensor]:
        """Maps by name, as ``Levels`` gives them."""
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
    """The detectors of all widths, whose timm models ``build`` makes; new layers use torch's global generator."""
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
    """The detector of a width as an ordinary one on a plain timm model, with copies of the parameters it needs."""
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


def check_slimmable(source: ModelSource, names: Sequence[str]) -> None:
    """Raise a ``UserError`` if no one detector can be trained for these networks."""
    if not isinstance(source.family, SlimResNet):
        raise UserError(
            f"One detector for all sizes needs the widths of a slimmable network (SlimCLR), got {source.name}. "
            "Leave out --together: each size then gets a detector of its own."
        )
    if len(names) < 2:
        raise UserError(f"One detector for all sizes needs at least two of them, got {names[0]}. Name more --sizes.")
    if distributed.world_size() > 1:
        raise UserError(f"--together trains with one process only, got {distributed.world_size()}. Start one process.")


@dataclass(frozen=True)
class SlimmableDetectionTask(DetectionTask):
    """Detection by one detector for all widths, trained once, then tested and written width by width."""

    widths: tuple[str, ...]
    at_once = None

    @property
    def choices(self) -> Mapping[str, Any]:
        """Also which widths there are."""
        return {**super().choices, "together": self.widths}

    def score(self, names: Sequence[str], work: Path, progress: Progress) -> Iterator[tuple[str, Outcome | UserError]]:  # noqa: ARG002
        """Train the detector on all widths, and test those that have no scores yet."""
        weights = {Size.parse(name): self.source.timm_model(name, num_classes=0).state_dict() for name in self.widths}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.config.seed)
            detectors = slim_detectors(self._plain, weights, self.plan, trains_norms=self.config.batch_norm)
        try:
            summary = self.fit(detectors.whole, "all widths:", work, narrower=detectors.narrower)
        except NonFinite as error:
            yield from ((name, error) for name in names)
            return
        for name in names:
            backbone = self._plain(Size.parse(name))
            described = blueprint(self.source, name, backbone)
            network = extract_detector(detectors, Size.parse(name), backbone, self.plan)
            yield name, self.told(name, self.assess(name, network, described, summary))

    def _plain(self, size: Size) -> nn.Module:
        """The timm model of a width on the current default device, with whatever weights."""
        assert self.source.family is not None
        architecture, arguments = self.source.family.timm_config(size)
        model: nn.Module = timm.create_model(architecture, **{**arguments, "num_classes": 0})
        assert not any_size(model), "ResNets take images of any size as they are"
        return model
