import pytest
import torch
from torch import Tensor

from poa.errors import UserError
from poa.evaluation import protocol
from poa.evaluation.protocol import bootstrap_interval


def test_equal_values_have_no_width() -> None:
    assert bootstrap_interval(torch.full((50,), 0.25)) == (0.25, 0.25)


def test_two_images_by_hand() -> None:
    """Means of two draws from 0 and 1 are 0, 1/2 and 1 with chances of 1/4, 1/2 and 1/4."""
    values = torch.tensor([False, True])
    assert bootstrap_interval(values, level=0.95) == (0.0, 1.0)
    assert bootstrap_interval(values, level=0.4) == (0.5, 0.5)


def test_is_the_percentiles_of_resampled_means() -> None:
    values = torch.rand(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = bootstrap_interval(values, level=0.8, resamples=300, seed=7)
    generator = torch.Generator().manual_seed(7)
    torch.randint(1, (300, 1), generator=generator)  # drawn first, for nothing
    means = sorted(sum(values[i].item() for i in row) / 20 for row in torch.randint(20, (300, 20), generator=generator))
    at = 0.1 * 299  # between the 30th and the 31st
    low = means[29] + (at - 29) * (means[30] - means[29])
    high = means[-30] - (at - 29) * (means[-30] - means[-31])
    assert found == pytest.approx((low, high))


@pytest.mark.parametrize("at_once", [1, 64])
def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    values = torch.rand(30, generator=torch.Generator().manual_seed(0))
    whole = bootstrap_interval(values)
    monkeypatch.setattr(protocol, "_DRAWN_AT_ONCE", at_once)
    assert bootstrap_interval(values) == whole


def test_seed_decides() -> None:
    values = torch.rand(30)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_holds_the_true_mean_as_often_as_promised() -> None:
    generator, hits, trials = torch.Generator().manual_seed(0), 0, 500
    for trial in range(trials):
        correct = torch.rand(150, generator=generator) < 0.7
        low, high = bootstrap_interval(correct, level=0.9, resamples=500, seed=trial)
        hits += low <= 0.7 <= high
    # Chance moves the share by 0.013; the percentiles of 150 yes and no by about 0.01 more.
    assert hits / trials == pytest.approx(0.9, abs=0.04)


@pytest.mark.parametrize(
    ("values", "others", "words"),
    [
        (torch.ones(1), {}, "at least two images, got 1"),
        (torch.ones(0), {}, "at least two images, got 0"),
        (torch.tensor([1.0, torch.nan]), {}, "NaN or infinity"),
        (torch.ones(2), {"level": 1.0}, "level between 0 and 1 and at least one resample, got 1.0"),
        (torch.ones(2), {"resamples": 0}, "got 0.95 and 0"),
    ],
)
def test_refuses(values: Tensor, others: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        bootstrap_interval(values, **others)
