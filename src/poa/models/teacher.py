"""The frozen teacher of a distillation: any trained network, seen through the run's own crops."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from poa.config.pretraining import Config, ViewSettings
from poa.errors import UserError
from poa.families.base import Features
from poa.models.source import ModelSource, model_source


class Renormalised(nn.Module):
    """A network that expects images normalised in another way than the run's.

    Args:
        network: Images to ``Features``.
        views: How the run normalises.
        source: How the network wants it.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, views: ViewSettings, source: ModelSource) -> None:
        super().__init__()
        self.network = network
        own = source.preprocessing
        mean, std, own_mean, own_std = (
            torch.tensor(values).view(3, 1, 1) for values in (views.mean, views.std, own.mean, own.std)
        )
        self.register_buffer("scale", std / own_std, persistent=False)
        self.register_buffer("shift", (mean - own_mean) / own_std, persistent=False)

    def forward(self, images: Float[Tensor, "batch 3 height side"]) -> Features:
        """The network's features of images normalised as the run has them."""
        features: Features = self.network(images * self.scale + self.shift)
        return features


def teacher_of(config: Config) -> tuple[nn.Module, int]:
    """The teacher and the width of its class features.

    Args:
        config: Settings of a run with a frozen teacher.

    Raises:
        UserError: There is none of that name, or it cannot see the run's crops.
    """
    name, views = config.distill.teacher, config.views
    if not name:
        raise UserError(
            "Say who teaches: --distill.teacher RUN, a folder that timm loads, or a timm name such as "
            "vit_small_patch14_dinov2.lvd142m."
        )
    source = model_source(name, image_size=views.global_size)
    network = source.network(source.names[-1])
    if (source.preprocessing.mean, source.preprocessing.std) != (views.mean, views.std):
        network = Renormalised(network, views, source)
    network = network.requires_grad_(False).eval()
    width = _width(network, views.global_size, name, "Train with its image size, or choose another teacher.")
    if views.num_locals:
        _width(network, views.local_size, name, "Set --views.num-locals 0, or choose another teacher.")
    return network, width


@torch.inference_mode()
def _width(network: nn.Module, side: int, name: str, remedy: str) -> int:
    try:
        features: Features = network(torch.zeros(1, 3, side, side))
    except (AssertionError, RuntimeError, ValueError) as error:
        why = str(error).splitlines()[0].rstrip(". ")
        raise UserError(f"--distill.teacher {name} cannot see crops of {side} pixels ({why}). {remedy}") from None
    return int(features.cls.shape[1])
