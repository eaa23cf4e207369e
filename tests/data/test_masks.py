import random
from typing import Any

import numpy as np
import pytest
import torch

from poa.data.masks import Masking, block_mask, kept_for, masks_for
from poa.errors import UserError


@pytest.mark.parametrize(("seed", "first"), [(0, [32, 33, 42, 43, 44, 45]), (1, [18, 19, 32, 33, 46, 47])])
def test_block_mask_repeats_the_official_generator(seed: int, first: list[int]) -> None:
    mask = block_mask(60, masking=Masking(14), generator=random.Random(seed))
    assert mask.sum() == 60
    assert np.flatnonzero(mask)[:6].tolist() == first


@pytest.mark.parametrize("grid", [4, 7, 8, 14])
def test_block_mask_comes_near_its_target_and_never_exceeds_it(grid: int) -> None:
    masking = Masking(grid)
    for target in range(1, grid**2 // 2 + 1):
        hidden = [block_mask(target, masking=masking, generator=random.Random(seed)).sum() for seed in range(30)]
        assert max(hidden) <= target
        assert np.mean(hidden) > 0.9 * target


@pytest.mark.parametrize(("grid", "flooring"), [(4, 0.5 / 16), (8, 0.5 / 64), (14, 0.5 / 196)])
def test_mean_share_is_the_middle_of_the_ratio_also_on_small_grids(grid: int, flooring: float) -> None:
    masks = masks_for(range(300), masking=Masking(grid), batch_size=300, seed=0, step=0)
    hidden = masks.sum(dim=1)
    assert masks.shape == (600, grid**2)
    assert (hidden > 0).sum() == 300
    # Targets are floored to whole patches, which takes half a patch on average.
    assert hidden[hidden > 0].float().mean() / grid**2 == pytest.approx(0.3 - flooring, rel=0.03)


def test_targets_cover_the_range_of_ratios_evenly() -> None:
    hidden = masks_for(range(200), masking=Masking(14), batch_size=200, seed=3, step=1).sum(dim=1)
    shares = hidden[hidden > 0].sort().values / 196
    assert torch.allclose(shares, torch.linspace(0.1, 0.5, 200), atol=0.02)


def test_a_rank_draws_its_rows_of_the_global_batch() -> None:
    settings = {"masking": Masking(8), "batch_size": 12, "seed": 5, "step": 7}
    whole = masks_for(range(12), **settings)
    part = masks_for(range(4, 8), **settings)
    assert torch.equal(part, torch.cat([whole[4:8], whole[16:20]]))


def test_masks_depend_on_seed_and_step() -> None:
    first = masks_for(range(8), masking=Masking(8), batch_size=8, seed=0, step=0)
    assert not torch.equal(first, masks_for(range(8), masking=Masking(8), batch_size=8, seed=1, step=0))
    assert not torch.equal(first, masks_for(range(8), masking=Masking(8), batch_size=8, seed=0, step=1))


def test_as_many_patches_of_each_crop_are_kept_by_chance() -> None:
    settings: dict[str, Any] = {"masking": Masking(6, dropped=0.4), "batch_size": 200, "seed": 5, "step": 7}
    kept = kept_for(range(200), **settings)
    assert kept is not None
    assert kept.shape == (400, 22)  # 0.6 * 36, rounded
    assert (kept.diff(dim=1) > 0).all()
    often = kept.flatten().bincount(minlength=36) / 400
    assert often.sub(22 / 36).abs().max() < 0.1  # 4 standard deviations
    assert len({str(row.tolist()) for row in kept}) == 400
    assert not masks_for(range(200), **settings).any()
    part = kept_for(range(40, 44), **settings)
    assert part is not None
    assert torch.equal(part, torch.cat([kept[40:44], kept[240:244]]))
    assert not torch.equal(kept, kept_for(range(200), **{**settings, "step": 8}))
    assert not torch.equal(kept, kept_for(range(200), **{**settings, "seed": 6}))
    assert kept_for(range(200), **{**settings, "masking": Masking(6)}) is None


def test_share_zero_hides_nothing() -> None:
    assert not masks_for(range(8), masking=Masking(8, share=0.0), batch_size=8, seed=0, step=0).any()


@pytest.mark.parametrize(
    "settings",
    [
        {"grid": 1},
        {"grid": 4, "share": 1.5},
        {"grid": 4, "ratio": (0.5, 0.1)},
        {"grid": 4, "min_block": 0},
        {"grid": 4, "max_block": 0.0},
        {"grid": 4, "aspect": (0.0, 1.0)},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UserError):
        Masking(**settings)  # type: ignore[arg-type]
