"""What cannot be scored is told, and does not keep the rest from it."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from evaluation.sweeps import SIZES, Counting, Diverged, digits, folder, make_network, score
from poa.errors import UserError
from poa.evaluation.clustering import Cluster
from poa.evaluation.knn import Knn
from poa.evaluation.linear import FewShot, Linear
from poa.evaluation.results import NotScored, Scores
from poa.evaluation.retrieval import Retrieval


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"names": ()}, "no networks to score"),
        ({"protocol": Knn(ks=(81,))}, "k=81 is not possible.* here 80"),
        ({"protocol": Retrieval(ks=(81,))}, "Recall at 81 is not possible.* here 80"),
        ({"protocol": FewShot()}, "needs either --per-class or --share"),
        (
            {"protocol": FewShot(per_class=9)},
            "9 images per class is not possible: class 0 has .* images, 8",
        ),
        ({"protocol": Cluster()}, "uses only test images"),
    ],
)
def test_wrong_requests(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        score(tmp_path / "out", networks=Counting(0), **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("protocol", [Knn(), Linear(), FewShot(per_class=1), Retrieval()])
def test_training_images_are_needed(tmp_path: Path, protocol: Any) -> None:
    options = {**digits(tmp_path / "cache"), "train_index": None}
    with pytest.raises(UserError, match=f"{protocol.name} needs labelled training images. Give --train"):
        score(tmp_path / "out", networks=Counting(0), protocol=protocol, **options)


def test_wrong_clusters(tmp_path: Path) -> None:
    options: dict[str, Any] = {**digits(tmp_path / "cache"), "train_index": None, "networks": Counting(0)}
    for protocol in (Cluster(clusters=41), Cluster(clusters=1)):
        with pytest.raises(UserError, match="must be from 2 to 40"):
            score(tmp_path / "out", protocol=protocol, **options)


def test_single_images_of_all_classes(tmp_path: Path) -> None:
    train = folder(tmp_path / "train", classes=("ant", "bee"), seed=0, per_class=1)
    test = folder(tmp_path / "test", classes=("ant", "bee"), seed=1)
    options: dict[str, Any] = {"train_index": train, "test_index": test, "names": SIZES[:1]}
    with pytest.raises(UserError, match="Every class has a single training image"):
        score(tmp_path / "out", protocol=Linear(), **options, networks=Counting(0))
    assert set(score(tmp_path / "out", protocol=Linear(strengths=(0.1,)), **options)) == {"32x1"}
    assert set(score(tmp_path / "out", protocol=FewShot(per_class=1, draws=1), **options)) == {"32x1"}


def test_wrong_labels(tmp_path: Path) -> None:
    train = folder(tmp_path / "train", classes=("ant", "bee"), seed=0, per_class=8)
    other = folder(tmp_path / "other", classes=("ant", "bees", "cat"), seed=1)
    flat = folder(tmp_path / "flat", classes=(".",), seed=2)
    for test, words in (
        (other, "lack: 'bees', 'cat'. .* have 2 classes: Did you mean 'bee'"),
        (flat, "flat have no labels"),
        (train, r"All 16 test images \(.*train\) are also among the training images"),
    ):
        with pytest.raises(UserError, match=words):
            score(tmp_path / "out", train_index=train, test_index=test, protocol=Knn(ks=(5,)))
    assert not (tmp_path / "out").exists()


def test_results_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to"):
        score(tmp_path / "file" / "out", networks=Counting(0), **digits(tmp_path / "cache"))


def test_a_failing_network_does_not_keep_the_others_from_being_scored(tmp_path: Path, whole: Scores) -> None:
    with pytest.raises(
        NotScored, match=r"1 of 4 networks could not be scored; the others are in .*knn\.json. 32x2: The"
    ) as found:
        score(tmp_path / "out", networks=Diverged("32x2"))
    assert "contain NaN or infinity" in str(found.value)
    others = {name: scores for name, scores in whole.items() if name != "32x2"}
    assert found.value.results.scores == others
    written = json.loads((tmp_path / "out/knn.json").read_text())
    assert written["scores"] == others
    assert list(written["failed"]) == ["32x2"]
    assert len((tmp_path / "out/knn.csv").read_text().splitlines()) == 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["knn.csv", "knn.json"]
    assert score(tmp_path / "out", names=["32x1"])
    assert list(json.loads((tmp_path / "out/knn.json").read_text())["failed"]) == ["32x2"]
    networks = Counting()
    assert score(tmp_path / "out", networks=networks) == whole, "it is not tried again"
    assert networks.built == ["32x2"]
    assert json.loads((tmp_path / "out/knn.json").read_text())["failed"] == {}


def test_failures_of_one_kind_are_reported_once(tmp_path: Path) -> None:
    with pytest.raises(NotScored, match=r"2 of 2 networks could not be scored\. 32x1, 48x1: The features") as found:
        score(tmp_path / "out", names=["32x1", "48x1"], networks=Diverged("32x1", "48x1"))
    assert str(found.value).count("NaN") == 1
    with pytest.raises(NotScored, match=r"1 of 1 network .*32x1"):
        score(tmp_path / "out", names=["32x1"], networks=Diverged("32x1"))


def test_failures_of_the_protocol_are_reported_at_the_end_too(tmp_path: Path) -> None:
    def collapsed(name: str) -> nn.Module:
        network = make_network(name)
        if name == "32x1":
            nn.init.zeros_(network.model.norm.weight)
        return network

    options: dict[str, Any] = {**digits(tmp_path / "cache"), "train_index": None}
    with pytest.raises(NotScored, match=r"32x1: K-means needs .* got 1 for 10 clusters.* collapsed"):
        score(tmp_path / "out", names=["32x1", "32x2"], networks=collapsed, protocol=Cluster(restarts=1), **options)
    assert list(json.loads((tmp_path / "out/cluster.json").read_text())["scores"]) == ["32x2"]
