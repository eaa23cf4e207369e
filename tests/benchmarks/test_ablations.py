"""What each part adds: what is trained, and the table of differences, without training."""

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import poa
from poa.config.nested import flat
from poa.config.pretraining import Config
from poa.config.resolve import resolve

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WORDS = ["--train", "digits/train", "--test", "digits/test", "--images", "640", "--seeds", "2"]
SCORES = {"the-recipe": 40.0, "teacher": 45.0, "sandwich": 39.5, "prototypes": 30.0}
"""By the folder of the variant."""


class Bench:
    """The benchmark, with runs that end at once and scores that are known."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[Config] = []
        self.module = importlib.import_module("ablations")
        budget = importlib.import_module("budget")
        for each in (self.module, budget):
            monkeypatch.setattr(each, "one_thread", lambda: None)
        monkeypatch.setattr(budget, "step_seconds", lambda config, _: 0.9 if config.sampling == "sandwich" else 0.6)
        monkeypatch.setattr(poa, "pretrain", self.pretrain)
        monkeypatch.setattr(poa, "evaluate_knn", self.evaluate)

    def pretrain(self, *, recipe: str, resume: bool, **given: Any) -> Any:
        assert not resume
        config = resolve(given, recipe=recipe)
        Path(config.out).mkdir(parents=True)
        self.begun.append(config)
        number = config.limit or 1352
        return SimpleNamespace(step=config.epochs * (number // config.batch_size), config=config)

    @staticmethod
    def evaluate(run: Any, *, sizes: list[str], limit: int, **_: Any) -> dict[str, dict[str, float]]:
        assert limit == 640
        score = SCORES[Path(run.config.out).parent.name] + run.config.seed * 0.5
        return {size: {"top1@20": score + number} for number, size in enumerate(sizes)}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return Bench(monkeypatch)


def test_variants_differ_from_the_recipe_in_what_they_say(bench: Bench, tmp_path: Path) -> None:
    variants = ["the recipe", "sandwich", "prototypes"]
    assert bench.module.main([*WORDS, "--out", str(tmp_path), "--minutes", "0.1", "--variants", *variants]) == 0
    assert [(Path(run.out).parent.name, run.seed) for run in bench.begun] == [
        (name, seed) for name in ("the-recipe", "sandwich", "prototypes") for seed in (0, 1)
    ]
    base = flat(bench.begun[0].model_dump())
    changed = [
        {name: x for name, x in flat(run.model_dump()).items() if x != base[name] and name != "out"}
        for run in bench.begun[2::2]
    ]
    lengths = {"epochs", "saving.every_epochs", "monitor.every_epochs", "optimizer.warmup_epochs"}
    assert changed[0].pop("sampling") == "sandwich"
    assert changed[0].keys() <= lengths
    assert changed[1] == {"losses.kind": "prototypes"}
    assert bench.begun[0].limit == 640


def test_minutes_become_epochs_once_for_each_variant(bench: Bench, tmp_path: Path) -> None:
    """10 steps an epoch of 0.6 and 0.9 seconds: half a minute is 5 epochs, or 3."""
    bench.module.main([*WORDS, "--out", str(tmp_path), "--minutes", "0.5", "--variants", "the recipe", "sandwich"])
    assert [run.epochs for run in bench.begun] == [5, 5, 3, 3]


def test_the_teacher_is_trained_first_on_images_of_its_own(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--variants", "the recipe", "teacher", "--teacher-epochs", "2", "--minutes", "0.5"]
    assert bench.module.main([*WORDS, "--out", str(tmp_path), *more]) == 0
    teacher, *_, taught = bench.begun
    assert (teacher.method, teacher.limit, teacher.epochs) == ("single", None, 2)
    assert teacher.out == f"{tmp_path}/the-teacher"
    assert (taught.method, taught.limit, taught.distill.teacher) == ("distill", 640, teacher.out)
    assert taught.views.jitter_probability == 0
    lines = (tmp_path / "ablations.md").read_text().splitlines()
    assert lines[0].startswith("| run | epochs | CPU minutes | 24x2 | 40x2 | 48x4 | 24x2, difference |")
    assert lines[2].startswith("| the recipe | 5 | ")
    assert "| 40.2 ±3.2 | 41.2 ±3.2 | 42.2 ±3.2 |  |  |  |" in lines[2]
    assert lines[3].endswith("| +5.0 ±0.0 | +5.0 ±0.0 | +5.0 ±0.0 |")
    assert lines[5].startswith("The teacher took ")
    assert lines[3] in capsys.readouterr().out
