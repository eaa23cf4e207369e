import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from poa.errors import UserError
from poa.evaluation.quality import alignment, linear_cka, neighbour_stability, uniformity


def make(*, images: int = 40, width: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(images, width, generator=torch.Generator().manual_seed(seed)) + 0.5


def related() -> tuple[Tensor, Tensor]:
    first = make()
    return first, torch.cat([first[:, :4] + 0.3 * make(width=4, seed=1), make(width=5, seed=2)], dim=1)


def units(features: Tensor) -> list[list[float]]:
    return [[value / math.hypot(*row) for value in row] for row in features.double().tolist()]


def test_alignment_by_hand() -> None:
    first = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    second = torch.tensor([[5.0, 0.0], [3.0, 0.0], [-1.0, -1.0]])
    assert alignment(first, second) == pytest.approx((0 + 2 + 4) / 3)


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_alignment_equals_naive_loops(chunk: int) -> None:
    first, second = make(), make(seed=1)
    expected = sum(math.dist(u, v) ** 2 for u, v in zip(units(first), units(second), strict=True)) / 40
    assert alignment(first, second, chunk=chunk) == pytest.approx(expected)


def test_uniformity_by_hand() -> None:
    """Squared distances 2, 4 and 2."""
    features = torch.tensor([[3.0, 0.0], [0.0, 1.0], [-2.0, 0.0]])
    expected = math.log((2 * math.exp(-2 * 2) + math.exp(-2 * 4)) / 3)
    assert uniformity(features) == pytest.approx(expected)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0.0, abs=1e-6)  # float32 lengths


@pytest.mark.parametrize("chunk", [1, 7, 39, 100])
def test_uniformity_equals_naive_loops(chunk: int) -> None:
    rows = units(make())
    pairs = [(u, v) for i, u in enumerate(rows) for v in rows[:i]]
    expected = math.log(sum(math.exp(-2 * math.dist(u, v) ** 2) for u, v in pairs) / len(pairs))
    assert uniformity(make(), chunk=chunk) == pytest.approx(expected, abs=2e-6)  # distances are differences of float32


def nearest(features: Tensor, k: int) -> list[set[int]]:
    rows = units(features)
    found = []
    for i, u in enumerate(rows):
        others = [j for j in range(len(rows)) if j != i]
        found.append(set(sorted(others, key=lambda j, u=u: -sum(a * b for a, b in zip(u, rows[j], strict=True)))[:k]))
    return found


def test_stability_by_hand() -> None:
    """On a quarter circle in order, then with the last image moved to the front."""
    first, second = (
        torch.tensor([[math.cos(angle), math.sin(angle)] for angle in angles])
        for angles in ((0.0, 0.1, 0.3, 0.7), (0.0, 0.1, 0.3, -0.01))
    )
    # Nearest neighbours: 1, 0, 1, 2 and then 3, 0, 1, 0.
    assert neighbour_stability(first, second, k=1) == 0.5
    assert neighbour_stability(first, first, k=1) == 1.0
    assert neighbour_stability(first, second, k=3) == 1.0


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("k", [1, 5, 39])
def test_stability_equals_naive_loops(chunk: int, k: int) -> None:
    first, second = related()
    pairs = zip(nearest(first, k), nearest(second, k), strict=True)
    expected = sum(len(a & b) for a, b in pairs) / (40 * k)
    assert neighbour_stability(first, second, k=k, chunk=chunk) == pytest.approx(expected)
    if k == 5:
        assert 5 / 39 < expected < 1


def test_copies_of_an_image_are_neighbours_of_it_and_not_it_itself() -> None:
    first = torch.tensor([[1.0, 0.0]]).repeat(5, 1)  # each sees the first others; 0 and 1 push the rest off
    second = torch.eye(5)
    assert neighbour_stability(first, second, k=1) == 1.0  # 1, 0, 0, 0, 0 in both, by image number
    assert neighbour_stability(first, second, k=2) == 1.0


def naive_cka(first: Tensor, second: Tensor) -> float:
    """By the centred Gram matrices of the images."""
    count = len(first)
    centre = torch.eye(count, dtype=torch.float64) - 1 / count
    a, b = (centre @ rows.double() @ rows.double().T @ centre for rows in (first, second))
    return float((a * b).sum() / (a.norm() * b.norm()))


def test_cka_by_hand() -> None:
    """Columns of one number each: the squared correlation, here (1 / 2)^2."""
    first, second = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[10.0], [30.0], [20.0]])
    assert linear_cka(first, second) == pytest.approx(0.25)


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_cka_equals_gram_matrices(chunk: int, shift: float) -> None:
    first, second = related()
    found = linear_cka(first + shift, second - shift, chunk=chunk)
    assert found == pytest.approx(naive_cka(first + shift, second - shift), rel=1e-6)  # float32 products
    assert 0.2 < found < 0.9


def test_cka_does_not_see_rotation_scale_and_place() -> None:
    first, _ = related()
    rotation = torch.linalg.qr(make(images=6, seed=3)).Q
    assert linear_cka(first, 3 * first @ rotation + 7) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("function", [alignment, neighbour_stability, linear_cka])
def test_stays_float32_under_autocast(function: Callable[..., float]) -> None:
    first, second = make(), make(seed=1)
    plain = function(first, second), uniformity(first)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (function(first, second), uniformity(first)) == plain


@pytest.mark.parametrize("function", [alignment, neighbour_stability, linear_cka])
def test_refuses_features_that_do_not_match(function: Callable[..., float]) -> None:
    with pytest.raises(UserError, match="of 40 and 39 images"):
        function(make(), make(images=39))
    with pytest.raises(UserError, match="second images contain NaN"):
        function(make(), torch.full((40, 6), torch.nan))
    with pytest.raises(UserError, match="too few first images: got 0"):
        function(make(images=0), make(images=0))


def test_refuses_the_rest() -> None:
    with pytest.raises(UserError, match="first images have width 6, those of the second images 5"):
        alignment(make(), make(width=5))
    with pytest.raises(UserError, match="too few scored images: got 1, at least 2"):
        uniformity(make(images=1))
    for k in (0, 40):
        with pytest.raises(UserError, match=f"number of other images, here 39, got {k}"):
            neighbour_stability(make(), make(), k=k)
    rounded = torch.full((40, 3), 0.1)
    rounded[::3] = torch.nextafter(rounded[::3], torch.tensor(1.0))
    for same in (torch.full((40, 3), 0.1), torch.zeros(40, 3), rounded):
        with pytest.raises(UserError, match="the same for all images"):
            linear_cka(make(), same)
