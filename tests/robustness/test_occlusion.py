"""Objects on backgrounds of other classes, and the masks that say where they are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pixel_features import SIZES, evaluate, pictures, source
from poa.data.images import Preprocessing
from poa.data.index import open_index
from poa.errors import UserError
from poa.robustness.conditions import Robustness
from poa.robustness.occlusion import MaskedImages, check_grid, hide, shuffle, swap_background, usual_grid


def cells(image: Tensor, grid: int) -> list[Tensor]:
    side = image.shape[-1] // grid
    return [
        image[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
        for row in range(grid)
        for column in range(grid)
    ]


def hidden_cells(image: Tensor, grid: int) -> set[int]:
    """Numbers of the cells that are all zero; the others must be untouched."""
    assert all(bool((cell == 0).all()) or bool((cell != 0).all()) for cell in cells(image, grid))
    return {place for place, cell in enumerate(cells(image, grid)) if bool((cell == 0).all())}


@pytest.mark.parametrize(
    ("share", "grid", "count"), [(0.3, 14, 58), (0.5, 14, 98), (0.9, 14, 176), (0.3, 10, 30), (0.1, 4, 1)]
)
def test_as_many_cells_are_hidden_as_published(share: float, grid: int, count: int) -> None:
    images = torch.rand(3, 3, 2 * grid, 2 * grid) + 1
    found = hide(images, share=share, grid=grid, numbers=[0, 1, 2])
    hidden = [hidden_cells(image, grid) for image in found]
    assert [len(each) for each in hidden] == [count] * 3
    assert torch.equal(found[found != 0], images[found != 0])
    assert len(set(map(frozenset, hidden))) == 3 or count == 1


def test_hidden_cells_stay_hidden_and_belong_to_the_image() -> None:
    images = torch.rand(2, 3, 16, 16) + 1
    weak = hide(images, share=0.25, grid=8, numbers=[7, 8], seed=3)
    strong = hide(images, share=0.75, grid=8, numbers=[7, 8], seed=3)
    assert hidden_cells(weak[0], 8) < hidden_cells(strong[0], 8)
    alone = hide(images[1:], share=0.25, grid=8, numbers=[8], seed=3)
    assert torch.equal(alone[0], weak[1])
    assert hidden_cells(hide(images, share=0.25, grid=8, numbers=[7, 8], seed=4)[0], 8) != hidden_cells(weak[0], 8)


def test_shuffled_cells_are_all_there() -> None:
    images = torch.arange(2 * 3 * 12 * 12).remainder(251).to(torch.uint8).view(2, 3, 12, 12)
    found = shuffle(images, grid=4, numbers=[5, 6])
    orders = []
    for before, after in zip(images, found, strict=True):
        known = {cell.numpy().tobytes(): place for place, cell in enumerate(cells(before, 4))}
        orders.append([known[cell.numpy().tobytes()] for cell in cells(after, 4)])
    assert all(sorted(order) == list(range(16)) for order in orders)
    assert orders[0] != orders[1]
    assert orders[0] != list(range(16))
    assert torch.equal(shuffle(images[1:], grid=4, numbers=[6])[0], found[1])
    assert torch.equal(shuffle(images, grid=1, numbers=[5, 6]), images)


@pytest.mark.parametrize(("side", "grid"), [(224, 14), (96, 12), (32, 8), (16, 8), (20, 10), (17, 1)])
def test_usual_grid(side: int, grid: int) -> None:
    assert usual_grid(side) == grid


@pytest.mark.parametrize("grid", [0, 5])
def test_grids_that_do_not_fit(grid: int) -> None:
    with pytest.raises(
        UserError, match=f"16 pixels cannot be divided into {grid} x {grid}.* Set --grid to one of 2, 4, 8, 16"
    ):
        check_grid(grid, 16, setting="--grid")


def test_background_comes_from_the_nearest_background_pixel() -> None:
    image = torch.full((3, 4, 4), 9, dtype=torch.uint8)
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1, 1] = True
    other = torch.arange(16, dtype=torch.uint8).view(1, 4, 4).repeat(3, 1, 1)
    other_mask = torch.zeros(4, 4, dtype=torch.bool)
    other_mask[:, 2:] = True
    found = swap_background(image, mask, other, other_mask)
    wanted = np.array([[0, 1, 1, 1], [4, 9, 5, 5], [8, 9, 9, 9], [12, 13, 13, 13]])
    assert torch.equal(found[2], torch.from_numpy(wanted).to(torch.uint8))


def test_swapped_backgrounds(tmp_path: Path) -> None:
    train, test = pictures(tmp_path / "train", seed=1), pictures(tmp_path / "test")
    Image.new("L", (12, 12)).save(tmp_path / "test" / "masks" / "red" / "3.png")  # shows no object
    settings = Robustness(occlusion=(), shuffle=(), corruptions=(), k=3)
    images: dict[str, Any] = {"train": train, "test": test, "limit": None, "test_limit": None}
    found = evaluate(source(tmp_path), settings, masks=tmp_path / "test/masks", **images)[SIZES[0]]
    assert list(found) == ["clean", "background own", "background swapped"]
    written = json.loads((tmp_path / "robustness" / "robustness.json").read_text())
    assert written["details"][SIZES[0]] == {"background own": 7, "background swapped": 7}
    Image.new("L", (12, 12), 1).save(tmp_path / "test" / "masks" / "red" / "3.png")
    evaluate(source(tmp_path), settings, masks=tmp_path / "test/masks", **images)
    written = json.loads((tmp_path / "robustness" / "robustness.json").read_text())
    assert written["details"][SIZES[0]] == {"background own": 8, "background swapped": 8}, "the mask was corrected"


def masked(root: Path, **over: Any) -> MaskedImages:
    index = open_index(pictures(root))
    seen = Preprocessing(12, 12, (0.5,) * 3, (0.5,) * 3)
    given = {"index": index, "labels": index.labels(), "folder": root / "masks", "preprocessing": seen}
    return MaskedImages(**{**given, **over})


def test_backgrounds_are_of_another_class_and_always_the_same(tmp_path: Path) -> None:
    images = masked(tmp_path)
    for number in range(8):
        background, mask = images.background(number)
        own = images.mask(number)
        assert int(own.sum()) == 25
        assert torch.equal(background, images.background(number)[0])
        channel = 0 if images.labels[number] == 0 else 2  # blue comes first by name: the other class is red
        assert bool((background[channel] == 255).eq(mask).all())


@pytest.mark.parametrize("kind", ["palette", "alpha", "rgb"])
def test_kinds_of_masks(tmp_path: Path, kind: str) -> None:
    images = masked(tmp_path)
    values = np.zeros((12, 12), np.uint8)
    values[2:4, 5] = 1
    if kind == "palette":
        mask = Image.fromarray(values)
        mask.putpalette([255, 255, 255, 0, 0, 0])
    elif kind == "alpha":
        mask = Image.fromarray(np.dstack([values, np.full_like(values, 255)]), "LA")
    else:
        mask = Image.fromarray(np.dstack([values * 0, values, values * 0]))
    mask.save(images.path(0))
    assert images.mask(0).nonzero().tolist() == [[2, 5], [3, 5]]


def test_bad_masks(tmp_path: Path) -> None:
    images = masked(tmp_path)
    images.check()
    with pytest.raises(UserError, match=r"no folder .*nowhere of masks"):
        masked(tmp_path / "a", folder=tmp_path / "nowhere").check()
    with pytest.raises(UserError, match="of another class, but all"):
        masked(tmp_path / "b", labels=np.zeros(8, np.int64)).check()
    images.path(2).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"2\.png cannot be read"):
        images.mask(2)
    Image.new("L", (12, 10)).save(images.path(2))
    with pytest.raises(UserError, match=r"2\.png has 12x10 pixels, but its image has 12x12"):
        images.mask(2)
    images.path(3).unlink()
    with pytest.raises(UserError, match=r"1 of 8 test images have no mask in .*blue/3\.png"):
        images.check()
    for number in range(4, 8):
        Image.new("L", (12, 12), 1).save(images.path(number))
    with pytest.raises(UserError, match=r"No background was found for 'blue/0\.png'"):
        images.background(0)
