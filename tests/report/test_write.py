"""A page of runs on disk: what is on it of their scores, costs, times, training and pictures."""

import json
import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import poa
import tiny
from poa import cli
from poa.choice.measured import Measured, Measurement, Setup, save
from poa.config.resolve import to_yaml
from poa.errors import UserError
from poa.evaluation.results import Results
from poa.models.source import model_source
from poa.pictures.draw import Drawn
from poa.pictures.page import Picture, Section
from poa.plots.tables import SizeRow
from poa.report import gather, write
from poa.report.curves import line
from poa.training.checkpoint import save_checkpoint

SETUP = Setup("A processor", "cpu", "torch", "2.11", 1, 1, 16)
TIME = Measurement(0.5, 0.6, 10, 2000.0, None, 5_000_000, 9, 9, "2026-01-01")
SETTINGS = {"test": "12 images 0", "ks": [20]}


def made(folder: Path, scores: dict[str, float], **settings: Any) -> str:
    """A run that was never trained, with some scores."""
    config = tiny.config(out=str(folder), data="some/data<>/train", heads={"prototypes": [16, 32]})
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    save_checkpoint(folder / "checkpoints", 8, {})
    rows = [{"step": step, "intact/global": 3.0, "elastic/global": 4.0, "lr": 0.1, "size": "32x2"} for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, {"step": 3, "rankme": 9}]))
    (folder / "eval" / "knn").mkdir(parents=True)
    results = Results(
        "knn",
        {"weights": "teacher at step 8", **SETTINGS, **settings},
        scores={size: {"top1@20": value} for size, value in scores.items()},
        intervals={size: {"top1@20": (value - 2, value + 2)} for size, value in scores.items()},
    )
    (folder / "eval" / "knn" / "knn.json").write_text(json.dumps(asdict(results)))
    return str(folder)


def shown(page: Path) -> dict[str, Any]:
    found = re.search(r'id="content">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    content: dict[str, Any] = json.loads(found[1])
    return content


def test_a_page_begins_with_a_score_of_trained_networks() -> None:
    row = SizeRow("16x1", 1, scores={"untrained top1@20": 3.0, "untrained top5@20": 9.0, "teacher top1@20": 5.0})
    assert gather._scores_of([row]) == ["teacher top1@20", "untrained top1@20", "untrained top5@20"]


def draw(sources: Any, images: str, *, out: Path, **options: Any) -> Drawn:
    """In place of pictures of networks."""
    assert (len(sources), images, options["sizes"], options["kinds"]) == (1, "photos", "32x2", ("colours",))
    out.mkdir()
    Image.new("RGB", (2, 2)).save(out / "a.png")
    return Drawn(out / "index.html", [Section("colours", "Colours", "How", ["no"], [Picture("a.png", "a <b>")])])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report") / "it's <i>mine"
    name = made(folder, {"32x2": 60.0, "64x3": 70.0})
    save(model_source(name), Measured(SETUP, {"32x2": TIME}))
    (folder / "models" / "32x2").mkdir(parents=True)
    (folder / "models" / "32x2" / "README.md").write_text("# 32x2 <b>")
    return name


@pytest.fixture(scope="module")
def content(run: str) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "draw", draw)
        page = write.write_report([run], images="photos", sizes="32x2", kinds=("colours",))
    assert page == Path(run, "report.html")
    assert "<h1>POA on data&lt;&gt;/train: 6 sizes</h1>" in page.read_text(), "the last two parts of the path"
    return shown(page)


def test_sizes_with_costs_scores_times_blocks_and_cards(content: dict[str, Any]) -> None:
    points = {point["name"]: point for point in content["points"]}
    assert list(points) == ["32x2", "32x3", "48x2", "48x3", "64x2", "64x3"]
    small, whole = points["32x2"], points["64x3"]
    assert small["scores"] == {"top1@20": 60.0}
    assert small["intervals"] == {"top1@20": [58.0, 62.0]}
    assert small["costs"]["ms 0"] == 0.5
    assert "ms 0" not in whole["costs"]
    assert small["costs"]["mb"] == pytest.approx(4 * small["costs"]["parameters"], rel=1e-3)
    assert 0 < small["costs"]["gmacs"] < whole["costs"]["gmacs"]
    assert small["blocks"] == [{"all": 3, "kept": [0, 2]}]
    assert whole["intact"]
    assert (small["card"], whole["card"]) == ("# 32x2 <b>", "")
    assert content["notes"] == ["ms: median time of a batch, torch 2.11, A processor, 1 thread, batch 1."]


def test_curves_with_the_mark_of_a_collapse(content: dict[str, Any]) -> None:
    curves = {curve["title"]: curve for curve in content["curves"]}
    assert list(curves) == ["Loss: global", "RankMe", "Learning rate"]
    assert curves["Loss: global"]["mark"]["value"] == pytest.approx(3.119, abs=1e-3)  # mean of ln 16 and ln 32
    assert curves["Loss: global"]["lines"][1] == {"name": "elastic", "steps": [1, 2], "values": [4.0, 4.0]}
    assert curves["RankMe"]["mark"] is None
    long = line("a", list(range(1001)), [float(step) for step in range(1001)])
    assert len(long.steps) == 167
    assert (long.values[0], long.steps[0], long.values[-1]) == (2.5, 2, 998.0)


def test_commands_are_commands(run: str, content: dict[str, Any]) -> None:
    """Those for a shell are parsed as the user's would be."""
    lines = ["32x2".join(command["parts"]) for command in content["subjects"][0]["commands"]]
    words = [shlex.split(line) for line in lines if line.startswith("poa ")]
    assert len(words) >= 3
    for _, *rest in words:
        cli.app.parse_args(rest, exit_on_error=False, print_error=False)
        assert run in rest
        assert "32x2" in rest
    assert any("models/32x2" in line for line in lines if line.startswith("timm.create_model("))


def test_pictures_are_inside(content: dict[str, Any]) -> None:
    (section,) = content["pictures"]
    assert (section["title"], section["notes"]) == ("Colours", ["no"])
    assert section["pictures"][0]["image"].startswith("data:image/png;base64,iVBOR")
    assert section["pictures"][0]["caption"] == "a <b>"


def test_other_subjects_are_told_apart_and_not_compared_by_other_images(run: str, tmp_path: Path) -> None:
    other, out = made(tmp_path / Path(run).name, {"32x2": 50.0}, test="13 images 1"), tmp_path / "new" / "both.html"
    save(model_source(other), Measured(SETUP, dict.fromkeys(["32x2", "32x3", "48x2", "48x3", "64x2", "64x3"], TIME)))
    assert poa.write_report(run, poa.load(other, checkpoint=8), out=out) == out
    content = shown(out)
    first, second = (subject["name"] for subject in content["subjects"])
    assert first == "/".join(Path(run).parts[-2:])
    assert second == "/".join(Path(other).parts[-2:])
    steps = [subject["commands"][0]["parts"][1] for subject in content["subjects"]]
    assert steps == ["", " --checkpoint 8"], "of the run that was opened at a step"
    assert {point["subject"] for point in content["points"]} == {0, 1}
    files = {point["costs"]["mb"] for point in content["points"] if point["subject"] == 1}
    assert files == {5.0}, "as measured; of the first subject not all sizes are"
    assert content["notes"][1] == (
        f"top1@20: that of {second} was taken on other images or with other settings than that of {first}. "
        "They cannot be compared."
    )
    newer = Measured(replace(SETUP, runtime="onnx"), {"32x2": replace(TIME, date="2026-02-02")})
    save(model_source(other), newer)  # one network alone: its times do not come first
    notes = shown(poa.write_report(other, out=out))["notes"]
    assert [note.split(":")[0].split(", ")[1] for note in notes[:2]] == ["torch 2.11", "onnx 2.11"]


def test_bad_input(run: str, tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(UserError, match=r"ends in .html, got page.txt"):
        poa.write_report(Path(run), out=Path("page.txt"))
    for given, out, message in [
        ([], None, "No network is named. Give the folder of a run"),
        ([run, run], None, "named twice"),
        ([run], tmp_path / "page.pdf", r"ends in .html, got .*page.pdf. Choose a name such as report.html"),
        ([run], tmp_path / "folder.html", "is a file"),
        (["nothing-like-it"], None, "nothing-like-it"),
    ]:
        with pytest.raises(UserError, match=message):
            write.write_report(given, out=out)
    with pytest.raises(UserError, match="no checkpoint of step 9"):
        write.write_report([run], checkpoint=9)
