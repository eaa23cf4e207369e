"""First filters of a network that are taken from the images instead of drawn at random."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from poa.config.pretraining import Config
from poa.data.augment import normalise
from poa.data.index import ImageIndex
from poa.data.resize import centre_crop
from poa.errors import UserError
from poa.pretraining.channels import some_images

LEAST_VARIANCE = 0.01
"""Share of the mean variance of all directions, below which what varies is noise and is not raised to unit variance."""


def whiten_stem(backbones: Iterable[nn.Module], config: Config, index: ImageIndex) -> None:
    """Give networks that are alike first filters whose outputs are uncorrelated and have unit variance.

    Coates et al. (AISTATS 2011) whiten patches before they learn features of them, and Jordan (arXiv 2404.00498) has a
    whitening first layer that makes supervised training faster. Here training begins with it. The first channels, which
    all widths keep, are the principal components in order of their variance.

    Raises:
        UserError: A network does not begin with a convolution, or no image can be read.
    """
    stems = [_stem(backbone) for backbone in backbones]
    found = whitening_filters(
        patches_of(config, index, side=stems[0].kernel_size[0]),
        number=stems[0].out_channels,
        generator=torch.Generator().manual_seed(config.seed),
    )
    with torch.no_grad():
        for stem in stems:
            stem.weight.copy_(found.view_as(stem.weight))
            if stem.bias is not None:
                stem.bias.zero_()


def whitening_filters(
    patches: Float[Tensor, "patches values"], *, number: int, generator: torch.Generator
) -> Float[Tensor, "number values"]:
    """Principal components of patches, scaled to unit variance, in order of their variance.

    Where more filters are wanted than there are components, the others are random combinations of them, also of unit
    variance.
    """
    variances, directions = torch.linalg.eigh(patches.double().T.cov().view(patches.shape[1], -1))
    variances, directions = variances.flip(0), directions.flip(1).T
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    components = directions * largest.sign() / (variances + LEAST_VARIANCE * variances.mean()).sqrt()[:, None]
    further = torch.randn(max(0, number - len(components)), len(components), generator=generator, dtype=torch.float64)
    return torch.cat((components[:number], F.normalize(further, dim=1) @ components)).float()


def patches_of(config: Config, index: ImageIndex, *, side: int) -> Float[Tensor, "patches values"]:
    """Patches side by side of some images, as large as global crops and normalised.

    Raises:
        UserError: None of them can be read.
    """
    views, found = config.views, []
    for pixels in some_images(index, config.values):
        crop = centre_crop(pixels, size=views.global_size, resize_to=views.global_size)
        image = normalise(crop, mean=views.mean, std=views.std)
        found.append(F.unfold(image, kernel_size=side, stride=side)[0].T)
    return torch.cat(found)


def _stem(backbone: nn.Module) -> nn.Conv2d:
    """The first convolution of a network, which sees the images."""
    stem = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    if stem is None:
        raise UserError("--model.stem-init whitening needs a network that begins with a convolution. Leave it out.")
    return stem
