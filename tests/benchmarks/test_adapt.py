"""What each part of the recipes for trained weights adds: what is trained, and what is written of it."""

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import poa
from poa.config.resolve import resolve

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def adapt(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("adapt")
    for each in (module, importlib.import_module("budget")):
        monkeypatch.setattr(each, "one_thread", lambda: None)
    return module


def test_each_part_is_switched_off_alone(adapt: Any) -> None:
    runs = {
        name: resolve(adapt.nested(over) | {"epochs": 5}, recipe="demo") for name, over in adapt.variants(5).items()
    }
    assert tuple(runs) == adapt.RUNS
    whole = runs.pop("adapted")
    assert (whole.sampling, whole.distill.teacher, whole.optimizer.base_lr) == ("published", "init", 0.002)
    assert whole.optimizer.backbone_warmup_epochs == 1.5, "half as long a run as that of the recipe"
    assert runs.pop("from scratch") == resolve({"epochs": 5}, recipe="demo")
    for name, run in runs.items():
        ours, others = (adapt.flat(each.model_dump()) for each in (run, whole))
        path, value = adapt.OFF[name]
        assert {key: x for key, x in ours.items() if others[key] != x} == {path: value}


def test_all_are_trained_and_scored_and_a_stopped_run_is_told(
    adapt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without training: runs come to their last step at once."""
    begun: list[dict[str, Any]] = []

    def pretrain(recipe: str, **given: Any) -> Any:
        config = resolve({name: value for name, value in given.items() if name != "resume"}, recipe=recipe)
        Path(config.out).mkdir(parents=True)
        begun.append(given)
        sizes = ("128x6",) if config.method == "single" else ("64x3", "128x6")
        steps = config.epochs * (1352 // config.batch_size)
        return SimpleNamespace(step=steps, config=config, space=SimpleNamespace(sizes=sizes, intact="128x6"))

    def evaluate(_: Any, *, sizes: str, limit: int | None, **__: Any) -> dict[str, dict[str, float]]:
        assert limit == begun[-1]["limit"]
        return {size: {"top1@20": 50.0} for size in sizes.split(",")}

    monkeypatch.setattr(poa, "pretrain", pretrain)
    monkeypatch.setattr(poa, "evaluate_knn", evaluate)
    words = ["--train", "digits/train", "--test", "digits/test", "--out"]
    assert adapt.main([*words, str(tmp_path / "a")]) == 0
    original = str(tmp_path / "a" / "original")
    assert [run.get("init") for run in begun] == [None, original, None, *[original] * 4]
    assert {run["epochs"] for run in begun[1:]} == {10}
    lines = (tmp_path / "a" / "adapt.md").read_text().splitlines()
    assert lines[0] == "| run | CPU minutes | 64x3 | 96x5 | 128x6 |"
    assert lines[2].endswith("|  |  | 50.0 |")
    assert lines[3] == "| cut only |  | 50.0 | 50.0 | 50.0 |"
    assert [line.split(" | ")[0] for line in lines[4:6]] == ["| adapted", "| from scratch"]
    assert len(lines) == 10
    some = ["--images", "1300", "--runs", "from scratch", "adapted"]
    assert adapt.main([*words, str(tmp_path / "some"), *some]) == 0
    assert [(Path(run["out"]).name, run["limit"]) for run in begun[7:]] == [
        ("original", 1300),
        ("from-scratch", 1300),
        ("adapted", 1300),
    ]
    monkeypatch.setattr("budget.steps_per_epoch", lambda *_: 100)
    assert adapt.main([*words, str(tmp_path / "b")]) == 1
    assert "was stopped before its end" in capsys.readouterr().err
