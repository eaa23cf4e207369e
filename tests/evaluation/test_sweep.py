"""A sweep gives the scores of each network alone, by any protocol, and says so in files."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from evaluation.scored import scored
from evaluation.sweeps import SIZES, digits, folder, make_network, score, score_all
from poa.data.index import ImageIndex
from poa.data.loader import images_for_scoring
from poa.evaluation.clustering import Cluster
from poa.evaluation.knn import Knn
from poa.evaluation.linear import FewShot, Linear
from poa.evaluation.protocol import Outcome, Prepared, Rows, bootstrap_interval
from poa.evaluation.results import Scores
from poa.evaluation.retrieval import Retrieval
from poa.families.base import Features


def test_scores_are_those_of_each_network_alone(tmp_path: Path) -> None:
    found = score(tmp_path / "out")
    indexes = digits(tmp_path / "cache")
    for size in SIZES:
        network, data = make_network(size).eval(), []
        for index in indexes.values():
            (batch,) = images_for_scoring(index, size=8, resize=8, batch_size=1000)
            with torch.no_grad():
                data.append(network((batch.images / 255 - 0.5) / 0.5).cls)
            data.append(torch.from_numpy(index.labels()))
        assert found[size] == pytest.approx(scored(Knn(ks=(5, 20)), *data, num_classes=10).scores)
        assert 30 < found[size]["top1@5"] < found[size]["top5@5"]


def test_files(tmp_path: Path) -> None:
    found = score_all(tmp_path / "out", names=("48x1", "32x2", "48x1"))
    written = json.loads((tmp_path / "out/knn.json").read_text())
    assert written["protocol"] == "knn"
    assert written["scores"] == found.scores
    assert list(written["scores"]) == ["32x2", "48x1"]
    assert list(written["scores"]["32x2"]) == ["top1@5", "top5@5", "top1@20", "top5@20"]
    assert written["bad_images"] == {"train": 0, "test": 0}
    assert (
        written["settings"] | {"weights": "seed 0", "ks": [5, 20], "precision": "torch.float32"} == written["settings"]
    )
    lines = list(csv.DictReader((tmp_path / "out/knn.csv").read_text().splitlines()))
    assert [line["size"] for line in lines] == ["32x2", "48x1"]
    assert {name: float(lines[0][name]) for name in found.scores["32x2"]} == found.scores["32x2"]
    assert list(lines[0])[2:7] == ["depth", "top1@5", "top1@5_low", "top1@5_high", "top5@5"]
    for line in lines:
        for name in found.scores["32x2"]:
            ends = tuple(float(line[f"{name}_{end}"]) for end in ("low", "high"))
            assert ends == found.intervals[line["size"]][name] == tuple(written["intervals"][line["size"]][name])
            assert ends[0] < float(line[name]) < ends[1] or float(line[name]) == 100
    assert (lines[1]["width"], lines[1]["depth"]) == ("48", "1")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["knn.csv", "knn.json"]


def test_networks_that_are_no_sizes(tmp_path: Path) -> None:
    networks = {"resnet": "32x1", "a.b": "48x2", "100x1": "32x2", "48x1": "48x1"}
    found = score(tmp_path / "out", names=list(networks), networks=lambda name: make_network(networks[name]))
    assert list(json.loads((tmp_path / "out/knn.json").read_text())["scores"]) == ["48x1", "100x1", "a.b", "resnet"]
    assert found["a.b"] == score(tmp_path / "other", names=["48x2"])["48x2"]
    lines = list(csv.DictReader((tmp_path / "out/knn.csv").read_text().splitlines()))
    assert [(line["width"], line["depth"]) for line in lines] == [("48", "1"), ("100", "1"), ("", ""), ("", "")]


@pytest.mark.parametrize(
    ("protocol", "names", "bounded"),
    [
        (Linear(strengths=(0.01, 0.1)), ["top1", "top5"], 2),
        (FewShot(per_class=2, draws=2, strengths=(0.1,)), ["top1", "top5", "top1_spread", "top5_spread"], 2),
        (FewShot(share=0.5, draws=1, strengths=(0.1,)), ["top1", "top5"], 2),
        (Cluster(seeds=(0, 1), restarts=1), ["accuracy", "ari", "nmi", "fmi", "ami", "accuracy_spread"], 0),
        (Retrieval(), ["map", "recall@1", "recall@5", "recall@10"], 4),
    ],
)
def test_other_protocols(tmp_path: Path, protocol: Any, names: list[str], bounded: int) -> None:
    options: dict[str, Any] = digits(tmp_path / "cache")
    if isinstance(protocol, Cluster):
        options["train_index"] = None
    found = score_all(tmp_path / "out", names=["32x1"], protocol=protocol, **options)
    scores, intervals = found.scores["32x1"], found.intervals["32x1"]
    assert list(scores)[: len(names)] == names
    assert list(intervals) == names[:bounded]
    assert all(0 <= low <= scores[name] <= high <= 100 for name, (low, high) in intervals.items())
    assert scores[protocol.headline] > 15
    assert (tmp_path / f"out/{protocol.name}.csv").exists()
    assert ("train" in found.settings) == protocol.needs_train == ("train" in found.bad_images)
    given = json.loads(json.dumps(dict(protocol)))
    assert {key for key, value in given.items() if found.settings[key] != value} <= {"clusters", "ks"}
    assert found.settings.get("clusters", 10) == 10
    assert found.settings.get("ks", [1, 5, 10]) == [1, 5, 10]


def test_intervals_are_those_of_the_values_of_each_image(tmp_path: Path) -> None:
    indexes = digits(tmp_path / "cache")
    found = score_all(tmp_path / "out", names=["32x1"], protocol=Linear(strengths=(0.1,)), **indexes)
    rows = []
    for index in indexes.values():
        (batch,) = images_for_scoring(index, size=8, resize=8, batch_size=1000)
        with torch.no_grad():
            network = make_network("32x1").eval()
            rows.append(Rows(network((batch.images / 255 - 0.5) / 0.5).cls, torch.from_numpy(index.labels())))
    outcome = Linear(strengths=(0.1,))(*rows, num_classes=10, device=torch.device("cpu"))
    assert float(outcome.values["top1"].mean()) == pytest.approx(found.scores["32x1"]["top1"])
    assert found.intervals["32x1"]["top1"] == bootstrap_interval(outcome.values["top1"])
    assert found.details == {"32x1": {"strength": 0.1}}


def test_a_protocol_may_prepare_networks_and_name_columns(tmp_path: Path) -> None:
    class Doubled(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Any) -> Features:
            cls, patches = self.network(images)
            return Features(torch.cat([cls, 0 * cls], dim=1), patches)

    seen = []

    class Wide(Knn):
        def prepare(self, network: nn.Module, *, image_size: int, channels: int = 3) -> Prepared:
            assert not network.training
            assert channels == 3
            return Prepared(Doubled(network), {"first": (0, 32), "image size": (0, image_size)})

        def __call__(self, train: Rows, test: Rows, **further: Any) -> Outcome:
            seen.extend([train, test])
            return super().__call__(train, test, **further)

    found = score(tmp_path / "out", names=["32x1"], protocol=Wide(ks=(5, 20)))
    assert found == score(tmp_path / "plain", names=["32x1"])
    assert [rows.features.shape for rows in seen] == [(80, 64), (40, 64)]
    assert all(dict(rows.columns) == {"first": (0, 32), "image size": (0, 8)} for rows in seen)


@pytest.mark.parametrize("at_once", [1, 4])
def test_grouping_does_not_matter(tmp_path: Path, whole: Scores, at_once: int) -> None:
    assert score(tmp_path / "out", at_once=at_once) == whole


def test_images_are_decoded_once_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    plain = ImageIndex.read
    monkeypatch.setattr(ImageIndex, "read", lambda self, i, /: (read.append(i), plain(self, i))[1])
    score(tmp_path / "out")
    assert len(read) == 2 * (80 + 40)


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    train = folder(tmp_path / "train", classes=("ant", "bee", "cat"), seed=0)
    test = folder(tmp_path / "test", classes=("bee", "cat"), seed=1)
    for path in (*(tmp_path / "test/bee").iterdir(), *(tmp_path / "test/cat").iterdir()):
        path.write_bytes((tmp_path / "train" / path.parent.name / path.name.replace("1-", "0-")).read_bytes())
    options = {"train_index": train, "test_index": test, "protocol": Knn(ks=(1,))}
    found = score(tmp_path / "out", names=SIZES[:1], **options)
    assert found == {"32x1": {"top1@1": 100.0, "top5@1": 100.0}}


def test_bad_images_are_left_out_and_counted(tmp_path: Path) -> None:
    train = folder(tmp_path / "train", classes=("ant", "bee"), seed=0)
    test = folder(tmp_path / "test", classes=("ant", "bee"), seed=1)
    (tmp_path / "train/ant/0-2.png").write_bytes(b"damaged")
    (tmp_path / "test/ant/1-0.png").unlink()
    for path in (tmp_path / "test/bee").iterdir():
        path.write_bytes((tmp_path / "train/bee" / path.name.replace("1-", "0-")).read_bytes())
    options = {"train_index": train, "test_index": test, "protocol": Knn(ks=(1,))}
    found = score(tmp_path / "out", names=SIZES[:1], max_bad_share=0.2, **options)
    assert json.loads((tmp_path / "out/knn.json").read_text())["bad_images"] == {"train": 1, "test": 1}
    assert found["32x1"]["top1@1"] >= 100 * 4 / 7  # shifted labels would not find the copies
