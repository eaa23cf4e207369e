"""The frozen teacher of a distillation: any network that scores can be computed for, made ready for a run's crops."""

from math import isqrt
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from poa.config.pretraining import INITIAL, Config, ViewSettings
from poa.data.images import Preprocessing
from poa.errors import UserError, counted
from poa.families.base import Backbone, Family, Features
from poa.models.run import in_run
from poa.models.source import model_source, try_features


class Teacher(NamedTuple):
    """A frozen network.

    Attributes:
        network: Crops as the run has them to ``Features``.
        width: Of its class features.
        patch_width: Of its patch features.
        initial: Its backbone, if that has yet to get the weights that the run starts from.
    """

    network: nn.Module
    width: int
    patch_width: int
    initial: Backbone | None = None


class Prepared(nn.Module):
    """A network that takes crops of a run, and was made for images of another size or normalised in another way.

    Args:
        network: Images to ``Features``.
        views: How the run normalises crops.
        own: How the network takes images; crops are resized to its image size.
        resizes: Whether they are; else the network takes crops of any size.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, views: ViewSettings, own: Preprocessing, *, resizes: bool) -> None:
        super().__init__()
        self.network, self.side = network, own.image_size if resizes else None
        mean, std, own_mean, own_std = (
            torch.tensor(values).view(-1, 1, 1) for values in (views.mean, views.std, own.mean, own.std)
        )
        self.register_buffer("scale", std / own_std, persistent=False)
        self.register_buffer("shift", (mean - own_mean) / own_std, persistent=False)

    def forward(self, images: Float[Tensor, "batch channels height side"]) -> Features:
        """Features of crops that are normalised as the run has them."""
        images = images * self.scale + self.shift
        if self.side is not None:
            images = F.interpolate(images, size=(self.side, self.side), mode="bilinear", antialias=True)
        features: Features = self.network(images)
        return features


def teacher_of(config: Config, family: Family) -> Teacher:
    """The frozen teacher that the settings of a run name; one of the run's own family if it is that of ``--init``.

    Raises:
        UserError: There is no such network, it is the run itself, or it cannot process the run's crops.
    """
    name, views, side = config.distill.teacher, config.views, config.distill.teacher_size
    if not name:
        raise UserError(
            "--distill.teacher is required: the folder of a run, a folder that timm loads, or a timm name such as "
            "vit_small_patch14_dinov2.lvd142m; or init, the network of --init."
        )
    if name == INITIAL and config.init is None:
        raise UserError(
            "--distill.teacher init is the network of --init as it was, and there is no --init. Add --init, or name "
            "another teacher (./init for a folder)."
        )
    if config.out and Path(name).resolve() == Path(config.out).resolve():
        raise UserError(
            f"--distill.teacher {name} is the folder of this run, and a teacher must be trained before. Give the "
            "folder of another run, or choose another --out."
        )
    initial = family.build(family.space.intact) if name == INITIAL else None
    network, own = (initial, _as_students(config)) if initial else _other(name, side or views.global_size)
    if own.values != config.values:
        raise UserError(
            f"--distill.teacher {name} sees {counted(own.values.number, 'channel')} of images in another way than this "
            f"run, with {config.values.number}. Choose a teacher that was trained with the same --channels and "
            "--value-range."
        )
    if side or (own.mean, own.std) != (views.mean, views.std):
        network = Prepared(network, views, own, resizes=side is not None)
    network = network.requires_grad_(False).eval()
    number = config.values.number
    refusal = f"--distill.teacher {name} cannot process crops of"
    remedy = "Set --distill.teacher-size to a size that it takes, or choose another teacher."
    found = try_features(network, views.global_size, channels=number, refusal=refusal, remedy=remedy)
    if config.method == "seed" and views.num_locals:
        remedy = "Set --views.num-locals 0, or choose another teacher."
        try_features(network, views.local_size, channels=number, refusal=refusal, remedy=remedy)
    patches = found.patches.shape[1]
    if config.method != "seed" and config.distill.patch_weight and (not patches or isqrt(patches) ** 2 != patches):
        raise UserError(
            f"--distill.teacher {name} has {patches} patches, which are no square grid. Set --distill.patch-weight 0 "
            "to learn its pooled features only, or choose another teacher."
        )
    return Teacher(network, found.cls.shape[1], found.patches.shape[2], initial)


def _as_students(config: Config) -> Preprocessing:
    """How the network of the run takes images, for a teacher perhaps larger ones."""
    side = config.distill.teacher_size or config.views.global_size
    return Preprocessing(
        image_size=side, resize=side, mean=config.views.mean, std=config.views.std, values=config.values
    )


def _other(name: str, side: int) -> tuple[nn.Module, Preprocessing]:
    """The network by name, whose refusals name the flag that sets its image size here, and how it takes images."""
    folder, step = in_run(Path(name)) or (name, None)
    try:
        source = model_source(str(folder), image_size=side, checkpoint=step)
        return source.network(source.names[-1]), source.preprocessing
    except UserError as error:
        said = str(error).replace("leave out --image-size", "set --distill.teacher-size to that")
        said = said.replace("--image-size", "--distill.teacher-size").replace(", or change --model.patch-size", "")
        raise UserError(f"--distill.teacher {said}" if said.startswith(f"{name}: ") else said) from None
