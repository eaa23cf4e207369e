"""What every family promises: a size is a plain timm model, cut out of the intact one, with masks as published."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import ceil
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from conformance import filler
from families.networks import TINY, narrowed, noisy, published, sub_networks
from poa.elastic.network import SubNetworks
from poa.elastic.space import SearchSpace, Size
from poa.errors import UserError
from poa.families.base import Backbone, Family

pytestmark = pytest.mark.usefixtures("uninitialised")
HIERARCHICAL = {"swin": "patch_embed", "resnet": "maxpool", "convnext": "stem"}
"""Where the networks whose maps shrink hide patches: after this part of the timm model."""


def timm_model(family: Family, size: Size, weights: nn.Module) -> Any:
    architecture, arguments = family.timm_config(size)
    model = timm.create_model(architecture, **arguments).eval()
    model.load_state_dict(weights.state_dict(), assign=True)
    return model


def timm_cells(name: str, model: Any, images: Tensor) -> Tensor:
    """The features of places, row by row: those of patches, or the cells of the last map, each four times."""
    maps = model.forward_features(images)
    if name not in HIERARCHICAL:
        tokens: Tensor = maps[:, model.num_prefix_tokens :]
        return tokens
    if name == "convnext":
        maps = model.head.norm(maps)
    if name != "swin":
        maps = maps.permute(0, 2, 3, 1)
    rows, columns = maps.shape[1:3]
    return torch.stack([maps[:, i // 2, j // 2] for i in range(2 * rows) for j in range(2 * columns)], dim=1)


@contextmanager
def hidden(name: str, model: Any, mask: Tensor, token: Tensor) -> Iterator[None]:
    """Within, the timm model sees the token where patches are hidden."""
    side = round(mask.shape[1] ** 0.5)
    channels_last = name != "resnet" and name != "convnext"

    def hide(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        maps = output if channels_last else output.permute(0, 2, 3, 1)
        maps = maps.clone()
        rows, columns = maps.shape[1:3]
        for image, i, j in torch.cartesian_prod(*map(torch.arange, (len(maps), rows, columns))).tolist():
            if mask[image, i * side // rows * side + j * side // columns]:
                maps[image, i, j] = token
        return maps if channels_last else maps.permute(0, 3, 1, 2)

    with getattr(model, HIERARCHICAL.get(name, "patch_embed")).register_forward_hook(hide):
        yield


@torch.no_grad()
def assert_timm_equals_elastic(
    name: str, family: Family, nets: SubNetworks, intact: Backbone, size: Size, *, sides: tuple[int, ...]
) -> None:
    extracted = nets.extract(size, intact)
    assert isinstance(extracted.model, nn.Module)
    model = timm_model(family, size, extracted.model)
    elastic = nets.bind(size, dict(intact.named_parameters()), training=False)
    for side in sides:
        images = filler((2, 3, side, side), side).float()
        features = elastic(images)
        assert features.cls.isfinite().all(), (size, side)
        assert features.cls.std(0).max() > 0.01, (size, side)  # not the same for all images
        assert torch.equal(model(images), features.cls), (size, side)
        assert torch.equal(timm_cells(name, model, images), features.patches), (size, side)


def of_each_depth(family: Family) -> list[Size]:
    """One size of some depths of the third stage, evenly spread, the rest in turn, and the intact one."""
    by_depth: dict[int, list[Size]] = {}
    for size in family.space.sizes:
        by_depth.setdefault(size.depths[-1], []).append(size)
    spread = list(by_depth.values())[:: ceil(len(by_depth) / 6)]
    chosen = [sizes[number % len(sizes)] for number, sizes in enumerate(spread)]
    return [*chosen, family.space.intact]


NUM_SIZES = {"swin": 6, "resnet": 7, "convnext": 6}


@pytest.mark.usefixtures("uninitialised")
@pytest.mark.parametrize("name", NUM_SIZES)
def test_the_timm_model_of_a_depth_equals_the_elastic_sub_network_bit_for_bit(name: str) -> None:
    """Of 39 published sizes of Swin, 465 of ResNet and 57 of ConvNeXt, seen at few pixels.

    Which blocks the other depths keep is tested in ``test_sizes.py``.
    """
    family = narrowed(name)
    assert len(family.space.sizes) == len(published(name).space.sizes)
    intact, nets = noisy(family), sub_networks(family)
    sizes = of_each_depth(family)
    assert len(set(sizes)) == NUM_SIZES[name]
    *earlier, last = ({size.depths[stage] for size in sizes} for stage in range(len(sizes[0].depths)))
    of_all = [{size.depths[stage] for size in family.space.sizes} for stage in range(len(sizes[0].depths))]
    assert [*earlier, {min(last), max(last)}] == [*of_all[:-1], {min(of_all[-1]), max(of_all[-1])}]
    assert {size.width for size in sizes} == {size.width for size in family.space.sizes}
    for size in sizes:
        assert_timm_equals_elastic(name, family, nets, intact, size, sides=(64,) if name == "convnext" else (32,))


@pytest.mark.usefixtures("uninitialised")
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("swin", ("96x6", "112x13")),
        ("resnet", ("64x4-6", "96x5-17")),
        ("convnext", ("96x9", "112x20")),
    ],
)
def test_published_widths_as_well(name: str, sizes: tuple[str, ...]) -> None:
    family = published(name)
    intact, nets = noisy(family), sub_networks(family)
    for size in sizes:
        assert_timm_equals_elastic(name, family, nets, intact, family.space.find(size), sides=(64,))


@pytest.mark.parametrize("name", TINY)
def test_images_of_other_sizes(name: str) -> None:
    """At sides that are no multiple of windows and strides too, where the family takes them."""
    family = TINY[name]
    intact, nets = noisy(family), sub_networks(family)
    sides = tuple(side for side in (16, 24, 32, 36, 46, 57, 80) if fits(family, side))
    assert len(sides) > 3
    for size in family.space.sizes:
        assert_timm_equals_elastic(name, family, nets, intact, size, sides=sides)


def fits(family: Family, side: int) -> bool:
    return side >= family.smallest_image and side % getattr(family, "patch_size", 1) == 0


VARIANTS: dict[str, tuple[str, Family]] = {
    "swin, larger windows": ("swin", replace(TINY["swin"], window_size=3, mlp_ratio=2.5)),
    "swin, patch 4": ("swin", replace(TINY["swin"], patch_size=4, image_size=32, head_dim=16)),
    "swin, own attention": ("swin", replace(TINY["swin"], fused_attention=False)),
    "resnet, wider than it hands on": ("resnet", replace(TINY["resnet"], channels=32)),
    "resnet, one norm group": (
        "resnet",
        replace(TINY["resnet"], norm_groups=1, space=SearchSpace.grid([12, 20, 28], [(1, 1), (2, 2)])),
    ),
    "resnet, means in shortcuts": ("resnet", replace(TINY["resnet"], avg_down=True)),
    "convnext, version 2": ("convnext", replace(TINY["convnext"], architecture="convnextv2_atto", layer_scale=None)),
    "convnext, overlapping stem": ("convnext", replace(TINY["convnext"], architecture="convnext_atto_ols")),
    "convnext, LayerScale 1": ("convnext", replace(TINY["convnext"], layer_scale=1.0)),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant: str) -> None:
    name, family = VARIANTS[variant]
    intact, nets = noisy(family), sub_networks(family)
    for size in (family.space.sizes[0], family.space.intact):
        assert_timm_equals_elastic(name, family, nets, intact, size, sides=(32, 48))


def test_a_convnext_is_not_silenced() -> None:
    with pytest.raises(UserError, match="output zeros"):
        replace(TINY["convnext"], layer_scale=0.0)


# ---- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_masked_patches_are_hidden_from_the_timm_model(name: str) -> None:
    """Every size, bit for bit; the mask token is cut with the rest where its width is elastic."""
    family = TINY[name]
    intact, nets = noisy(family), sub_networks(family)
    for size in family.space.sizes:
        extracted = nets.extract(size, intact)
        assert isinstance(extracted.model, nn.Module)
        model = timm_model(family, size, extracted.model)
        token = extracted.get_parameter("mask_token")
        elastic = nets.bind(size, dict(intact.named_parameters()), training=False)
        for side in (side for side in (16, 32, 56, 80) if fits(family, side)):
            images = filler((3, 3, side, side), 7).float()
            mask = torch.rand(3, family.mask_grid(side) ** 2, generator=torch.Generator().manual_seed(side)) < 0.5
            with torch.no_grad(), hidden(name, model, mask, token):
                features = elastic(images, mask)
                assert torch.equal(model(images), features.cls)
                assert torch.equal(timm_cells(name, model, images), features.patches)
            assert not torch.equal(features.cls, elastic(images).cls)


@pytest.mark.parametrize("name", TINY)
def test_an_empty_mask_is_no_mask_and_still_gives_the_mask_token_a_gradient(name: str) -> None:
    backbone, side = noisy(TINY[name]), TINY[name].image_size
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, TINY[name].mask_grid(side) ** 2, dtype=torch.bool)
    features = backbone(images, mask)
    assert torch.equal(features.cls, backbone(images).cls)
    assert torch.equal(features.patches, backbone(images).patches)
    features.cls.sum().backward()
    assert backbone.mask_token.grad is not None
    assert backbone.mask_token.grad.count_nonzero() == 0


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_gets_a_gradient_from_masked_images(name: str) -> None:
    """Processes wait for the gradient of each; one that has none would stop a run on several."""
    family = TINY[name]
    backbone, side = noisy(family), family.image_size
    mask = torch.arange(3 * family.mask_grid(side) ** 2).view(3, -1) % 2 == 0
    features = backbone(filler((3, 3, side, side), 1).float(), mask)
    (features.cls.square().sum() + features.patches.square().sum()).backward()
    assert [name for name, parameter in backbone.named_parameters() if parameter.grad is None] == []
    assert backbone.mask_token.grad is not None
    assert backbone.mask_token.grad.count_nonzero() > 0


@pytest.mark.parametrize("name", TINY)
def test_masks_have_a_cell_for_each_patch_feature(name: str) -> None:
    family = TINY[name]
    backbone = family.build(family.space.sizes[0])
    for side in (side for side in range(8, 100, 2) if fits(family, side)):
        features = backbone(torch.zeros(1, 3, side, side))
        assert features.patches.shape == (1, family.mask_grid(side) ** 2, backbone.num_features), side
        assert features.cls.shape == (1, backbone.num_features)


@pytest.mark.parametrize(
    ("name", "grid"), [("vit", 14), ("dinov3", 14), ("swin", 14), ("resnet", 14), ("convnext", 14)]
)
def test_published_mask_grids(name: str, grid: int) -> None:
    assert published(name).mask_grid(224) == grid
