from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from poa.config.segmentation import Segmentation
from poa.data.images import Preprocessing
from poa.tasks.segmentation.predict import agreement, count, intervals, predict, slide, starts

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


IGNORE = 9


def naive(truths: list[torch.Tensor], guesses: list[torch.Tensor], num_classes: int) -> tuple[float, float, list]:
    """With loops over pixels."""
    pixels = [
        (int(true), int(guess))
        for truth, guessed in zip(truths, guesses, strict=True)
        for true, guess in zip(truth.flatten(), guessed.flatten(), strict=True)
        if int(true) != IGNORE
    ]
    ious = []
    for each in range(num_classes):
        both = sum(true == each and guess == each for true, guess in pixels)
        either = sum(true == each or guess == each for true, guess in pixels)
        ious.append(100 * both / either if either else float("nan"))
    right = sum(true == guess for true, guess in pixels)
    return float(np.nanmean(ious)), 100 * right / len(pixels), ious


def drawn(*, num_images: int = 3, num_classes: int = 5, seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    truths = [torch.randint(num_classes - 1, (6, 7 + i), generator=generator) for i in range(num_images)]
    guesses = [torch.where(torch.rand(t.shape, generator=generator) < 0.5, t, (t + 2) % num_classes) for t in truths]
    for truth in truths:
        truth[torch.rand(truth.shape, generator=generator) < 0.2] = IGNORE
    return truths, guesses


def counted(truths: list[torch.Tensor], guesses: list[torch.Tensor], num_classes: int = 5) -> torch.Tensor:
    pairs = zip(truths, guesses, strict=True)
    return torch.stack([count(t, g, num_classes=num_classes, ignore=IGNORE) for t, g in pairs])


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_loops_over_pixels(seed: int) -> None:
    truths, guesses = drawn(seed=seed)
    found, expected = agreement(counted(truths, guesses, 6)), naive(truths, guesses, 6)
    assert found.miou == pytest.approx(expected[0])
    assert found.pixel_accuracy == pytest.approx(expected[1])
    assert found.iou.tolist() == pytest.approx(expected[2], nan_ok=True)
    assert found.iou[4] == 0  # guessed, but never true
    assert bool(found.iou[5].isnan())  # neither


def test_by_hand() -> None:
    truth = torch.tensor([[0, 0, 1], [1, IGNORE, 1]])
    guess = torch.tensor([[0, 1, 1], [1, 0, 2]])
    assert count(truth, guess, num_classes=3, ignore=IGNORE).tolist() == [[1, 2, 0], [2, 3, 0], [1, 3, 1]]
    found = agreement(counted([truth], [guess], 3))
    assert found.iou.tolist() == [50.0, 50.0, 0.0]  # 1 of 2, 2 of 4, 0 of 1
    assert (found.miou, found.pixel_accuracy) == (pytest.approx(100 / 3), 60.0)
    assert count(truth, guess, num_classes=10, ignore=-1)[1, IGNORE] == 1  # nothing is ignored


def test_pixels_are_summed_before_they_are_divided() -> None:
    small, large = torch.zeros(1, 1, dtype=torch.long), torch.zeros(3, 3, dtype=torch.long)
    found = agreement(counted([small, large], [small + 1, large], 2))
    assert found.iou[0] == pytest.approx(90.0)  # and not the mean of 0 and 100
    assert found.miou == pytest.approx(45.0)


def test_intervals_are_those_of_drawn_images() -> None:
    truths, guesses = drawn(num_images=4)
    counts = counted(truths, guesses)
    found = intervals(counts, resamples=250, seed=3)
    generator, values = torch.Generator().manual_seed(3), []
    for rows in (100, 100, 50):
        for images in torch.randint(4, (rows, 4), generator=generator).tolist():
            values.append(naive([truths[i] for i in images], [guesses[i] for i in images], 5)[:2])
    expected = np.quantile(np.array(values), [0.025, 0.975], axis=0)
    assert found["miou"] == pytest.approx(tuple(expected[:, 0]))
    assert found["pixel_accuracy"] == pytest.approx(tuple(expected[:, 1]))
    low, high = intervals(counts, resamples=250, level=0.5)["miou"]
    assert found["miou"][0] < low < high < found["miou"][1]


def test_intervals_of_equal_images_have_no_length() -> None:
    truths, guesses = drawn(num_images=1)
    counts = counted(truths * 3, guesses * 3)
    whole = agreement(counts)
    assert intervals(counts)["miou"] == pytest.approx((whole.miou, whole.miou))
    assert intervals(counts[:1]) == {}


def test_images_without_a_class_do_not_spoil_intervals() -> None:
    truths, guesses = drawn(num_images=2)
    truths[0][:] = IGNORE
    found = intervals(counted(truths, guesses))
    assert all(0 < low <= high < 100 for low, high in found.values())
