"""Scores under all conditions: those of each condition alone, by the same settings, of all networks there are."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evaluation.scored import scored
from pixel_features import MEAN, SIZES, STD, evaluate, make_network, pictures, source
from poa.data.augment import normalise
from poa.data.index import ImageIndex, open_index
from poa.data.loader import images_for_scoring
from poa.errors import UserError
from poa.evaluation.knn import Knn
from poa.evaluation.linear import Linear
from poa.evaluation.results import NotScored, results_file
from poa.robustness import conditions
from poa.robustness import evaluate as robustness
from poa.robustness.conditions import Robustness
from poa.robustness.corruptions import CORRUPTIONS, corrupt
from poa.robustness.occlusion import hide, shuffle

CONDITIONS = ("clean", "occlusion 0.25", "occlusion 0.5", "shuffle 2x2", "fog 2", "fog 5", "jpeg 2", "jpeg 5")


def crops(index: ImageIndex) -> Tensor:
    (batch,) = images_for_scoring(index, size=8, resize=8, batch_size=1000)
    return batch.images


def normal(images: Tensor) -> Tensor:
    return normalise(images, mean=MEAN, std=STD)


def test_scores_are_those_of_each_condition_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "_MOST", 7)
    monkeypatch.setattr(robustness, "ROWS", 16)
    found = evaluate(source(tmp_path))
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
        for condition, changed in seen.items():
            labels = torch.from_numpy(train.labels()), torch.from_numpy(test.labels())
            data = rows, labels[0], network(changed).cls, labels[1]
            wanted = scored(Knn(ks=(5,)), *data, num_classes=10).scores["top1@5"]
            assert found[size][condition] == pytest.approx(wanted)
    assert found[SIZES[0]]["clean"] > found[SIZES[0]]["fog 5"]


def test_the_linear_classifier_is_the_linear_protocol(tmp_path: Path) -> None:
    settings = Robustness(occlusion=(0.5,), shuffle=(), corruptions=(), judge="linear")
    found = evaluate(source(tmp_path), settings, sizes=SIZES[0])[SIZES[0]]
    train, test = open_index("digits/train", limit=60), open_index("digits/test", limit=30)
    network = make_network(SIZES[0])
    hidden = hide(normal(crops(test)), share=0.5, grid=8, numbers=range(30))
    data = network(normal(crops(train))).cls, torch.from_numpy(train.labels())
    for name, images in (("clean", normal(crops(test))), ("occlusion 0.5", hidden)):
        tested = network(images).cls, torch.from_numpy(test.labels())
        assert found[name] == pytest.approx(scored(Linear(), *data, *tested, num_classes=10).scores["top1"])


def test_summary_by_hand() -> None:
    hits = {"clean": "1111", "occlusion 0.1": "1110", "occlusion 0.5": "1000", "shuffle 2x2": "1100"}
    hits |= {"fog 1": "1110", "fog 5": "0000", "jpeg 1": "1100", "jpeg 5": "1000", "background own": "11"}
    hits |= {"background swapped": "10"}
    found = robustness.outcome_of({name: torch.tensor([x == "1" for x in bits]) for name, bits in hits.items()}, {})
    means = {"clean": 100, "corruptions": 37.5, "corruptions relative": 37.5, "occlusion": 50, "shuffle": 50}
    means |= {"weather": 37.5, "digital": 37.5, "fog 1": 75, "background own": 100, "background swapped": 50}
    assert {name: found.scores[name] for name in means} == means
    assert list(found.scores)[:3] == ["clean", "corruptions", "corruptions relative"]
    assert found.values["corruptions"].tolist() == [75, 50, 25, 0]
    assert found.details == {"background own": 2, "background swapped": 2}
    low, high = found.intervals()["corruptions"]
    assert low < 37.5 < high
    half = robustness.outcome_of({"clean": torch.tensor([True, False]), "fog 1": torch.tensor([False, True])}, {})
    assert half.scores["corruptions relative"] == 100


def test_files(tmp_path: Path) -> None:
    found = evaluate(source(tmp_path))
    path = results_file(source(tmp_path), "robustness")
    assert path == tmp_path / "robustness" / "robustness.json"
    assert results_file(source(tmp_path, branch="untrained"), "robustness").parent.name == "robustness-untrained"
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
    monkeypatch.setattr(robustness.RobustnessScorer, "at_once", 1)
    built: list[str] = []

    def network(name: str) -> nn.Module:
        if name in built:
            raise KeyboardInterrupt
        built.append(name)
        return make_network(name)

    whole = evaluate(source(tmp_path / "whole"))
    evaluate(source(tmp_path / "out", network=network), sizes=SIZES[0])
    assert evaluate(source(tmp_path / "out", network=network)) == whole
    assert built == list(SIZES)
    with pytest.raises(UserError, match=r"seed \(3 before, 0 now\).*--overwrite"):
        evaluate(source(tmp_path / "out"), Robustness(occlusion=(), shuffle=(), corruptions=("fog",), k=5))


@pytest.mark.parametrize("options", [{"scale": math.nan}, {"only_dark": True}])
def test_a_network_that_cannot_be_scored_does_not_keep_others_from_it(tmp_path: Path, options: dict[str, Any]) -> None:
    def network(name: str) -> nn.Module:
        return make_network(name, **(options if name == SIZES[0] else {}))

    settings = Robustness(occlusion=(), shuffle=(), corruptions=("brightness",), severities=(5,), k=5)
    whole = evaluate(source(tmp_path / "whole"), settings)
    told = f"1 of 2 networks could not be scored; the others are in .* {SIZES[0]}: .* NaN"
    with pytest.raises(NotScored, match=told) as caught:
        evaluate(source(tmp_path / "out", network=network), settings)
    assert caught.value.results.scores == {SIZES[1]: whole[SIZES[1]]}


def test_bad_images_are_left_out(tmp_path: Path) -> None:
    train, test = pictures(tmp_path / "train", seed=1), pictures(tmp_path / "test")
    (tmp_path / "test/images/red/1.png").write_bytes(b"damaged")
    settings = Robustness(occlusion=(0.5,), shuffle=(), corruptions=(), k=3)
    options: dict[str, Any] = {"train": train, "test": test, "limit": None, "test_limit": None, "sizes": SIZES[0]}
    options["max_bad_share"] = 0.2
    evaluate(source(tmp_path), settings, **options)
    assert json.loads((tmp_path / "robustness/robustness.json").read_text())["bad_images"] == {"train": 0, "test": 1}
    for path in (tmp_path / "test/images").glob("*/*.png"):
        path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"None of the test images .* could be read"):
        evaluate(source(tmp_path / "none"), settings, **options)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"occlusion": (0.5, 1.0)}, "--occlusion cannot be 1.0: it should be less than 1"),
        ({"grid": 3}, "8 pixels cannot be divided into 3 x 3 .* Set --grid to one of 2, 4, 8"),
        ({"shuffle": (2, 5)}, "divided into 5 x 5 .* --shuffle"),
        ({"corruptions": ("rain",)}, "no corruption 'rain'"),
        ({"severities": (0,)}, "--severities cannot be 0: it should be greater than or equal to 1"),
        ({"severities": ()}, "at least one severity"),
        ({"seed": -1}, "--seed cannot be -1"),
        ({"k": 61}, "k=61 is not possible"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        evaluate(source(tmp_path), Robustness(**settings))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "a/b"}, "without slashes"),
        ({"sizes": "32x9"}, "32x9"),
        ({"masks": Path("nowhere")}, "no folder nowhere"),
        ({"train": "digits/test", "limit": 30}, "All 30 test images .* are also among the training images"),
    ],
)
def test_wrong_requests(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        evaluate(source(tmp_path), **options)
    assert not list(tmp_path.iterdir())


def test_usual_settings_suit_the_images() -> None:
    resolved = Robustness(occlusion=(0.5, 0.1, 0.5)).resolved(16)
    assert (resolved.occlusion, resolved.grid, resolved.shuffle) == ((0.1, 0.5), 8, (2, 4, 8))
    assert Robustness().resolved(224).shuffle == (2, 4, 8, 14)
    assert len(Robustness().resolved(224).conditions()) == 1 + 9 + 4 + 5 * len(CORRUPTIONS)
