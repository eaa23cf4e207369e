"""Neighbours, matches and prototypes."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from poa.data.views import Box
from poa.errors import UserError
from poa.pictures.kinds import partners_of
from poa.pictures.patches import (
    Match,
    Region,
    colours,
    components,
    matches,
    neighbours,
    region_of,
    right_matches,
    same_point,
)
from poa.pictures.prototypes import Members, members


def features(*, images: int = 4, patches: int = 9, width: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.2])
    turned, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
    return (torch.randn(images, patches, width, generator=generator) * scales) @ turned.T + 3


def test_components_are_those_of_scikit_learn() -> None:
    rows = features()
    pca = PCA(3).fit(rows.flatten(0, 1).numpy())
    wanted = pca.transform(rows.flatten(0, 1).numpy())
    for axis, column in zip(pca.components_, range(3), strict=True):
        wanted[:, column] *= np.sign(axis[np.abs(axis).argmax()])
    assert components(rows).flatten(0, 1).numpy() == pytest.approx(wanted, abs=1e-4)


def test_signs_do_not_depend_on_the_order_of_patches() -> None:
    rows = features()
    assert torch.allclose(components(rows.flip(0)).flip(0), components(rows), atol=1e-5)


def test_colours_fill_the_range_over_all_images() -> None:
    found = colours(features(images=30))
    assert len(found) == 30
    assert found[0].shape == (3, 3, 3)
    every = np.stack(found)
    assert (every.min((0, 1, 2)) == 0).all()
    assert (every.max((0, 1, 2)) == 255).all()
    rows = features(images=30)
    first = components(rows)[..., 0].flatten()
    assert every[..., 0].flatten()[int(first.argmax())] == 255


@pytest.mark.parametrize(
    ("rows", "words"),
    [(torch.ones(2, 4, 2), "got 8 of 2"), (torch.full((2, 4, 4), float("nan")), "NaN or infinity")],
)
def test_features_without_colours(rows: torch.Tensor, words: str) -> None:
    with pytest.raises(UserError, match=words):
        colours(rows)


def test_neighbours_are_other_images() -> None:
    angles = torch.tensor([0.0, 0.1, 0.3, 1.0, 0.05, 3.0])
    rows = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.arange(1.0, 7.0)[:, None]
    cosines, images = neighbours(rows, [0, 3], k=3)
    assert images.tolist() == [[4, 1, 2], [2, 1, 4]]
    assert cosines[0].tolist() == pytest.approx(torch.tensor([0.05, 0.1, 0.3]).cos().tolist(), abs=1e-5)


def test_copies_of_an_image_are_its_neighbours() -> None:
    rows = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]])
    assert neighbours(rows, [3], k=2)[1].tolist() == [[0, 1]]
    assert neighbours(rows, [0], k=2)[1].tolist() == [[1, 2]]


@pytest.mark.parametrize(("rows", "words"), [(torch.ones(5, 2), "got 5"), (torch.full((9, 2), float("nan")), "NaN")])
def test_features_without_neighbours(rows: torch.Tensor, words: str) -> None:
    with pytest.raises(UserError, match=words):
        neighbours(rows, [0])


def test_matches_are_mutual_and_the_best_come_first() -> None:
    first = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 1.0]])
    second = torch.tensor([[0.0, 1.0, 0.2], [3.0, 0.0, 0.0], [0.2, 0.2, -1.0], [0.0, 0.4, 0.6]])
    found = matches(first, second)
    assert [(match.first, match.second) for match in found] == [(0, 1), (1, 0), (3, 3)]
    assert [match.cosine for match in found] == pytest.approx([1, 1 / 1.04**0.5, 0.6 / 0.52**0.5])
    assert matches(first, second, most=1) == [Match(0, 1, pytest.approx(1.0))]


def test_the_same_point_of_two_views_by_hand() -> None:
    whole, left = Region(0, 0, 1, 1, False), Region(0, 0, 1, 0.5, False)
    places, is_seen = same_point(whole, left, grid=2)
    assert is_seen.tolist() == [True, False, True, False]
    assert places[is_seen].tolist() == [1, 3]
    places, is_seen = same_point(left, whole, grid=2)
    assert is_seen.all()
    assert places.tolist() == [0, 0, 2, 2]
    places, is_seen = same_point(left, Region(0, 0, 1, 1, True), grid=2)
    assert places.tolist() == [1, 1, 3, 3]
    places, is_seen = same_point(Region(0, 0, 1, 0.5, True), whole, grid=4)
    assert places.view(4, 4).tolist() == [[4 * row + column for column in (1, 1, 0, 0)] for row in range(4)]
    lower = Region(0.5, 0.0, 0.5, 1.0, False)
    places, is_seen = same_point(whole, lower, grid=4)
    assert is_seen.view(4, 4).tolist() == [[False] * 4] * 2 + [[True] * 4] * 2
    assert places[is_seen].tolist() == [4, 5, 6, 7, 12, 13, 14, 15]
    assert region_of(Box(4, 2, 8, 12), side=16, flipped=True) == Region(0.25, 0.125, 0.5, 0.75, True)


@pytest.mark.parametrize("flipped", [False, True])
def test_features_that_tell_the_place_are_always_right(flipped: bool) -> None:
    """The feature of a patch is where its middle lies in the image, so that the nearest patch covers the point."""
    grid = 8

    def seen(region: Region) -> torch.Tensor:
        middles = (torch.arange(grid) + 0.5) / grid
        rows, columns = torch.meshgrid(middles, middles, indexing="ij")
        columns = 1 - columns if region.flipped else columns
        down, right = region.top + rows * region.height, region.left + columns * region.width
        place = torch.stack([down, right], dim=-1).flatten(0, 1)
        return torch.cat(
            [place.sub(0.5), (0.5 - place.sub(0.5).square().sum(1, keepdim=True)).sqrt()], dim=1
        )  # a sphere

    regions = Region(0.0, 0.0, 0.75, 0.75, False), Region(0.25, 0.125, 0.75, 0.75, flipped)
    right = right_matches(seen(regions[0]), seen(regions[1]), regions)
    assert len(right) == 5 * 7
    assert right.double().mean() > 0.9
    wrong = right_matches(seen(regions[0]), seen(regions[1]).flip(0), regions)
    assert wrong.double().mean() < 0.3


def test_fullest_prototypes_by_hand() -> None:
    prototypes = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-2.0, 0.0], [0.0, -1.0]])
    projected = torch.tensor([[0.0, 1.0], [0.6, 0.8], [1.0, 0.0], [-1.0, 0.0], [0.8, 0.6], [0.1, 0.9]])
    found = members(projected, prototypes, images=2)
    assert found == [Members(1, 3, (0, 5)), Members(0, 2, (2, 4)), Members(2, 1, (3,))]
    assert members(projected, prototypes, most=1) == [Members(1, 3, (0, 5, 1))]


def test_partners_are_of_the_same_class_where_they_can() -> None:
    assert partners_of([0, 2, 3, 4], [7, 5, 7, 5, 9]) == (2, 0, 1, 0)
    assert partners_of([1, 2], [-1, -1, -1]) == (2, 0)
    assert len(partners_of(range(9), [0] * 9)) == 4
    assert partners_of([0], [3]) == ()
