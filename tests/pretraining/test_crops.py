"""Crops of a run's steps, from its settings."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import tiny
from poa.data.loader import CropSchedule
from poa.data.views import RawViews
from poa.errors import UserError
from poa.models.registry import family_of
from poa.pretraining import dry_run
from poa.pretraining.build import Parts
from poa.pretraining.crops import crops_of


def made(family: str = "vit", **over: Any) -> CropSchedule:
    config = tiny.config(family, **over)
    return crops_of(config, family_of(config), steps_per_epoch=4)


def test_small_crops_come_first() -> None:
    """And have masks of their own grid."""
    crops = made(views={"global_size": 32, "small_size": 16, "small_epochs": 1.5, "mask_share": 0.3})
    assert [crops.at(step).views.global_size for step in (0, 5, 6, 7)] == [16, 16, 32, 32]
    assert [crops.at(step).masking.grid for step in (5, 6)] == [2, 4]
    assert {crops.at(step).masking.share for step in (5, 6)} == {0.3}
    assert {crops.at(step).views.local_size for step in (5, 6)} == {8}


def test_all_crops_are_alike_by_default() -> None:
    crops = made()
    assert crops.at(0) == crops.at(100)
    assert crops.at(0).masking.dropped == 0


def test_a_dry_run_measures_crops_of_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would promise the speed of a part of the run for all of it."""
    sides: list[int] = []
    step, taken = dry_run.train_step, {16: (1.0, 0.0, 2.0), 32: (5.0, 0.0, 4.0)}

    def timed(parts: Parts, number: int, loader: Iterator[list[RawViews]]) -> tuple[float, float, float]:
        batch = next(loader)
        sides.append(batch[0].globals.shape[-1])
        step(parts, number, batch)
        return taken[sides[-1]]

    monkeypatch.setattr(dry_run, "_timed_step", timed)
    config = tiny.config(limit=32, epochs=4, **tiny.CHEAPER)  # the first of the four epochs
    found = dry_run.dry_run(config, console=Console(quiet=True))
    assert sides == [16, 16, 32, 32]
    assert found.measured.seconds_per_step == 1.0 / 4 + 5.0 * 3 / 4
    assert found.measured.cpu_seconds_per_step == 2.0 / 4 + 4.0 * 3 / 4
    note = "The speed is a mean: steps on crops of 16 pixels, which come first, take less than on 32."
    assert note in found.notes


@pytest.mark.parametrize(("done", "shares"), [(0, [3 / 8, 5 / 8]), (2, [1 / 6, 5 / 6]), (4, [1.0]), (8, [1.0])])
def test_a_forecast_is_of_the_steps_that_are_left(done: int, shares: list[float]) -> None:
    """Of eight, three have small crops."""
    config = tiny.config(views={"global_size": 32, "small_size": 16, "small_epochs": 0.75})
    parts = SimpleNamespace(crops=made(views=config.views.model_dump()), steps_per_epoch=4)
    kinds = dry_run._kinds(parts, config, done=done)  # type: ignore[arg-type]  # all that is looked at
    assert [share for _, share in kinds] == pytest.approx(shares)
    assert kinds[-1][0].at(0).views.global_size == 32


WHOLE = {"ibot": 0.0}


@pytest.mark.parametrize(
    ("family", "over", "told"),
    [
        ("vit", {"views": {"small_epochs": 1.0}}, "--views.small-epochs 1 needs a .* below .*, got None. Set it, or"),
        (
            "vit",
            {"views": {"small_size": 16, "small_epochs": 1.0}},
            "--views.small-epochs 1 needs a --views.small-size below --views.global-size 16, got 16",
        ),
        (
            "vit",
            {"views": {"global_size": 32, "small_size": 20, "small_epochs": 1.0}},
            "20 is not a multiple of the patch size 8. Set --views.small-size to 16 or 24",
        ),
        ("vit", {"views": {"drop_patches": 0.5}}, r"--views.drop-patches 0.5 leaves .* Add --losses.ibot 0"),
        (
            "swin",
            {"views": {"drop_patches": 0.5}, "losses": WHOLE},
            "works with --model vit, got a Swin. Leave it out",
        ),
        (
            "vit",
            {"losses": {"gram": 0.5}, "method": "distill"},
            "0.5 works with --method poa or single, got distill",
        ),
        (
            "convnext",
            {"losses": {"gram": 1.0}},
            "a ConvNeXt makes one patch of .* 32 pixels. Raise --views.global",
        ),
        (
            "vit",
            {"losses": {"gram": 1.0}, "views": {"small_size": 8, "small_epochs": 1.0}},
            "a ViT makes one patch of a crop of 8 pixels. Raise --views.small-size, or leave it out",
        ),
    ],
)
def test_what_does_not_fit_is_refused(family: str, over: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        made(family, **over)


@pytest.mark.parametrize(("method", "dropped"), [("single", 0.5), ("distill", 0.0), ("seed", 0.0)])
def test_patches_are_left_out_where_a_network_distils_itself(method: str, dropped: float) -> None:
    over = {"views": {"drop_patches": 0.5, "small_size": 8}, "losses": WHOLE, "method": method}
    crops = made("vit", **over)
    assert crops.usual.masking.dropped == dropped
    assert crops.usual.views.global_size == crops.small.views.global_size == 16, (
        "without epochs there are no small crops"
    )
