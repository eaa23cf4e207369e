import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cyclopts import App
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from poa import disturbed, robustness
from poa.commands import robustness as commands
from poa.data.augment import normalise
from poa.data.index import ImageIndex, open_index
from poa.data.loader import images_for_scoring
from poa.elastic.space import SearchSpace, Size
from poa.errors import UserError
from poa.evaluation import disturbed_images
from poa.evaluation.backgrounds import MaskedImages
from poa.evaluation.corruptions import CORRUPTIONS, corrupt
from poa.evaluation.disturbances import Robustness
from poa.evaluation.knn import knn_scores
from poa.evaluation.linear import linear_scores
from poa.evaluation.occlusion import hide, shuffle
from poa.evaluation.results import NotScored, Scores
from poa.families.base import Features
from poa.families.vit import ViT
from poa.report.robustness import Panel, curves, robustness_table
from poa.subjects import Subject

FAMILY = ViT(SearchSpace.grid((32, 48), (1,)), image_size=8, patch_size=4, head_dim=16, layer_scale=0.5)
SIZES = tuple(map(str, FAMILY.space.sizes))
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SETTINGS = Robustness(occlusion=(0.25, 0.5), shuffle=(2,), corruptions=("fog", "jpeg"), severities=(2, 5), k=5, seed=3)
CONDITIONS = ("clean", "occlusion 0.25", "occlusion 0.5", "shuffle 2x2", "fog 2", "fog 5", "jpeg 2", "jpeg 5")


class Seeing(nn.Module):
    """A network whose features also hold the pixels, so that digits can be told apart without training."""

    def __init__(self, network: nn.Module, *, scale: float = 1.0, only_dark: bool = False) -> None:
        super().__init__()
        self.network, self.scale, self.only_dark = network, scale, only_dark

    def forward(self, images: Tensor) -> Features:
        cls, patches = self.network(images)
        rows = torch.cat([cls, images.flatten(1)], dim=1) * self.scale
        if self.only_dark:  # NaN for bright images
            rows = torch.where(images.mean((1, 2, 3), keepdim=False)[:, None] > 1.0, math.nan, rows)
        return Features(rows, patches)


def make_network(name: str, **options: Any) -> nn.Module:
    size = Size.parse(name)
    torch.manual_seed(size.width)
    return Seeing(FAMILY.build(size), **options).requires_grad_(False).eval()


def subject(out: Path, **over: Any) -> Subject:
    defaults = {"name": "runs/mine", "names": SIZES, "network": make_network, "model": make_network, "weights": "w"}
    prepared = {"image_size": 8, "resize": 8, "mean": MEAN, "std": STD, "out": out, "family": FAMILY}
    return Subject(**{**defaults, **prepared, **over})


def evaluate(given: Subject, settings: Robustness = SETTINGS, **options: Any) -> Scores:
    usual = {"train": "digits/train", "test": "digits/test", "limit": 60, "test_limit": 30}
    return robustness.evaluate(given, settings, **{**usual, "console": Console(quiet=True), **options})


def crops(index: ImageIndex) -> Tensor:
    (batch,) = images_for_scoring(index, size=8, resize=8, batch_size=1000)
    return batch.images


def normal(images: Tensor) -> Tensor:
    return normalise(images, mean=MEAN, std=STD)


def sides(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_scores_are_those_of_each_condition_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disturbed_images, "_MOST", 7)
    monkeypatch.setattr(robustness, "ROWS", 16)
    found = evaluate(subject(tmp_path))
    train, test = open_index("digits/train", limit=60), open_index("digits/test", limit=30)
    images, numbers = crops(test), range(30)
    seen = {
        "clean": normal(images),
        "occlusion 0.5": hide(normal(images), share=0.5, grid=8, numbers=numbers, seed=3),
        "shuffle 2x2": normal(shuffle(images, grid=2, numbers=numbers, seed=3)),
        "jpeg 5": normal(corrupt(images, "jpeg", 5, numbers=numbers)),
        "fog 2": normal(corrupt(images, "fog", 2, numbers=numbers, seed=3)),
    }
    for size in SIZES:
        network = make_network(size)
        rows = network(normal(crops(train))).cls
        for condition, disturbed_ones in seen.items():
            labels = torch.from_numpy(train.labels()), torch.from_numpy(test.labels())
            wanted = knn_scores(rows, labels[0], network(disturbed_ones).cls, labels[1], ks=(5,), num_classes=10)
            assert found[size][condition] == pytest.approx(wanted.top1[5])
    assert found[SIZES[0]]["clean"] > found[SIZES[0]]["fog 5"]


def test_the_linear_judge_is_the_linear_protocol(tmp_path: Path) -> None:
    settings = Robustness(occlusion=(0.5,), shuffle=(), corruptions=(), judge="linear")
    found = evaluate(subject(tmp_path), settings, sizes=SIZES[0])[SIZES[0]]
    train, test = open_index("digits/train", limit=60), open_index("digits/test", limit=30)
    network = make_network(SIZES[0])
    hidden = hide(normal(crops(test)), share=0.5, grid=8, numbers=range(30))
    data = network(normal(crops(train))).cls, torch.from_numpy(train.labels())
    for name, images in (("clean", normal(crops(test))), ("occlusion 0.5", hidden)):
        tested = network(images).cls, torch.from_numpy(test.labels())
        assert found[name] == pytest.approx(linear_scores(*data, *tested, num_classes=10).top1)


def test_summary_by_hand() -> None:
    hits = {"clean": "1111", "occlusion 0.1": "1110", "occlusion 0.5": "1000", "shuffle 2x2": "1100"}
    hits |= {"fog 1": "1110", "fog 5": "0000", "jpeg 1": "1100", "jpeg 5": "1000", "background own": "11"}
    hits |= {"background swapped": "10"}
    found = robustness.outcome_of({name: torch.tensor([x == "1" for x in bits]) for name, bits in hits.items()})
    means = {"clean": 100, "corruptions": 37.5, "corruptions relative": 37.5, "occlusion": 50, "shuffle": 50}
    means |= {"weather": 37.5, "digital": 37.5, "fog 1": 75, "background own": 100, "background swapped": 50}
    assert {name: found.scores[name] for name in means} == means
    assert list(found.scores)[:3] == ["clean", "corruptions", "corruptions relative"]
    assert found.values["corruptions"].tolist() == [75, 50, 25, 0]
    assert found.details == {"background own": 2, "background swapped": 2}
    low, high = found.intervals()["corruptions"]
    assert low < 37.5 < high
    half = robustness.outcome_of({"clean": torch.tensor([True, False]), "fog 1": torch.tensor([False, True])})
    assert half.scores["corruptions relative"] == 100


def test_files(tmp_path: Path) -> None:
    found = evaluate(subject(tmp_path))
    path = robustness.results_file(subject(tmp_path))
    assert path == tmp_path / "robustness" / "robustness.json"
    assert robustness.results_file(subject(tmp_path, branch="untrained")).parent.name == "robustness-untrained"
    written = json.loads(path.read_text())
    assert written["scores"] == found
    assert set(CONDITIONS) < set(found[SIZES[0]])
    assert written["settings"]["grid"] == 8
    assert written["bad_images"] == {"train": 0, "test": 0}
    assert set(written["intervals"][SIZES[0]]) == set(found[SIZES[0]]) - {"corruptions relative"}
    lines = list(csv.DictReader(path.with_suffix(".csv").read_text().splitlines()))
    assert [line["size"] for line in lines] == list(SIZES)
    assert float(lines[1]["jpeg 5"]) == found[SIZES[1]]["jpeg 5"]
    assert sorted(each.name for each in path.parent.iterdir()) == ["robustness.csv", "robustness.json"]


def test_what_is_written_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robustness, "AT_ONCE", 1)
    built: list[str] = []

    def network(name: str) -> nn.Module:
        if name in built:
            raise KeyboardInterrupt
        built.append(name)
        return make_network(name)

    whole = evaluate(subject(tmp_path / "whole"))
    evaluate(subject(tmp_path / "out", network=network), sizes=SIZES[0])
    assert evaluate(subject(tmp_path / "out", network=network)) == whole
    assert built == list(SIZES)
    with pytest.raises(UserError, match=r"seed \(3 there, 0 now\).*--overwrite"):
        evaluate(subject(tmp_path / "out"), Robustness(occlusion=(), shuffle=(), corruptions=("fog",), k=5))


@pytest.mark.parametrize("options", [{"scale": math.nan}, {"only_dark": True}])
def test_a_network_that_cannot_be_judged_does_not_keep_others_from_it(tmp_path: Path, options: dict[str, Any]) -> None:
    def network(name: str) -> nn.Module:
        return make_network(name, **(options if name == SIZES[0] else {}))

    settings = Robustness(occlusion=(), shuffle=(), corruptions=("brightness",), severities=(5,), k=5)
    whole = evaluate(subject(tmp_path / "whole"), settings)
    told = f"1 of 2 networks could not be judged; the others are in .* {SIZES[0]}: .* NaN"
    with pytest.raises(NotScored, match=told) as caught:
        evaluate(subject(tmp_path / "out", network=network), settings)
    assert caught.value.results.scores == {SIZES[1]: whole[SIZES[1]]}


def pictures(root: Path, *, seed: int = 0, side: int = 12) -> str:
    """Two classes: a red or blue square on a background of the same kind of green."""
    generator = np.random.default_rng(seed)
    for name, channel in (("red", 0), ("blue", 2)):
        for folder in (root / "images" / name, root / "masks" / name):
            folder.mkdir(parents=True)
        for number in range(4):
            pixels = np.zeros((side, side, 3), np.uint8)
            pixels[..., 1] = generator.integers(100, 200)
            mask = np.zeros((side, side), np.uint8)
            top, left = generator.integers(0, side - 5, size=2)
            pixels[top : top + 5, left : left + 5, channel] = 255
            mask[top : top + 5, left : left + 5] = 1 + number
            Image.fromarray(pixels).save(root / "images" / name / f"{number}.png")
            Image.fromarray(mask).save(root / "masks" / name / f"{number}.png")
    return str(root / "images")


def test_swapped_backgrounds(tmp_path: Path) -> None:
    train, test = pictures(tmp_path / "train", seed=1), pictures(tmp_path / "test")
    Image.new("L", (12, 12)).save(tmp_path / "test" / "masks" / "red" / "3.png")  # shows no object
    settings = Robustness(occlusion=(), shuffle=(), corruptions=(), k=3)
    found = evaluate(
        subject(tmp_path), settings, train=train, test=test, masks=tmp_path / "test/masks", limit=None, test_limit=None
    )[SIZES[0]]
    assert list(found) == ["clean", "background own", "background swapped"]
    written = json.loads((tmp_path / "robustness" / "robustness.json").read_text())
    assert written["details"][SIZES[0]] == {"background own": 7, "background swapped": 7}
    Image.new("L", (12, 12), 1).save(tmp_path / "test" / "masks" / "red" / "3.png")
    with pytest.raises(UserError, match=r"masks \(\w+ there, \w+ now\)"):
        evaluate(
            subject(tmp_path),
            settings,
            train=train,
            test=test,
            masks=tmp_path / "test/masks",
            limit=None,
            test_limit=None,
        )


def masked(root: Path, **over: Any) -> MaskedImages:
    index = open_index(pictures(root))
    given = {"index": index, "labels": index.labels(), "folder": root / "masks", "size": 12, "resize": 12}
    return MaskedImages(**{**given, **over})


def test_backgrounds_are_of_another_class_and_always_the_same(tmp_path: Path) -> None:
    images = masked(tmp_path)
    for number in range(8):
        background, mask = images.background(number)
        own = images.mask(number)
        assert int(own.sum()) == 25
        assert torch.equal(background, images.background(number)[0])
        channel = 0 if images.labels[number] == 0 else 2  # blue comes first by name: the other class is red
        assert bool((background[channel] == 255).eq(mask).all())


@pytest.mark.parametrize("kind", ["palette", "alpha", "rgb"])
def test_kinds_of_masks(tmp_path: Path, kind: str) -> None:
    images = masked(tmp_path)
    values = np.zeros((12, 12), np.uint8)
    values[2:4, 5] = 1
    if kind == "palette":
        mask = Image.fromarray(values)
        mask.putpalette([255, 255, 255, 0, 0, 0])
    elif kind == "alpha":
        mask = Image.fromarray(np.dstack([values, np.full_like(values, 255)]), "LA")
    else:
        mask = Image.fromarray(np.dstack([values * 0, values, values * 0]))
    mask.save(images.path(0))
    assert images.mask(0).nonzero().tolist() == [[2, 5], [3, 5]]


def test_bad_masks(tmp_path: Path) -> None:
    images = masked(tmp_path)
    images.check()
    with pytest.raises(UserError, match=r"no folder .*nowhere of masks"):
        masked(tmp_path / "a", folder=tmp_path / "nowhere").check()
    with pytest.raises(UserError, match="of another class, but all"):
        masked(tmp_path / "b", labels=np.zeros(8, np.int64)).check()
    images.path(2).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"2\.png cannot be read"):
        images.mask(2)
    Image.new("L", (12, 10)).save(images.path(2))
    with pytest.raises(UserError, match=r"2\.png has 12 x 10 pixels, its image 12 x 12"):
        images.mask(2)
    images.path(3).unlink()
    with pytest.raises(UserError, match=r"1 of 8 test images have no mask in .*blue/3\.png"):
        images.check()
    for number in range(4, 8):
        Image.new("L", (12, 12), 1).save(images.path(number))
    with pytest.raises(UserError, match=r"No background was found for 'blue/0\.png'"):
        images.background(0)


def test_bad_images_are_left_out(tmp_path: Path) -> None:
    train, test = pictures(tmp_path / "train", seed=1), pictures(tmp_path / "test")
    (tmp_path / "test/images/red/1.png").write_bytes(b"damaged")
    settings = Robustness(occlusion=(0.5,), shuffle=(), corruptions=(), k=3)
    options: dict[str, Any] = {"train": train, "test": test, "limit": None, "test_limit": None, "sizes": SIZES[0]}
    evaluate(subject(tmp_path), settings, **options)
    assert json.loads((tmp_path / "robustness/robustness.json").read_text())["bad_images"] == {"train": 0, "test": 1}
    for path in (tmp_path / "test/images").glob("*/*.png"):
        path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"None of the test images .* could be read"):
        evaluate(subject(tmp_path / "none"), settings, **options)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"occlusion": (0.5, 1.0)}, "between 0 and 1, got 1"),
        ({"grid": 3}, "8 pixels cannot be cut into 3 x 3 .* Set --grid to one of 2, 4, 8"),
        ({"shuffle": (2, 5)}, "cut into 5 x 5 .* --shuffle"),
        ({"corruptions": ("rain",)}, "no corruption 'rain'"),
        ({"severities": (0,)}, "from 1 to 5, got 0"),
        ({"severities": ()}, "at least one severity"),
        ({"seed": -1}, "got -1"),
        ({"k": 61}, "k=61 is not possible"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        evaluate(subject(tmp_path), Robustness(**settings))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "a/b"}, "without slashes"),
        ({"sizes": "32x9"}, "32x9"),
        ({"masks": Path("nowhere")}, "no folder nowhere"),
        ({"train": "digits/test", "limit": 30}, "are the same"),
    ],
)
def test_wrong_requests(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        evaluate(subject(tmp_path), **options)
    assert not list(tmp_path.iterdir())


def test_usual_settings_suit_the_images() -> None:
    settled = Robustness(occlusion=(0.5, 0.1, 0.5)).settled(16)
    assert (settled.occlusion, settled.grid, settled.shuffle) == ((0.1, 0.5), 8, (2, 4, 8))
    assert Robustness().settled(224).shuffle == (2, 4, 8, 14)
    assert len(Robustness().settled(224).conditions()) == 1 + 9 + 4 + 5 * len(CORRUPTIONS)


def test_panels_by_hand() -> None:
    scores = {"clean": 90.0, "corruptions": 1.0, "occlusion 0.1": 80.0, "occlusion 0.5": 40.0, "fog 1": 70.0}
    scores |= {"fog 5": 10.0, "brightness 1": 80.0, "brightness 5": 20.0}
    found = {panel.title: panel for panel in robustness.panels({"32x1": scores})}
    assert list(found) == ["hidden cells", "weather"]
    assert found["hidden cells"].ticks == ("0", "0.1", "0.5")
    assert found["hidden cells"].values == {"32x1": (90.0, 80.0, 40.0)}
    assert found["weather"].values == {"32x1": (90.0, 75.0, 15.0)}
    with_backgrounds = {"a": {"clean": 90.0, "background own": 80.0, "background swapped": 60.0}}
    assert robustness.panels(with_backgrounds)[0].values == {"a": (80.0, 60.0)}
    assert robustness.panels({}) == []


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
    monkeypatch.setattr("poa.subjects.subject_of", lambda *_, **__: subject(tmp_path))
    app = App(name="poa", result_action="return_value")
    app.command(commands.robustness)
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
    with pytest.raises(UserError, match="--shuffle is given, but --kinds leaves it out"):
        app([*words, "--kinds", "occlusion", "--shuffle", "2"], exit_on_error=False)


def test_sheet_of_disturbances(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app = App(name="poa", result_action="return_value")
    app.command(commands.disturbances)
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
        ({"out": "sheet.jpg"}, "written as .png, got .*sheet.jpg"),
        ({"image_size": 1}, "got an --image-size of 1"),
        ({"number": 445}, "--number goes from 0 to 444, got 445"),
    ],
)
def test_sheets_that_cannot_be(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    out = tmp_path / options.pop("out", "sheet.png")
    with pytest.raises(UserError, match=words):
        disturbed.show("digits/test", out=out, **options)
    bad = tmp_path / "images"
    bad.mkdir()
    (bad / "a.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"'a\.png' cannot be read"):
        disturbed.show(str(bad), out=tmp_path / "sheet.png")
