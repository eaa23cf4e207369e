"""``poa plan``, and ``poa pretrain`` without a recipe. What is planned is tested in ``planning/``."""

from pathlib import Path

import pytest
import yaml

from command import poa
from poa.config.pretraining import Config
from poa.planning import run_plan as planning
from poa.pretraining.dry_run import Measured

DATA = ("--data", "digits/train", "--steps", "42")


@pytest.fixture(autouse=True)
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new folder; no steps are trained."""
    found = Measured(1352, 12, 10**6, 16 * 10**6, 21, 0, 0.1, 0.0, 0.1, 10**8, "of the process")
    monkeypatch.setattr(planning, "measure", lambda *_, **__: found)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("columns", "further", "also"),
    [("60", (), ""), ("120", ("--heads.hidden", "512"), ", and the other flags that you gave")],
)
def test_plan(
    at: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: str,
    further: tuple[str, ...],
    also: str,
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert poa("plan", *DATA, *further) == 0
    shown = capsys.readouterr()
    *rows, last = shown.out.splitlines()
    assert max(map(len, rows)) <= int(columns)
    words = " ".join(shown.out.split())
    for said in ("recipe demo: made for images", "640 images/s", "0:04 for 42 steps", "expected The nearest of our"):
        assert said in words
    assert last == f"To train as planned: poa pretrain --data digits/train --steps 42 --out FOLDER{also}"
    assert "Training 7 steps on crops of 16 pixels to measure them" in shown.err
    assert list(at.iterdir()) == []


def test_pretrain_without_a_recipe_is_planned(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[Config, str]] = []
    monkeypatch.setattr(planning.launch, "train", lambda config, resume, asked, plan: trained.append((config, plan)))
    assert poa("pretrain", *DATA, "--out", "new", "--heads.hidden", "32") == 0
    [(config, plan)] = trained
    assert (config.epochs, config.heads.hidden, config.out, config.monitor.data) == (2, 32, "new", None)
    assert "recipe: demo: " in plan
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "demo: " in shown.err


def test_a_planned_run_before_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    assert poa("pretrain", *DATA, "--print-config") == 0
    assert yaml.safe_load(capsys.readouterr().out)["epochs"] == 2
    assert poa("pretrain", *DATA, "--dry-run") == 0
    assert "--epochs 2" in capsys.readouterr().out
    assert poa("pretrain", *DATA, "--recipe", "demo", "--print-config") == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert (found["epochs"], found["batch_size"], found["model"]["name"]) == (2, 64, "vit")
    assert poa("pretrain", "--print-config") == 0
    assert yaml.safe_load(capsys.readouterr().out)["epochs"] == 346, "without images there is nothing to plan for"
