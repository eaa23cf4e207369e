"""What a recipe counts in epochs, in runs of other lengths."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from poa.config.pretraining import Config
from poa.config.resolve import (
    IN_EPOCHS,
    as_begun,
    differences,
    of_epochs,
    of_length,
    of_run,
    read_recipe,
    recipes,
    resolve,
    to_yaml,
)
from poa.errors import UserError

TENTH: dict[str, float] = {  # of the recipe, twice that of its warm-up
    "optimizer.warmup_epochs": 2.0,
    "optimizer.freeze_last_layer_epochs": 0.1,
    "losses.ibot_start_epoch": 3.0,
    "losses.teacher_temperature_epochs": 3.0,
}


def counted(config: Config) -> dict[str, float]:
    flat = {name: getattr(getattr(config, name.split(".")[0]), name.split(".")[1]) for name in IN_EPOCHS}
    return {name: value for name, value in flat.items() if value}


@pytest.fixture
def of_100_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published recipe as if it were made for 100 epochs."""
    settings = {**read_recipe("poa-vit-l"), "epochs": 100}
    monkeypatch.setattr("poa.config.resolve.read_recipe", lambda _: settings)


@pytest.mark.usefixtures("of_100_epochs")
def test_a_shorter_run_shortens_what_its_recipe_counts_in_epochs(caplog: pytest.LogCaptureFixture) -> None:
    assert counted(resolve({"epochs": 10}, recipe="poa-vit-l")) == pytest.approx(TENTH)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING  # which Python shows where logging is not set up
    assert record.getMessage() == (
        "Note: Recipe poa-vit-l is made for 100 epochs. With --epochs 10, these settings are shortened: "
        "losses.ibot_start_epoch from 30 to 3, losses.teacher_temperature_epochs from 30 to 3, "
        "optimizer.warmup_epochs from 10 to 2, optimizer.freeze_last_layer_epochs from 1 to 0.1. "
        "Values that you set yourself are kept."
    )


@pytest.mark.usefixtures("of_100_epochs")
def test_one_of_several_processes_tells_it(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in ("1", "0", "2"):
        monkeypatch.setenv("RANK", rank)
        assert counted(resolve({"epochs": 10}, recipe="poa-vit-l")) == pytest.approx(TENTH)
    assert len(caplog.records) == 1


@pytest.mark.usefixtures("of_100_epochs")
@pytest.mark.parametrize("where", ["arguments", "file"])
def test_what_the_user_sets_is_kept(tmp_path: Path, where: str) -> None:
    own: dict[str, Any] = {"epochs": 10, "optimizer": {"warmup_epochs": 7.0}, "losses": {"ibot_start_epoch": 5.0}}
    file = tmp_path / "mine.yaml"
    file.write_text("{recipe: poa-vit-l, epochs: 10, optimizer: {warmup-epochs: 7}, losses: {ibot-start-epoch: 5}}")
    config = resolve(file=file) if where == "file" else resolve(own, recipe="poa-vit-l")
    expected = {**TENTH, "optimizer.warmup_epochs": 7.0, "losses.ibot_start_epoch": 5.0}
    assert counted(config) == pytest.approx(expected)


@pytest.mark.usefixtures("of_100_epochs")
def test_a_run_that_is_resumed_keeps_its_own_settings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those of a run of an earlier commit, which shortened nothing; what the user gives counts, to be compared."""
    begun = resolve({"out": str(tmp_path), "epochs": 100, "optimizer": {"base_lr": 0.5}}, recipe="poa-vit-l")
    begun = begun.changed(epochs=10)
    (tmp_path / "config.yaml").write_text(to_yaml(begun))
    whole_command: dict[str, Any] = {"out": str(tmp_path), "epochs": 10, "optimizer": {"base_lr": 0.5}}
    resumed = resolve(whole_command, recipe="poa-vit-l", resume=True)
    assert resumed == resolve({"out": str(tmp_path)}, resume=True) == begun
    assert not caplog.records
    other = {"out": str(tmp_path), "optimizer": {"warmup_epochs": 1.0}}
    changed = differences(begun, resolve(other, recipe="poa-vit-l", resume=True))
    recipe = {"epochs": (10, 100), "optimizer.base_lr": (0.5, Config().optimizer.base_lr)}
    assert changed == {"optimizer.warmup_epochs": (10.0, 1.0)} | recipe
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 9")
    assert differences(begun, resolve({"out": str(tmp_path)}, file=file, resume=True)) == {"epochs": (10, 9)}


def test_a_run_of_an_earlier_commit_keeps_its_small_and_local_crops(tmp_path: Path) -> None:
    command: dict[str, Any] = {"out": str(tmp_path), "epochs": 40, "views": {"global_size": 48}}
    begun = resolve(command, recipe="vit-small-data")
    earlier = {"small_size": 24, "small_epochs": 27.0, "local_size": 16}
    before = begun.changed(views=begun.views.model_copy(update=earlier))
    (tmp_path / "config.yaml").write_text(to_yaml(before))
    assert resolve(command, recipe="vit-small-data", resume=True) == before == as_begun(begun, before)
    assert (begun.views.small_size, begun.views.local_size) == (32, 24)


def test_a_run_of_an_earlier_commit_goes_on_with_whole_photographs(tmp_path: Path) -> None:
    """Its settings say nothing of it; those of a run that was begun now do."""
    settings = yaml.safe_load(to_yaml(Config(out=str(tmp_path))))
    earlier = settings | {"views": {name: value for name, value in settings["views"].items() if name != "full_decode"}}
    for stored, whole in ((settings, False), (earlier, True)):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(stored, sort_keys=False, explicit_end=True))
        assert of_run(tmp_path / "config.yaml").views.full_decode is whole
        assert resolve({"out": str(tmp_path)}, resume=True).views.full_decode is whole


@pytest.mark.parametrize("recipe", recipes())
def test_a_recipe_at_its_own_length_or_longer_is_taken_as_it_stands(
    caplog: pytest.LogCaptureFixture, recipe: str
) -> None:
    usual = Config.model_validate(read_recipe(recipe))
    assert resolve(recipe=recipe) == resolve({"epochs": usual.epochs}, recipe=recipe) == usual
    assert not caplog.records
    views = usual.views.model_copy(update={"small_epochs": 2 * usual.views.small_epochs})
    longer = usual.changed(epochs=2 * usual.epochs, views=views)
    assert resolve({"epochs": longer.epochs}, recipe=recipe) == longer


def test_small_crops_take_the_same_part_of_a_longer_run(caplog: pytest.LogCaptureFixture) -> None:
    assert resolve({"epochs": 40}, recipe="vit-small-data").views.small_epochs == 36
    assert "are lengthened: views.small_epochs from 27 to 36" in caplog.text
    assert resolve({"epochs": 40, "views": {"small_epochs": 20}}, recipe="vit-small-data").views.small_epochs == 20


@pytest.mark.parametrize(
    ("recipe", "given", "small"),
    [
        ("vit-small-data", {"views": {"global_size": 48}}, 32),
        ("vit-small-data", {"views": {"global_size": 28}, "model": {"patch_size": 4}}, 20),
        ("vit-small-data", {"views": {"global_size": 64}}, 48),
        ("vit-small-data", {"model": {"patch_size": 16}}, 16),
        ("vit-small-data", {"views": {"global_size": 48, "small_size": 24}}, 24),
        ("vit-96", {}, 64),
        ("vit-96", {"views": {"global_size": 192}}, 128),
        ("convnext-small-data", {"views": {"global_size": 48}}, None),
    ],
)
def test_small_crops_follow_the_size_of_crops(recipe: str, given: Mapping[str, Any], small: int | None) -> None:
    """In proportion, as whole patches; what is given stays."""
    assert resolve(given, recipe=recipe).views.small_size == small


@pytest.mark.parametrize(
    ("recipe", "given", "local"),
    [
        ("vit-224", {}, 96),
        ("vit-224", {"views": {"global_size": 112}}, 48),
        ("vit-224", {"views": {"global_size": 16}}, 16),
        ("vit-224", {"model": {"patch_size": 14}, "views": {"global_size": 518}}, 224),
        ("vit-224", {"views": {"global_size": 112, "local_size": 64}}, 64),
        ("resnet-224", {"views": {"global_size": 160}}, 69),
        ("vit-224", {"model": {"name": "vit_small_patch16_224"}, "views": {"global_size": 112}}, 96),
    ],
)
def test_local_crops_follow_the_size_of_crops(recipe: str, given: Mapping[str, Any], local: int) -> None:
    assert resolve(given, recipe=recipe).views.local_size == local


def test_a_file_is_followed_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: vit-small-data\nviews: {global_size: 64}")
    assert resolve(file=file).views.small_size == 48
    assert resolve({"views": {"global_size": 96}}, file=file).views.small_size == 72


def test_crops_of_one_patch_leave_no_room_for_smaller_ones() -> None:
    with pytest.raises(UserError, match=r"needs a --views\.small-size below --views\.global-size 32, got 32"):
        resolve({"model": {"patch_size": 32}}, recipe="vit-small-data").views.check()


@pytest.mark.parametrize(("epochs", "warm_up"), [(100, 10.0), (60, 10.0), (50, 10.0), (40, 8.0), (1, 0.2), (200, 10.0)])
def test_a_warm_up_is_kept_up_to_a_fifth_of_a_short_run(
    of_100_epochs: None, caplog: pytest.LogCaptureFixture, epochs: int, warm_up: float
) -> None:
    assert resolve({"epochs": epochs}, recipe="poa-vit-l").optimizer.warmup_epochs == pytest.approx(warm_up)
    assert ("optimizer.warmup_epochs" in caplog.text) == (warm_up < 10)


def test_a_warm_up_that_takes_more_than_a_fifth_is_shortened_in_proportion() -> None:
    assert of_epochs("optimizer.warmup_epochs", 30, before=60, now=20) == 10
    assert of_epochs("optimizer.warmup_epochs", 5, before=10, now=20) == 10
    assert of_epochs("optimizer.cooldown_epochs", 5, before=10, now=2) == 1


def test_another_length_of_settings_keeps_the_warm_up_likewise() -> None:
    config = resolve(recipe="vit-small-data")
    short, longer = of_length(config, 6), of_length(config, 60)
    assert (short.epochs, short.optimizer.warmup_epochs, short.views.small_epochs) == (6, 1.2, 5.4)
    assert (longer.epochs, longer.optimizer.warmup_epochs, longer.views.small_epochs) == (60, 4.0, 54.0)


def test_a_slow_start_is_shortened_too() -> None:
    assert resolve({"epochs": 9}, recipe="demo-slimclr-mocov2").slim.slow_start_epochs == 2.0


def test_defaults_and_files_of_the_user_are_made_for_no_length(tmp_path: Path) -> None:
    assert counted(resolve({"epochs": 3})) == counted(Config())
    file = tmp_path / "mine.yaml"
    file.write_text("epochs: 100")
    assert counted(resolve({"epochs": 3}, file=file)) == counted(Config())


def test_settings_in_epochs_are_all_there_are() -> None:
    """A new setting in epochs has to be listed, unless it says how often something is done that alters nothing."""
    named = {
        f"{section}.{name}"
        for section, kind in Config.model_fields.items()
        for name in getattr(kind.annotation, "model_fields", {})
        if "epoch" in name
    }
    often = {"saving.every_epochs", "saving.keep_every_epochs", "monitor.every_epochs"}
    assert named - often == set(IN_EPOCHS)


def test_one_source_of_images_is_a_text_and_several_are_a_list(tmp_path: Path) -> None:
    """In flags, arguments and files; a file with one name reads as it always did."""
    (tmp_path / "one.yaml").write_text("data: a\n")
    (tmp_path / "two.yaml").write_text("data: [a, b.zip]\n")
    one, two = (resolve(file=tmp_path / name) for name in ("one.yaml", "two.yaml"))
    assert (one.data, two.data) == ("a", ("a", "b.zip"))
    assert resolve({"data": ["a"]}) == one
    assert resolve({"data": ["a", "b.zip"]}) == two
    assert [config.model_dump(mode="json")["data"] for config in (one, two)] == ["a", ["a", "b.zip"]]
