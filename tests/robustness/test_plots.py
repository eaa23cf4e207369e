"""Robustness as the user sees it: the command, its table, curves, and a sheet of all conditions."""

import json
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App
from PIL import Image

from pixel_features import SIZES, source
from poa.cli.evaluate import disturbances, robustness
from poa.errors import UserError
from poa.robustness import evaluate, plots
from poa.robustness.corruptions import CORRUPTIONS
from poa.robustness.plots import Panel, curves, robustness_table


def sides(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_panels_by_hand() -> None:
    scores = {"clean": 90.0, "corruptions": 1.0, "occlusion 0.1": 80.0, "occlusion 0.5": 40.0, "fog 1": 70.0}
    scores |= {"fog 5": 10.0, "brightness 1": 80.0, "brightness 5": 20.0}
    found = {panel.title: panel for panel in evaluate.panels({"32x1": scores})}
    assert list(found) == ["hidden cells", "weather"]
    assert found["hidden cells"].ticks == ("0", "0.1", "0.5")
    assert found["hidden cells"].values == {"32x1": (90.0, 80.0, 40.0)}
    assert found["weather"].values == {"32x1": (90.0, 75.0, 15.0)}
    with_backgrounds = {"a": {"clean": 90.0, "background own": 80.0, "background swapped": 60.0}}
    assert evaluate.panels(with_backgrounds)[0].values == {"a": (80.0, 60.0)}
    assert evaluate.panels({}) == []


@pytest.mark.parametrize("networks", [1, 30])
def test_curves(tmp_path: Path, networks: int) -> None:
    values = {f"{32 + each}x1": (90.0, 80.0 - each) for each in range(networks)}
    panels = [Panel(f"kind {number}", "severity", ("0", "1"), values) for number in range(4)]
    curves(panels, out=tmp_path / "new" / "curves.png", title="run $1 of_")
    assert sides(tmp_path / "new" / "curves.png")[0] > 800
    with pytest.raises(UserError, match="no scores to draw"):
        curves([], out=tmp_path / "none.png", title="")


def test_table_gives_the_place_of_groups_to_backgrounds() -> None:
    rows = {"32x1": {"clean": 90.04, "corruptions": 50.0, "noise": 1.0}, "48x1": {"clean": 80.0}}
    table = robustness_table(rows, {"32x1": {"clean": (88.0, 92.0)}})
    assert [column.header for column in table.columns] == ["size", "clean", "corrupt", "noise"]
    assert [[str(cell) for cell in column.cells] for column in table.columns[1:3]] == [
        ["90.0 ±2.0", "80.0"],
        ["50.0", "-"],
    ]
    rows["48x1"]["background own"] = 3.0
    assert [column.header for column in robustness_table(rows, {}).columns] == ["size", "clean", "corrupt", "own bg"]


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("poa.models.source.model_source", lambda *_, **__: source(tmp_path))
    app = App(name="poa", result_action="return_value")
    app.command(robustness)
    words = ["robustness", "runs/mine", "--train", "digits/train", "--test", "digits/test", "--limit", "40", "--k", "5"]
    words += ["--test-limit", "20"]
    app([*words, "--corruptions", "jpeg", "--severities", "1", "5", "--shuffle", "2"], exit_on_error=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["size", "clean", "corrupt", "digital", "hidden", "shuffle"]
    assert [line.split()[0] for line in lines[2:4]] == list(SIZES)
    assert all(len(line) <= 80 for line in lines[:4])
    assert lines[-2:] == [
        f"Scores: {tmp_path}/robustness/robustness.csv",
        f"Curves: {tmp_path}/robustness/robustness.png",
    ]
    assert sides(tmp_path / "robustness" / "robustness.png")[0] > 800
    scores = json.loads((tmp_path / "robustness/robustness.json").read_text())["scores"][SIZES[0]]
    assert [name for name in scores if name[-1].isdigit()] == [
        *(f"occlusion 0.{tenth}" for tenth in range(1, 10)),
        "shuffle 2x2",
        "jpeg 1",
        "jpeg 5",
    ]
    app([*words, "--kinds", "occlusion", "--occlusion", "0.5", "--name", "less"], exit_on_error=False)
    scores = json.loads((tmp_path / "less/robustness.json").read_text())["scores"][SIZES[0]]
    assert list(scores) == ["clean", "occlusion", "occlusion 0.5"]
    with pytest.raises(UserError, match="--shuffle is given, but --kinds does not include shuffle"):
        app([*words, "--kinds", "occlusion", "--shuffle", "2"], exit_on_error=False)


def test_sheet_of_all_conditions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app = App(name="poa", result_action="return_value")
    app.command(disturbances)
    out = tmp_path / "sheet.png"
    app(["disturbances", "--images", "digits/test", "--out", str(out), "--image-size", "16"], exit_on_error=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"Picture: {out}"
    assert {line.split()[0] for line in lines[2:-1]} == set(CORRUPTIONS)
    assert all(len(line) <= 80 for line in lines[:-1])
    assert sides(out)[1] > 1000


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out": "sheet.jpg"}, "--out must end in .png, got .*sheet.jpg"),
        ({"image_size": 1}, "--image-size must be at least 2, got 1"),
        ({"number": 445}, "--number must be from 0 to 444, got 445"),
    ],
)
def test_sheets_that_cannot_be(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    out = tmp_path / options.pop("out", "sheet.png")
    with pytest.raises(UserError, match=words):
        plots.show("digits/test", out=out, **options)
    bad = tmp_path / "images"
    bad.mkdir()
    (bad / "a.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"'a\.png' cannot be read"):
        plots.show(str(bad), out=tmp_path / "sheet.png")
