import numpy as np
import pytest
import torch

from poa.tasks.segmentation.predict import agreement, count, intervals

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
        occurs = any(true == each for true, _ in pixels)
        ious.append(100 * both / either if occurs else float("nan"))
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
    found, expected = agreement(counted(truths, guesses)), naive(truths, guesses, 5)
    assert found.miou == pytest.approx(expected[0])
    assert found.pixel_accuracy == pytest.approx(expected[1])
    assert found.iou.tolist() == pytest.approx(expected[2], nan_ok=True)
    assert bool(found.iou[4].isnan())  # guessed, but it occurs nowhere


def test_by_hand() -> None:
    truth = torch.tensor([[0, 0, 1], [1, IGNORE, 1]])
    guess = torch.tensor([[0, 1, 1], [1, 0, 2]])
    assert count(truth, guess, num_classes=3, ignore=IGNORE).tolist() == [[1, 2, 0], [2, 3, 0], [1, 3, 1]]
    found = agreement(counted([truth], [guess], 3))
    assert found.iou[:2].tolist() == [50.0, 50.0]  # 1 of 2, 2 of 4
    assert (found.miou, found.pixel_accuracy) == (50.0, 60.0)
    assert count(truth, guess, num_classes=10, ignore=-1)[1, IGNORE] == 1  # nothing is ignored


def test_pixels_are_summed_before_they_are_divided() -> None:
    small, large = torch.zeros(1, 1, dtype=torch.long), torch.zeros(3, 3, dtype=torch.long)
    found = agreement(counted([small, large], [small + 1, large], 2))
    assert found.miou == pytest.approx(90.0)  # and not the mean of 0 and 100


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
