from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from poa.config.segmentation import Segmentation
from poa.data.images import Preprocessing
from poa.tasks.segmentation.predict import predict, slide, starts

PREPROCESSING = Preprocessing(8, 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CPU = torch.device("cpu")


def by_pixel(images: Tensor) -> Tensor:
    """Three classes by the colour of each pixel: windows make no difference."""
    return torch.stack([images[:, 0], images[:, 1] * 2, images[:, 2] - 0.1], dim=1)


def by_window(images: Tensor) -> Tensor:
    """Scores that depend on what else is in the window, and on the place in it."""
    rows = torch.linspace(0, 1, images.shape[2])[:, None]
    return torch.stack([images.mean(dim=(1, 2, 3))[:, None, None] + 0 * images[:, 0], images[:, 0] * rows], dim=1)


@pytest.mark.parametrize(
    ("side", "window", "stride", "expected"),
    [(8, 8, 4, (0,)), (9, 8, 4, (0, 1)), (16, 8, 4, (0, 4, 8)), (17, 8, 4, (0, 4, 8, 9)), (20, 8, 8, (0, 8, 12))],
)
def test_starts(side: int, window: int, stride: int, expected: tuple[int, ...]) -> None:
    assert starts(side, window=window, stride=stride) == expected


def test_every_pixel_is_covered() -> None:
    for side in range(7, 40):
        for stride in range(1, 8):
            covered = {each + offset for each in starts(side, window=7, stride=stride) for offset in range(7)}
            assert covered == set(range(side))


@pytest.mark.parametrize("size", [(20, 30), (8, 8), (8, 21)])
def test_means_over_windows(size: tuple[int, int]) -> None:
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    total, covered = torch.zeros(1, 2, *size), torch.zeros(size)
    for top in starts(size[0], window=8, stride=5):
        for left in starts(size[1], window=8, stride=5):
            rows, columns = slice(top, top + 8), slice(left, left + 8)
            total[:, :, rows, columns] += by_window(image[:, :, rows, columns])
            covered[rows, columns] += 1
    torch.testing.assert_close(slide(by_window, image, window=8, stride=5), total / covered)
    torch.testing.assert_close(slide(by_pixel, image, window=8, stride=5), by_pixel(image))


def test_one_window_is_the_whole_image() -> None:
    image = torch.randn(1, 3, 12, 12)
    whole = by_window(image)
    assert torch.equal(slide(by_window, image, window=0, stride=1), whole)
    assert torch.equal(slide(by_window, image, window=12, stride=8), whole)
    assert torch.equal(slide(by_window, image, window=40, stride=8), whole)
    assert not torch.allclose(slide(by_window, image, window=8, stride=4), whole)


def test_windows_go_in_portions() -> None:
    seen: list[int] = []

    def score(images: Tensor) -> Tensor:
        seen.append(len(images))
        assert images.shape[2:] == (4, 4)
        return by_pixel(images)

    slide(score, torch.randn(1, 3, 16, 16), window=4, stride=4)
    assert seen == [8, 8]


def pixels(*size: int) -> Tensor:
    return torch.randint(256, (1, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def predicted(score: Any, image: Tensor, sides: tuple[int, int], **options: Any) -> Tensor:
    settings = Segmentation(whole=True, **options)
    return predict(score, image, settings, PREPROCESSING, sides=sides, device=CPU)


def test_predictions_are_the_best_class_at_the_size_of_the_mask() -> None:
    image = pixels(12, 16)
    scores = by_pixel(image / 255)
    assert torch.equal(predicted(by_pixel, image, (12, 16)), scores.argmax(dim=1)[0])
    larger = F.interpolate(scores, size=(24, 32), mode="bilinear").argmax(dim=1)[0]
    assert torch.equal(predicted(by_pixel, image, (24, 32)), larger)
    shifted = Preprocessing(8, 8, (0.5, 0.0, 0.0), (0.5, 1.0, 1.0))
    changed = by_pixel(
        (image / 255 - torch.tensor([0.5, 0, 0])[:, None, None]) / torch.tensor([0.5, 1, 1])[:, None, None]
    )
    found = predict(by_pixel, image, Segmentation(whole=True), shifted, sides=(12, 16), device=CPU)
    assert torch.equal(found, changed.argmax(dim=1)[0])


def test_mirror_images_and_scales_are_averaged() -> None:
    image, columns = pixels(12, 16), torch.linspace(-1, 1, 16)

    def lopsided(images: Tensor) -> Tensor:
        """Prefers class 0 on the left and 1 on the right, whatever it sees; class 2 by its colour."""
        side = columns.expand(len(images), images.shape[2], -1)
        return torch.stack([-side, side, images[:, 0] * 4 - 2], dim=1)

    one = lopsided(image / 255).softmax(dim=1)
    other = lopsided(image.flip(3) / 255).flip(3).softmax(dim=1)
    assert torch.equal(predicted(lopsided, image, (12, 16), test_flip=True), (one + other).argmax(dim=1)[0])
    assert not torch.equal(predicted(lopsided, image, (12, 16)), predicted(lopsided, image, (12, 16), test_flip=True))
    sizes: list[tuple[int, ...]] = []

    def noting(images: Tensor) -> Tensor:
        sizes.append(tuple(images.shape[2:]))
        return by_pixel(images) * (10.0 if images.shape[2] == 6 else 1.0)

    found = predicted(noting, image, (12, 16), test_scales=(0.5, 1.0, 2.0))
    assert sizes == [(6, 8), (12, 16), (24, 32)]
    small = predicted(noting, image, (12, 16), test_scales=(0.5,))
    plain = predicted(noting, image, (12, 16))
    assert float((found == small).double().mean()) > float((plain == small).double().mean())


def test_windows_shrink_with_small_images() -> None:
    sizes: list[tuple[int, ...]] = []

    def score(images: Tensor) -> Tensor:
        sizes.append(tuple(images.shape))
        return by_pixel(images)

    image = torch.randn(1, 3, 6, 20)
    torch.testing.assert_close(slide(score, image, window=8, stride=6), by_pixel(image))
    assert sizes == [(3, 3, 6, 8)]
