from typing import Any

import pytest
import torch
from torch import nn

import tiny
from poa.config.pretraining import Config
from poa.data.index import open_index
from poa.errors import UserError
from poa.models.registry import family_of
from poa.pretraining.build import assemble
from poa.pretraining.method import method_of
from poa.pretraining.stem import LEAST_VARIANCE, patches_of, whiten_stem, whitening_filters

VARIANCES = torch.tensor([9.0, 4.0, 1.0])


@pytest.fixture(scope="module")
def patches() -> torch.Tensor:
    """Uncorrelated values of these variances in an order of their own, about means of their own."""
    drawn = torch.randn(400, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn -= drawn.mean(0)
    drawn = drawn @ torch.linalg.inv(torch.linalg.cholesky(drawn.T.cov())).T  # the covariance is the identity
    return (drawn * VARIANCES.sqrt() + 5.0)[:, [2, 0, 1]].float()


def filters(patches: torch.Tensor, number: int, seed: int = 0) -> torch.Tensor:
    return whitening_filters(patches, number=number, generator=torch.Generator().manual_seed(seed))


def test_components_come_by_variance_and_have_unit_variance(patches: torch.Tensor) -> None:
    found = filters(patches, 3)
    scale = 1 / (VARIANCES + LEAST_VARIANCE * VARIANCES.mean()).sqrt()
    by_hand = torch.zeros(3, 3)
    by_hand[0, 1], by_hand[1, 2], by_hand[2, 0] = scale
    torch.testing.assert_close(found, by_hand, atol=1e-5, rtol=0)
    torch.testing.assert_close((patches @ found.T).T.cov(), torch.eye(3), atol=0.06, rtol=0)  # LEAST_VARIANCE lowers it
    assert torch.equal(filters(patches, 2), found[:2])


def test_further_filters_mix_the_components_at_unit_variance(patches: torch.Tensor) -> None:
    found = filters(patches, 7)
    assert torch.equal(found[:3], filters(patches, 3))
    torch.testing.assert_close((patches @ found.T).var(0), torch.ones(7), atol=0.06, rtol=0)
    assert torch.equal(found, filters(patches, 7))
    assert not torch.equal(found[3:], filters(patches, 7, seed=1)[3:])


def test_noise_is_not_raised(patches: torch.Tensor) -> None:
    noisy = torch.cat((patches, 1e-4 * patches[:, :1].roll(1, 0)), dim=1)
    assert (noisy @ filters(noisy, 4).T).var(0)[3] < 1e-4


def config(family: str = "vit", **given: Any) -> Config:
    settings = tiny.settings(family, out="out")
    return Config(**settings | {"model": settings["model"] | {"stem_init": "whitening"}} | given)


def stem_of(backbone: nn.Module) -> nn.Conv2d:
    return next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_run_of_any_family_begins_with_them_at_every_size(family: str) -> None:
    settings = config(family)
    index = open_index(settings.data, limit=settings.limit)
    parts = assemble(settings, index, device=torch.device("cpu"))
    exported = parts.method.exported.backbone
    stems = [stem_of(parts.method.student.backbone), stem_of(exported)]
    stems += [stem_of(parts.family.sub_networks().extract(size, exported)) for size in parts.family.space.sizes[:1]]
    expected = whitening_filters(
        patches_of(settings, index, side=stems[0].kernel_size[0]),
        number=stems[0].out_channels,
        generator=torch.Generator().manual_seed(settings.seed),
    )
    for stem in stems:
        assert torch.equal(stem.weight.flatten(1), expected[: stem.out_channels])
        assert stem.bias is None or not stem.bias.any()
    later = assemble(settings, index, device=torch.device("cpu"), fresh=False)  # its weights come from a checkpoint
    assert not torch.equal(stem_of(later.method.exported.backbone).weight, stems[1].weight)


def test_where_they_cannot_be() -> None:
    index = open_index("digits", limit=64)
    slim = Config(out="out", method="slimclr-simclr", model={"name": "slim-resnet", "stem_init": "whitening"})
    with pytest.raises(UserError, match=r"--method slimclr-simclr does not support .*--model\.stem-init whitening"):
        method_of(slim, family_of(slim))
    with pytest.raises(UserError, match=r"--model\.stem-init whitening needs a network that begins with a convolution"):
        whiten_stem([nn.Linear(3, 3)], config(), index)
