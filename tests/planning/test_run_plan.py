"""Plans of runs, whose steps are not measured here but given."""

import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import poa
from poa import distributed
from poa.config.pretraining import Config
from poa.config.resolve import of_run, resolve, to_yaml
from poa.errors import UserError
from poa.planning import run_plan as planning
from poa.planning.expectation import expectation, nearest_run
from poa.planning.facts import ImageFacts, MachineFacts
from poa.planning.notes import notes_of
from poa.planning.run_plan import RunPlan, make_plan
from poa.pretraining.dry_run import Measured
from poa.training.health import MemoryRanOut

MACHINE = MachineFacts("cpu", 10**9, 2)


class Steps:
    """Measures nothing: a step takes a second at 32 pixels, and a pass megabytes for each image."""

    def __init__(self, seconds: float = 1.0, megabytes: float = 1.0) -> None:
        self.seconds, self.megabytes = seconds, megabytes
        self.sides: list[int] = []

    def measure(self, config: Config, *, console: Console, num_steps: int) -> Measured:
        assert num_steps == planning.MEASURED_STEPS
        assert config.out == ""
        self.sides.append(config.views.global_size)
        used = self.megabytes * 1e6 * config.batch_size / config.accumulate
        if used > 2e9:
            raise MemoryRanOut("Memory ran out.")
        seconds = self.seconds * (config.views.global_size / 32) ** 2
        return Measured(
            config.limit or 1352,
            12,
            10**6,
            16 * 10**6,
            (config.limit or 1352) // config.batch_size,
            0,
            seconds,
            0.0,
            seconds,
            int(used),
            "of it",
        )


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    found = Steps()
    monkeypatch.setattr(planning, "measure", lambda *given, **named: found.measure(*given, **named))
    monkeypatch.setattr(planning, "machine_of", lambda *_, **__: MACHINE)
    return found


def planned(given: dict[str, Any] | None = None, **named: Any) -> RunPlan:
    return make_plan({"data": "digits/train", **(given or {})}, console=Console(quiet=True), **named)


def test_a_plan_without_wishes(steps: Steps) -> None:
    found = planned()
    assert found.start is not None
    assert found.start.recipe == "demo"
    assert (found.config.views.global_size, found.config.epochs) == (16, 48)
    assert (found.config.data, found.config.monitor.data) == ("digits/train", None)
    assert {each.setting for each in found.decisions} > {"epochs", "views.mean", "saving.every_epochs"}
    assert found.forecast.num_steps == 48 * 21
    rows = found.rows()
    assert rows[0] == ("images", found.images.line())
    assert {"recipe", "speed", "memory", "time", "disk", "expected"} <= {name for name, _ in rows}
    assert "note" not in {name for name, _ in rows}, "of what a plan chose itself, the reasons tell"
    assert re.search(
        r"^--views.mean 0.304 .* --views.std 0.37.*: that of 104 of the images$", found.text(), re.MULTILINE
    )


def test_what_is_given_is_kept(steps: Steps) -> None:
    given = {"epochs": 3, "batch_size": 16, "model": {"name": "vit"}, "views": {"flip": 0.5, "global_size": 48}}
    found = planned(given)
    assert found.start is not None
    assert found.start.recipe == "vit-small-data"
    assert (found.config.epochs, found.config.batch_size) == (3, 16)
    assert (found.config.views.flip, found.config.views.global_size, found.config.views.small_size) == (0.5, 48, 32)
    assert found.config.optimizer.warmup_epochs == 0.6  # a fifth of the run
    assert not {each.setting for each in found.decisions} & {"epochs", "batch_size", "views.flip", "views.global_size"}


def test_small_crops_are_measured_too(steps: Steps, capsys: pytest.CaptureFixture[str]) -> None:
    views = {"global_size": 32, "small_size": 24, "small_epochs": 1}
    make_plan({"data": "digits/train", "views": views}, console=Console(width=200))
    assert "Training 7 steps each on crops of 24 and 32 pixels to measure them ..." in capsys.readouterr().out


def test_a_network_that_is_named_decides_on_its_crops(steps: Steps) -> None:
    found = planned({"model": {"name": "vit_tiny_patch16_224"}})
    assert found.config.views.global_size == 32
    assert found.config.model.width_max is None, "of the recipe's network nothing is left"
    views = {"global_size": 48, "num_locals": 2}
    assert planned({"model": {"name": "vit_tiny_patch16_224"}, "views": views}).config.views.local_size == 32
    assert planned({"model": {"name": "vit"}, "views": views}).config.views.local_size == 24, "three patches of 8"
    with pytest.raises(UserError, match="not a multiple of the patch size 16"):
        planned({"model": {"name": "vit_tiny_patch16_224"}, "views": {"global_size": 40}})


def test_small_images_take_a_vit_however_long_the_run(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    many = ImageFacts(10_000, 48, 32, 32**2, False, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    monkeypatch.setattr(planning, "images_of", lambda *_: many)

    def recipe(given: dict[str, Any] | None = None, **named: Any) -> str:
        found = planned(given, **named)
        assert found.start is not None
        assert found.start.recipe.startswith(found.config.model.name)
        return found.start.recipe

    assert {recipe(), recipe(hours=0.1), recipe(hours=10), recipe(steps=100), recipe({"epochs": 300})} == {
        "vit-small-data"
    }
    assert steps.sides == 5 * [32], "each plan measures once"
    assert recipe({"model": {"name": "convnext"}}, hours=1) == "convnext-small-data"


def test_hours_and_steps_become_epochs(steps: Steps) -> None:
    an_hour = planned(hours=1)
    assert an_hour.config.epochs == int(0.9 * 3600 * 4) // 21
    assert "--epochs 617: so that the run takes about 1 hour, by the time of some steps\n" in an_hour.text()
    assert planned(steps=210).config.epochs == 10
    assert planned(steps=21).config.limit is None
    few = planned(steps=3)
    assert (few.config.epochs, few.config.limit, few.forecast.num_steps) == (1, 192, 3)
    assert "--limit 192: there is time for 3 steps, and 21 would be needed to see all images once\n" in few.text()
    assert "note: 3 steps are few" in few.text()
    assert planned({"limit": 640}, steps=3).config.limit == 640, "what is given is kept"
    assert planned(recipe="demo", steps=3).config.limit == 192
    short = planned(recipe="demo", steps=210)
    assert (short.config.epochs, short.start, short.decisions[0].setting) == (10, None, "epochs")
    assert short.config.optimizer.warmup_epochs == 2, "as with --epochs 10"
    assert planned(recipe="demo").decisions == ()


def test_crops_become_smaller_where_time_is_short(monkeypatch: pytest.MonkeyPatch, steps: Steps) -> None:
    large = ImageFacts(1352, 48, 200, 40_000, False, (0.5,) * 3, (0.2,) * 3)
    monkeypatch.setattr(planning, "images_of", lambda *_: large)
    steps.seconds = 0.5
    assert planned(hours=10).config.views.global_size == 96
    found = planned(hours=0.5)
    assert found.config.views.global_size == 64
    crop = next(each for each in found.decisions if each.setting == "views.global_size")
    assert crop.reason == "in 0.5 hours there is time for only 360 steps on crops of 96 pixels"
    assert planned(hours=0.001).config.views.global_size == 32
    assert planned({"views": {"global_size": 64}}, hours=0.001).config.views.global_size == 64
    assert steps.sides == [96, 96, 64, 96, 32, 64]


def test_batches_are_split_until_they_fit(steps: Steps) -> None:
    steps.megabytes = 20.0
    found = planned()
    assert found.config.accumulate == 2
    assert "--accumulate 2: passes of 64 images need more than 80% of the memory\n" in found.text()
    assert planned({"accumulate": 1}).config.accumulate == 1, "what is given is kept"
    steps.megabytes = 40.0
    assert planned().config.accumulate == 4
    steps.megabytes = 200.0
    with pytest.raises(MemoryRanOut):
        planned()


def test_wrong_wishes(tmp_path: Path, steps: Steps) -> None:
    for named, message in (
        ({"hours": 0.0}, "--hours must be above 0, got 0"),
        ({"hours": float("nan")}, "--hours must be above 0"),
        ({"steps": 0}, "--steps must be at least 1, got 0"),
        ({"hours": 1.0, "steps": 5}, "--hours and --steps say how long the run is. Give one"),
        ({"hours": 1.0, "given": {"epochs": 5}}, "--hours and --epochs"),
        ({"given": {"data": ""}}, "--data is required"),
        ({"given": {"out": str(tmp_path)}}, "already exists and is not an empty folder"),
    ):
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match=message):
            planned(**named)
    assert steps.sides == []


def test_a_plan_trains_as_it_says(monkeypatch: pytest.MonkeyPatch, steps: Steps) -> None:
    trained: list[Any] = []
    monkeypatch.setattr(planning.launch, "train", lambda config, plan: trained.append((config, plan)))
    found = poa.plan(data="digits/train", out="planned", steps=42)
    found.train()
    assert trained == [(found.config, found.text())]
    assert found.config.epochs == 2


def test_a_plan_is_made_by_the_main_process(monkeypatch: pytest.MonkeyPatch, steps: Steps) -> None:
    monkeypatch.setattr(distributed, "from_main", lambda make: "of the main process")
    assert planned() == "of the main process"
    assert steps.sides == []


def test_notes() -> None:
    def found(crop: int, side: int, num_steps: int) -> list[str]:
        images = ImageFacts(1, 1, side, side**2, False, (0.5,) * 3, (0.2,) * 3)
        notes = notes_of(config(crop), images, num_steps=num_steps, chosen_crops=False)
        assert not [*notes_of(config(crop), images, num_steps=300, chosen_crops=True)]
        return [each.split(",")[0].split(":")[0] for each in notes]

    def config(crop: int) -> Config:
        return Config.model_validate({"views": {"global_size": crop}})

    assert found(32, 40, 300) == []
    assert found(32, 40, 299) == ["299 steps are few"]
    assert found(48, 40, 300) == ["Crops of 48 pixels are larger than the images"]
    assert found(48, 192, 300) == ["The images' shorter side is 192 pixels"]


@pytest.mark.parametrize(
    ("recipe", "over", "told"),
    [
        ("resnet-small-data", {}, True),
        ("convnext-small-data", {"method": "single"}, True),
        ("convnext-small-data", {"distill": {"teacher": "runs/vit"}}, False),
        ("convnext-small-data", {"init": "runs/convnext"}, False),
        ("convnext-small-data", {"losses": {"kind": "prototypes"}}, False),
        ("distill-resnet-small-data", {"distill": {"teacher": "runs/vit"}}, False),
        ("vit-small-data", {}, False),
        ("swin-small-data", {}, False),
    ],
)
def test_a_vit_is_advised_as_teacher(recipe: str, over: dict[str, Any], told: bool) -> None:
    images = ImageFacts(1, 1, 32, 1024, False, (0.5,) * 3, (0.2,) * 3)
    notes = notes_of(resolve(over, recipe=recipe), images, num_steps=300, chosen_crops=True)
    assert [note.startswith("With no more time") and "--distill.teacher RUN" in note for note in notes] == [True] * told


def test_the_nearest_run_of_ours() -> None:
    assert nearest_run(family="vit", number=1500, side=10, steps=900).images == "digits"
    assert nearest_run(family="convnext", number=10_000, side=32, steps=800).steps == 780
    assert nearest_run(family="dinov3", number=9000, side=200, steps=700).images == "Caltech-101"
    said = expectation(family="vit", number=9000, side=200, images_seen=45_000)
    assert "a ViT on 9,144 images of Caltech-101 (160 pixels)" in said
    assert "48.6 to 49.8 % by k-NN in 102 classes (28.4 to 30.0 % untrained)" in said
    assert "Yours has 9,000 images of 200 pixels and trains on 45,000." in said


def test_settings_of_a_plan_are_complete(tmp_path: Path, steps: Steps) -> None:
    found = planned().config
    (tmp_path / "config.yaml").write_text(to_yaml(found))
    assert of_run(tmp_path / "config.yaml") == found
