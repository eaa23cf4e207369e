import numpy as np
import pytest
import torch
from torch import Tensor

from poa.errors import UserError
from poa.robustness.occlusion import check_grid, hide, shuffle, swap_background, usual_grid


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
        UserError, match=f"16 pixels cannot be cut into {grid} x {grid}.* Set --grid to one of 2, 4, 8, 16"
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
