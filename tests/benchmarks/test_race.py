"""The race and the search: what is trained for how long, what is written, and that a second start has nothing left."""

import csv
import importlib
import json
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from poa.config.resolve import resolve
from poa.models.registry import family_of

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = {"model": {"widths": [32, 64], "depth_min": 1, "depth_max": 1}, "heads": {"hidden": 16}, "batch_size": 16}


@pytest.fixture
def benchmark_modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    names = ("budget", "race", "race_rivals", "search")
    modules = types.SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    monkeypatch.setattr(modules.budget, "TIMED", 1)
    monkeypatch.setattr(modules.budget, "WARM", 0)
    monkeypatch.setattr(modules.budget, "one_thread", lambda: None)
    monkeypatch.setattr(modules.race_rivals, "one_thread", lambda: None)
    return modules


def test_epochs_fill_the_budget_by_the_cost_of_steps_all_over_a_run(benchmark_modules: Any) -> None:
    budget = benchmark_modules.budget
    assert budget.epochs_within(5, seconds=0.5, steps=60) == 10
    assert budget.epochs_within(0.01, seconds=5, steps=60) == 1
    budget.TIMED, budget.WARM = 4, 2
    steps: list[int] = []
    assert budget.cpu_seconds(steps.append, num_steps=80) >= 0
    assert steps == [10, 30, 10, 30, 50, 70]


def test_plain_networks_are_as_large_as_the_sizes_of_a_recipe(
    benchmark_modules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    race = benchmark_modules.race
    monkeypatch.setattr(race, "is_possible", lambda _: True)
    monkeypatch.setattr(race, "WIDTHS", (8, 16, 24))
    monkeypatch.setattr(race, "BLOCKS", race.BLOCKS[:2])
    (elastic,) = race.trainings_of("poa-vit", "vit-small-data")
    wanted = [race.num_parameters("vit-small-data", size) for size in elastic.sizes.values()]
    dino = race.trainings_of("lightly-dino", "vit-small-data")
    mocov2 = race.trainings_of("mocov2", "vit-small-data")
    assert [training.rival for training in (elastic, *dino, *mocov2)] == [None, *["dino"] * 3, *[None] * 3]
    for training, parameters in zip((*dino, *mocov2), (*wanted, *wanted), strict=True):
        config = resolve(training.given, recipe=training.recipe)
        (size,) = family_of(config).space.sizes
        assert list(training.sizes.values()) == [size]
        ratio = race.count(family_of(config), size) / parameters
        assert ratio == 1 if training.rival else 0.8 < ratio < 1.1  # widths come in eights, and the smallest is one
    assert config.method == "slimclr-mocov2"
    assert config.slim.head_norm


def test_an_entry_whose_package_is_missing_is_refused(
    benchmark_modules: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark_modules.race_rivals, "is_installed", lambda: False)
    command = ["--train", "digits/train", "--test", "digits/test", "--out", "out", "--entries", "lightly-dino"]
    assert benchmark_modules.race.main(command) == 1
    assert "pip install lightly" in capsys.readouterr().err


def test_a_race_is_run_once_and_drawn(
    benchmark_modules: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    race = benchmark_modules.race
    with_lightly(monkeypatch)
    demo = resolve(TINY, recipe="demo")
    sizes = family_of(demo).space.sizes
    of_demo = dict(zip(race.PLACES, (sizes[0], sizes[0], sizes[-1]), strict=True))
    plain = {"model": {"widths": [32], "depth_min": 1, "depth_max": 1}, "batch_size": 16}
    small = dict(list(of_demo.items())[:1])
    trainings = {
        "poa-vit": [race.Training("poa-vit", of_demo, "demo", TINY)],
        "lightly-simclr": [race.Training("lightly-simclr", small, "demo", plain, "simclr")],
        "lightly-dino": [race.Training("lightly-dino", small, "demo", {**plain, "views": {"num_locals": 2}}, "dino")],
    }
    monkeypatch.setattr(race, "trainings_of", lambda entry, _: trainings[entry])
    train, test = benchmark_modules.search.divided("digits/train", tmp_path / "images", images=32, held_out=40)
    command = ["--train", train, "--test", test, "--out", str(tmp_path / "out"), "--images", "32"]
    command += ["--minutes", "0.0001", "--entries", *trainings]
    assert race.main(command) == 0
    files = sorted((tmp_path / "out" / "results").iterdir())
    rows = {row["entry"]: row for row in (json.loads(file.read_text()) for file in files)}
    assert rows.keys() == trainings.keys()
    for row in rows.values():
        assert row["epochs"] == 1
        assert row["minutes"] > 0
        assert all(0 <= size["knn"] <= 100 for size in row["sizes"].values())
    assert rows["poa-vit"]["sizes"].keys() == set(race.PLACES)
    assert rows["lightly-dino"]["sizes"]["smallest"]["parameters"] == race.count(family_of(demo), sizes[0])
    assert "| lightly-dino | 0.0001 (" in (tmp_path / "out" / "race.md").read_text()
    assert (tmp_path / "out" / "race.png").stat().st_size > 0
    monkeypatch.setattr(race, "pretrain_within", None)
    monkeypatch.setattr(benchmark_modules.race_rivals, "train_rival", None)
    capsys.readouterr()
    assert race.main(command) == 0
    assert (tmp_path / "out" / "race.md").read_text() in capsys.readouterr().out


def with_lightly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the parts of lightly that are used into the place of the package."""

    class Head(nn.Linear):
        def __init__(self, inputs: int, hidden: int = 0, outputs: int = 8, **_: int) -> None:
            super().__init__(inputs, outputs)

        def cancel_last_layer_gradients(self, current_epoch: int) -> None:
            assert current_epoch in (0, 1)

    class Contrast(nn.Module):
        def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            return (first - second).square().mean()

    class Dino(nn.Module):
        def __init__(self, output_dim: int) -> None:
            super().__init__()

        def forward(self, targets: list[torch.Tensor], outputs: list[torch.Tensor]) -> torch.Tensor:
            assert (len(targets), len(outputs)) == (2, 4)
            assert not targets[0].requires_grad
            return (torch.stack(outputs).mean(0) - targets[0]).square().mean()

    def update_momentum(student: nn.Module, teacher: nn.Module, m: float) -> None:
        assert 0.95 <= m <= 1

    parts = {
        "lightly": {},
        "lightly.loss": {"NTXentLoss": Contrast, "DINOLoss": Dino},
        "lightly.models": {},
        "lightly.models.modules": {},
        "lightly.models.modules.heads": {"SimCLRProjectionHead": Head, "DINOProjectionHead": Head},
        "lightly.models.utils": {"update_momentum": update_momentum},
    }
    for name, members in parts.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)


# ---- the search ------------------------------------------------------------------------------------------------------


class First:
    """Suggests the low end, and the last of some values."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return low

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return choices[-1]


def test_every_suggestion_is_a_setting_of_every_recipe(benchmark_modules: Any) -> None:
    search = benchmark_modules.search
    for recipe in ("convnext-small-data", "vit-small-data", "resnet-small-data"):
        values = search.suggested(First(), recipe)
        assert values.keys() == search.SPACE.keys()
        config = resolve(search.settings_of(values, recipe), recipe=recipe)
        assert config.losses.kind == "coding-rate"
        assert config.losses.rate == 0.1
        assert config.views.global_scale == (0.1, 1.0)
        assert config.views.jitter == (0, 0, 0, 0)
        assert config.optimizer.weight_decay == (0.01, 0.01)
        assert (config.optimizer.teacher_momentum[0], config.sampling, config.batch_size) == (0.996, "sandwich", 256)
        assert (config.heads.layers, config.heads.bottleneck) == (3, 512)
    of_prototypes = search.suggested(First(), "vit-224").keys()
    assert search.SPACE.keys() - of_prototypes == {"losses.rate", "losses.distortion"}


def test_tables_and_settings_are_read_back(benchmark_modules: Any) -> None:
    search = benchmark_modules.search
    row = {"trial": 3, "state": "COMPLETE", "score": 41.0, "smallest": 40.0, "largest": 42.0, "epochs": 7}
    row |= {"minutes": 4.0, "batch_size": 64, "views.num_locals": 2}
    (read,) = csv.DictReader(search.as_csv([row]).splitlines())
    assert (read["trial"], read["score"], read["batch_size"], read["losses.rate"]) == ("3", "41.0", "64", "")
    settings = search.settings_of({"batch_size": 64, "views.global_scale": 0.3}, "vit-small-data")
    text = search.as_yaml(row, "vit-small-data", settings)
    expected = {"recipe": "vit-small-data", "epochs": 7, "batch_size": 64, "views": {"global_scale": [0.3, 1.0]}}
    assert yaml.safe_load(text) == expected


def test_no_image_is_both_trained_on_and_held_out(benchmark_modules: Any, tmp_path: Path) -> None:
    search = benchmark_modules.search
    files = search.divided("digits/train", tmp_path, images=40, held_out=20)
    assert search.divided("digits/train", tmp_path, images=40, held_out=20) == files
    names = [zipfile.ZipFile(file).namelist() for file in files]
    assert [len(each) for each in names] == [40, 20]
    assert not set(names[0]) & set(names[1])
    for each in names:
        per_class = [sum(name.startswith(f"{label:04d}/") for name in each) for label in range(10)]
        assert max(per_class) == min(per_class)
    with pytest.raises(search.UserError, match="fewer than --images"):
        search.divided("digits/train", tmp_path, images=5000, held_out=20)
