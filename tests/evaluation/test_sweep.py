import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from poa import distributed
from poa.data.index import ImageIndex, open_index
from poa.data.loader import images_for_scoring
from poa.elastic.space import SearchSpace, Size
from poa.errors import UserError
from poa.evaluation import features, sweep
from poa.evaluation.clustering import Cluster
from poa.evaluation.few_shot import FewShot
from poa.evaluation.intervals import bootstrap_interval
from poa.evaluation.knn import Knn, knn_scores
from poa.evaluation.linear import Linear
from poa.evaluation.protocols import Outcome, Prepared, Rows
from poa.evaluation.results import NotScored, Results, Scores
from poa.evaluation.retrieval import Retrieval
from poa.evaluation.sweep import Scoring, score_networks
from poa.families.base import Features
from poa.families.vit import ViT
from processes import run_processes

SPACE = SearchSpace.grid((32, 48), (1, 2))
FAMILY = ViT(SPACE, image_size=8, patch_size=4, head_dim=16, layer_scale=0.0)
SIZES = tuple(map(str, SPACE.sizes))
KNN = Knn((5, 20))
SCORING = Scoring(image_size=8, resize=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), batch_size=16, networks_at_once=3)


def make_network(name: str) -> nn.Module:
    size = Size.parse(name)
    torch.manual_seed(size.width + size.depths[0])
    return FAMILY.build(size)


def digits(cache: Path, *, train: int = 80, test: int = 40) -> dict[str, ImageIndex]:
    return {
        "train_index": open_index("digits/train", limit=train, cache=cache),
        "test_index": open_index("digits/test", limit=test, cache=cache),
    }


def score_all(out: Path, names: Sequence[str] = SIZES, **options: Any) -> Results:
    defaults = {"networks": make_network, "weights": "seed 0", "scoring": SCORING, "device": torch.device("cpu")}
    if "train_index" not in options:
        options |= digits(out.parent / "cache")
    return score_networks(names=names, out=out, **{**defaults, "protocol": KNN, **options})


def score(out: Path, names: Sequence[str] = SIZES, **options: Any) -> Scores:
    return score_all(out, names, **options).scores


def folder(root: Path, *, classes: Sequence[str], seed: int, per_class: int = 4) -> ImageIndex:
    generator = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            Image.fromarray(generator.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(
                root / name / f"{seed}-{number}.png"
            )
    return open_index(str(root), cache=root.parent / "cache")


class Counting:
    """Builds networks, notes which, and fails when it has built enough."""

    def __init__(self, most: int = 100) -> None:
        self.built: list[str] = []
        self._most = most

    def __call__(self, name: str) -> nn.Module:
        if len(self.built) == self._most:
            raise KeyboardInterrupt
        self.built.append(name)
        return make_network(name)


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
        assert found[size] == pytest.approx(knn_scores(*data, ks=(5, 20), num_classes=10).scores())
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
    settled = json.loads(json.dumps({name: getattr(protocol, name) for name in vars(protocol)}))
    assert {key for key, value in settled.items() if found.settings[key] != value} <= {"clusters", "ks"}
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
    expected = bootstrap_interval(outcome.values["top1"], level=0.95)
    assert found.intervals["32x1"]["top1"] == (expected.low, expected.high)
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
        def prepare(self, network: nn.Module, *, image_size: int) -> Prepared:
            assert not network.training
            return Prepared(Doubled(network), {"first": (0, 32), "image size": (0, image_size)})

        def __call__(self, train: Rows, test: Rows, **further: Any) -> Outcome:
            seen.extend([train, test])
            return super().__call__(train, test, **further)

    found = score(tmp_path / "out", names=["32x1"], protocol=Wide((5, 20)))
    assert found == score(tmp_path / "plain", names=["32x1"])
    assert [rows.features.shape for rows in seen] == [(80, 64), (40, 64)]
    assert all(dict(rows.columns) == {"first": (0, 32), "image size": (0, 8)} for rows in seen)


@pytest.mark.parametrize("at_once", [1, 4])
def test_grouping_does_not_matter(tmp_path: Path, at_once: int) -> None:
    other = replace(SCORING, networks_at_once=at_once, workers=0)
    assert score(tmp_path / "out", scoring=other) == score(tmp_path / "other")


def test_images_are_decoded_once_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    plain = ImageIndex.read
    monkeypatch.setattr(ImageIndex, "read", lambda self, i, /: (read.append(i), plain(self, i))[1])
    score(tmp_path / "out")
    assert len(read) == 2 * (80 + 40)


def test_scored_sizes_are_skipped_and_others_added(tmp_path: Path) -> None:
    first = score(tmp_path / "out", names=SIZES[:2])
    networks = Counting()
    both = score(tmp_path / "out", networks=networks)
    assert networks.built == ["48x1", "48x2"]
    assert {name: both[name] for name in first} == first
    assert score(tmp_path / "out", networks=Counting(0)) == both
    assert both == score(tmp_path / "whole")


def test_interrupted_between_groups(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        score(tmp_path / "out", networks=Counting(3))
    assert list(json.loads((tmp_path / "out/knn.json").read_text())["scores"]) == ["32x1", "32x2", "48x1"]
    networks = Counting()
    assert score(tmp_path / "out", networks=networks) == score(tmp_path / "whole")
    assert networks.built == ["48x2"]


@pytest.mark.parametrize("stop_at", [("train images", 32), ("train images", 80), ("test images", 16)])
def test_interrupted_inside_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: tuple[str, int]) -> None:
    def stop(what: str, done: int, _: int) -> None:
        if (what, done) == stop_at:
            raise KeyboardInterrupt

    expected = score(tmp_path / "whole")
    monkeypatch.setattr(sweep, "extract_features", save_each_batch)
    with pytest.raises(KeyboardInterrupt):
        score(tmp_path / "out", progress=stop)
    progress: list[tuple[str, int]] = []
    assert score(tmp_path / "out", progress=lambda what, done, _: progress.append((what, done))) == expected
    assert progress[0] == ("networks", 0)
    assert progress[1] == (("test images", 16) if stop_at == ("train images", 80) else (stop_at[0], stop_at[1] + 16))


def save_each_batch(*arguments: Any, **options: Any) -> features.Extracted:
    return features.extract_features(*arguments, **options, save_every=1)


def test_interrupted_between_the_sizes_of_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = score(tmp_path / "whole")
    calls = []
    plain = Knn.__call__

    def fail_second(*arguments: Any, **options: Any) -> Outcome:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Knn, "__call__", fail_second)
        with pytest.raises(KeyboardInterrupt):
            score(tmp_path / "out")
    progress: list[tuple[str, int, int]] = []
    assert score(tmp_path / "out", progress=lambda *call: progress.append(call)) == expected
    before = progress[: progress.index(("networks", 2, 4))]
    assert before == [("networks", 1, 4)], "the features of the group were made again"


def test_other_settings_are_refused(tmp_path: Path) -> None:
    score(tmp_path / "out", names=SIZES[:1])
    for options, words in (
        ({"weights": "seed 1"}, r"weights \(seed 0 there, seed 1 now\)"),
        ({"protocol": Knn((5,))}, r"ks \(\[5, 20\] there, \[5\] now\)"),
        (digits(tmp_path / "cache", test=41), r"test \(40 images \w+ there, 41 images \w+ now\)"),
    ):
        with pytest.raises(UserError, match=words + r".*another --name.*--overwrite"):
            score(tmp_path / "out", **options)
    harmless = replace(SCORING, batch_size=7, networks_at_once=1)
    assert score(tmp_path / "out", names=SIZES[:1], scoring=harmless, networks=Counting(0))


def test_overwrite(tmp_path: Path) -> None:
    score(tmp_path / "out")
    again = score(tmp_path / "out", names=SIZES[:1], weights="seed 1", overwrite=True)
    written = json.loads((tmp_path / "out/knn.json").read_text())
    assert written["scores"] == again
    assert written["settings"]["weights"] == "seed 1"


def test_damaged_results_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/knn.json").write_text('{"protocol": "knn"')
    with pytest.raises(UserError, match="not a file of scores"):
        score(tmp_path / "out")
    assert score(tmp_path / "out", names=SIZES[:1], overwrite=True)


def test_results_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to"):
        score(tmp_path / "file" / "out", networks=Counting(0), **digits(tmp_path / "cache"))


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    train = folder(tmp_path / "train", classes=("ant", "bee", "cat"), seed=0)
    test = folder(tmp_path / "test", classes=("bee", "cat"), seed=1)
    for path in (*(tmp_path / "test/bee").iterdir(), *(tmp_path / "test/cat").iterdir()):
        path.write_bytes((tmp_path / "train" / path.parent.name / path.name.replace("1-", "0-")).read_bytes())
    options = {"train_index": train, "test_index": test, "protocol": Knn((1,))}
    found = score(tmp_path / "out", names=SIZES[:1], **options)
    assert found == {"32x1": {"top1@1": 100.0, "top5@1": 100.0}}


def test_bad_images_are_left_out_and_counted(tmp_path: Path) -> None:
    train = folder(tmp_path / "train", classes=("ant", "bee"), seed=0)
    test = folder(tmp_path / "test", classes=("ant", "bee"), seed=1)
    (tmp_path / "train/ant/0-2.png").write_bytes(b"damaged")
    (tmp_path / "test/ant/1-0.png").unlink()
    for path in (tmp_path / "test/bee").iterdir():
        path.write_bytes((tmp_path / "train/bee" / path.name.replace("1-", "0-")).read_bytes())
    options = {"train_index": train, "test_index": test, "protocol": Knn((1,))}
    found = score(tmp_path / "out", names=SIZES[:1], **options)
    assert json.loads((tmp_path / "out/knn.json").read_text())["bad_images"] == {"train": 1, "test": 1}
    assert found["32x1"]["top1@1"] >= 100 * 4 / 7  # shifted labels would not find the copies


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"names": ()}, "no networks to score"),
        ({"protocol": Knn((81,))}, "k=81 is not possible.* here 80"),
        ({"protocol": Knn(temperature=0.0)}, "above 0, got 0.0"),
        ({"protocol": Retrieval((81,))}, "Recall at 81 is not possible.* here 80"),
        ({"protocol": Linear(strengths=(0.0,))}, "numbers above 0, got 0.0"),
        ({"protocol": FewShot()}, "needs either a number of images per class or a share"),
        ({"protocol": FewShot(per_class=9)}, "9 images per class are not possible: class 0 has 8"),
        ({"protocol": FewShot(per_class=1, draws=0)}, "at least one draw, got 0"),
        ({"protocol": FewShot(per_class=1, strengths=())}, "got none"),
        ({"protocol": Cluster()}, "looks at the test images alone"),
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
    for protocol in (Cluster(clusters=41), Cluster(clusters=1), Cluster(seeds=()), Cluster(restarts=0)):
        with pytest.raises(UserError, match="K-means needs from 2 to 40 clusters"):
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
        (train, "are the same"),
    ):
        with pytest.raises(UserError, match=words):
            score(tmp_path / "out", train_index=train, test_index=test, protocol=Knn((5,)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("field", ["batch_size", "networks_at_once"])
def test_nothing_at_a_time(field: str) -> None:
    with pytest.raises(UserError, match="at least one image and one network"):
        replace(SCORING, **{field: 0})


class Diverged:
    """Builds networks, some of which have diverged."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __call__(self, name: str) -> nn.Module:
        network = make_network(name)
        if name in self.names:
            nn.init.constant_(network.model.norm.weight, torch.nan)
        return network


def test_a_failing_network_does_not_keep_the_others_from_being_scored(tmp_path: Path) -> None:
    expected = score(tmp_path / "whole")
    with pytest.raises(
        NotScored, match=r"1 of 4 networks could not be scored; the others are in .*knn\.json. 32x2: The"
    ) as found:
        score(tmp_path / "out", networks=Diverged("32x2"))
    assert "hold NaN or infinity" in str(found.value)
    others = {name: scores for name, scores in expected.items() if name != "32x2"}
    assert found.value.results.scores == others
    written = json.loads((tmp_path / "out/knn.json").read_text())
    assert written["scores"] == others
    assert list(written["failed"]) == ["32x2"]
    assert len((tmp_path / "out/knn.csv").read_text().splitlines()) == 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["knn.csv", "knn.json"]
    assert score(tmp_path / "out", names=["32x1"])
    assert list(json.loads((tmp_path / "out/knn.json").read_text())["failed"]) == ["32x2"]
    networks = Counting()
    assert score(tmp_path / "out", networks=networks) == expected, "it is not tried again"
    assert networks.built == ["32x2"]
    assert json.loads((tmp_path / "out/knn.json").read_text())["failed"] == {}


def test_failures_of_one_kind_are_told_once(tmp_path: Path) -> None:
    with pytest.raises(NotScored, match=r"2 of 2 networks could not be scored\. 32x1, 48x1: The features") as found:
        score(tmp_path / "out", names=["32x1", "48x1"], networks=Diverged("32x1", "48x1"))
    assert str(found.value).count("NaN") == 1
    with pytest.raises(NotScored, match=r"1 of 1 networks .*32x1"):
        score(tmp_path / "out", names=["32x1"], networks=Diverged("32x1"))


def test_failures_of_the_protocol_are_told_at_the_end_too(tmp_path: Path) -> None:
    def collapsed(name: str) -> nn.Module:
        network = make_network(name)
        if name == "32x1":
            nn.init.zeros_(network.model.norm.weight)
        return network

    options: dict[str, Any] = {**digits(tmp_path / "cache"), "train_index": None}
    with pytest.raises(NotScored, match=r"32x1: K-means found 1 different features for 10 clusters.* collapsed"):
        score(tmp_path / "out", names=["32x1", "32x2"], networks=collapsed, protocol=Cluster(restarts=1), **options)
    assert list(json.loads((tmp_path / "out/cluster.json").read_text())["scores"]) == ["32x2"]


def score_in_process(out: str) -> tuple[Scores, list[str], str]:
    networks, told = Counting(), ""
    scores = score(Path(out), networks=networks)
    try:
        score(Path(out).parent / "failing", networks=Diverged("32x2"))
    except NotScored as error:
        told = str(error)
    assert score(Path(out).parent / "failing", names=["32x1"])
    assert score(Path(out).parent / "failing") == scores
    return scores, networks.built, told


def test_processes_share_the_sizes(tmp_path: Path) -> None:
    expected = score(tmp_path / "whole")
    score(tmp_path / "out", names=SIZES[2:3])
    (first, built, told), (second, also_built, also_told) = run_processes(score_in_process, 2, str(tmp_path / "out"))
    assert first == second == expected
    assert (built, also_built) == (["32x1"], ["32x2", "48x2"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["knn.csv", "knn.json"]
    assert told == also_told
    assert "32x2: The features" in told
    written = json.loads((tmp_path / "failing/knn.json").read_text())
    assert (written["scores"], written["failed"]) == (expected, {})


def test_results_of_stopped_processes_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: 2)
        patch.setattr(distributed, "rank", lambda: 1)
        with pytest.raises(AssertionError):  # the other process's sizes are missing
            score(tmp_path / "out")
    networks = Counting()
    assert score(tmp_path / "out", networks=networks) == score(tmp_path / "whole")
    assert networks.built == ["32x1", "48x1"]
