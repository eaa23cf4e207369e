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
from poa.evaluation.knn import knn_scores
from poa.evaluation.sweep import Scoring, score_sizes
from poa.families.vit import ViT
from processes import run_processes

SPACE = SearchSpace.grid((32, 48), (1, 2))
FAMILY = ViT(SPACE, image_size=8, patch_size=4, head_dim=16, layer_scale=0.0)
SCORING = Scoring(
    image_size=8, resize=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), ks=(5, 20), batch_size=16, sizes_at_once=3
)


def make_network(size: Size) -> nn.Module:
    torch.manual_seed(size.width + size.depths[0])
    return FAMILY.build(size)


def digits(cache: Path, *, train: int = 80, test: int = 40) -> dict[str, ImageIndex]:
    return {
        "train_index": open_index("digits/train", limit=train, cache=cache),
        "test_index": open_index("digits/test", limit=test, cache=cache),
    }


def score(out: Path, sizes: Sequence[Size] = SPACE.sizes, **options: Any) -> sweep.Scores:
    defaults = {"networks": make_network, "weights": "seed 0", "scoring": SCORING, "device": torch.device("cpu")}
    if "train_index" not in options:
        options |= digits(out.parent / "cache")
    return score_sizes(sizes=sizes, out=out, **{**defaults, **options})


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

    def __call__(self, size: Size) -> nn.Module:
        if len(self.built) == self._most:
            raise KeyboardInterrupt
        self.built.append(str(size))
        return make_network(size)


def test_scores_are_those_of_each_network_alone(tmp_path: Path) -> None:
    found = score(tmp_path / "out")
    indexes = digits(tmp_path / "cache")
    for size in SPACE.sizes:
        network, data = make_network(size).eval(), []
        for index in indexes.values():
            (batch,) = images_for_scoring(index, size=8, resize=8, batch_size=1000)
            with torch.no_grad():
                data.append(network((batch.images / 255 - 0.5) / 0.5).cls)
            data.append(torch.from_numpy(index.labels()))
        assert found[str(size)] == pytest.approx(knn_scores(*data, ks=(5, 20), num_classes=10).scores())
        assert 30 < found[str(size)]["top1@5"] < found[str(size)]["top5@5"]


def test_files(tmp_path: Path) -> None:
    found = score(tmp_path / "out", sizes=(Size(48, (1,)), Size(32, (2,)), Size(48, (1,))))
    written = json.loads((tmp_path / "out/knn.json").read_text())
    assert written["protocol"] == "knn"
    assert written["scores"] == found
    assert list(written["scores"]) == ["32x2", "48x1"]
    assert list(written["scores"]["32x2"]) == ["top1@5", "top5@5", "top1@20", "top5@20"]
    assert written["bad_images"] == {"train": 0, "test": 0}
    assert (
        written["settings"] | {"weights": "seed 0", "ks": [5, 20], "precision": "torch.float32"} == written["settings"]
    )
    lines = list(csv.DictReader((tmp_path / "out/knn.csv").read_text().splitlines()))
    assert [line["size"] for line in lines] == ["32x2", "48x1"]
    assert {name: float(lines[0][name]) for name in found["32x2"]} == found["32x2"]
    assert (lines[1]["width"], lines[1]["depth"]) == ("48", "1")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["knn.csv", "knn.json"]


@pytest.mark.parametrize("sizes_at_once", [1, 4])
def test_grouping_does_not_matter(tmp_path: Path, sizes_at_once: int) -> None:
    other = replace(SCORING, sizes_at_once=sizes_at_once, workers=0)
    assert score(tmp_path / "out", scoring=other) == score(tmp_path / "other")


def test_images_are_decoded_once_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    plain = ImageIndex.read
    monkeypatch.setattr(ImageIndex, "read", lambda self, i, /: (read.append(i), plain(self, i))[1])
    score(tmp_path / "out")
    assert len(read) == 2 * (80 + 40)


def test_scored_sizes_are_skipped_and_others_added(tmp_path: Path) -> None:
    first = score(tmp_path / "out", sizes=SPACE.sizes[:2])
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
    assert progress[0] == ("sizes", 0)
    assert progress[1] == (("test images", 16) if stop_at == ("train images", 80) else (stop_at[0], stop_at[1] + 16))


def save_each_batch(*arguments: Any, **options: Any) -> features.Extracted:
    return features.extract_features(*arguments, **options, save_every=1)


def test_interrupted_between_the_sizes_of_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = score(tmp_path / "whole")
    calls = []

    def fail_second(*arguments: Any) -> dict[str, float]:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sweep._knn(*arguments)

    with monkeypatch.context() as patch:
        patch.setitem(sweep.PROTOCOLS, "knn", fail_second)
        with pytest.raises(KeyboardInterrupt):
            score(tmp_path / "out")
    progress: list[tuple[str, int, int]] = []
    assert score(tmp_path / "out", progress=lambda *call: progress.append(call)) == expected
    before = progress[: progress.index(("sizes", 2, 4))]
    assert before == [("sizes", 1, 4)], "the features of the group were made again"


def test_other_settings_are_refused(tmp_path: Path) -> None:
    score(tmp_path / "out", sizes=SPACE.sizes[:1])
    for options, words in (
        ({"weights": "seed 1"}, r"weights \(seed 0 there, seed 1 now\)"),
        ({"scoring": replace(SCORING, ks=(5,))}, r"ks \(\[5, 20\] there, \[5\] now\)"),
        (digits(tmp_path / "cache", test=41), r"test \(40 images \w+ there, 41 images \w+ now\)"),
    ):
        with pytest.raises(UserError, match=words + r".*another --name.*--overwrite"):
            score(tmp_path / "out", **options)
    harmless = replace(SCORING, batch_size=7, sizes_at_once=1)
    assert score(tmp_path / "out", sizes=SPACE.sizes[:1], scoring=harmless, networks=Counting(0))


def test_overwrite(tmp_path: Path) -> None:
    score(tmp_path / "out")
    again = score(tmp_path / "out", sizes=SPACE.sizes[:1], weights="seed 1", overwrite=True)
    written = json.loads((tmp_path / "out/knn.json").read_text())
    assert written["scores"] == again
    assert written["settings"]["weights"] == "seed 1"


def test_damaged_results_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/knn.json").write_text('{"protocol": "knn"')
    with pytest.raises(UserError, match="not a file of scores"):
        score(tmp_path / "out")
    assert score(tmp_path / "out", sizes=SPACE.sizes[:1], overwrite=True)


def test_results_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to"):
        score(tmp_path / "file" / "out", networks=Counting(0), **digits(tmp_path / "cache"))


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    train = folder(tmp_path / "train", classes=("ant", "bee", "cat"), seed=0)
    test = folder(tmp_path / "test", classes=("bee", "cat"), seed=1)
    for path in (*(tmp_path / "test/bee").iterdir(), *(tmp_path / "test/cat").iterdir()):
        path.write_bytes((tmp_path / "train" / path.parent.name / path.name.replace("1-", "0-")).read_bytes())
    options = {"train_index": train, "test_index": test, "scoring": replace(SCORING, ks=(1,))}
    found = score(tmp_path / "out", sizes=SPACE.sizes[:1], **options)
    assert found == {"32x1": {"top1@1": 100.0, "top5@1": 100.0}}


def test_bad_images_are_left_out_and_counted(tmp_path: Path) -> None:
    train = folder(tmp_path / "train", classes=("ant", "bee"), seed=0)
    test = folder(tmp_path / "test", classes=("ant", "bee"), seed=1)
    (tmp_path / "train/ant/0-2.png").write_bytes(b"damaged")
    (tmp_path / "test/ant/1-0.png").unlink()
    for path in (tmp_path / "test/bee").iterdir():
        path.write_bytes((tmp_path / "train/bee" / path.name.replace("1-", "0-")).read_bytes())
    options = {"train_index": train, "test_index": test, "scoring": replace(SCORING, ks=(1,))}
    found = score(tmp_path / "out", sizes=SPACE.sizes[:1], **options)
    assert json.loads((tmp_path / "out/knn.json").read_text())["bad_images"] == {"train": 1, "test": 1}
    assert found["32x1"]["top1@1"] >= 100 * 4 / 7  # shifted labels would not find the copies


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sizes": ()}, "no sizes to score"),
        ({"protocol": "kn"}, "no way of scoring called 'kn'. Did you mean 'knn'"),
        ({"scoring": replace(SCORING, ks=(81,))}, "k=81 is not possible.* here 80"),
    ],
)
def test_wrong_requests(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        score(tmp_path / "out", networks=Counting(0), **options)


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
            score(tmp_path / "out", train_index=train, test_index=test, scoring=replace(SCORING, ks=(5,)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("field", ["batch_size", "sizes_at_once"])
def test_nothing_at_a_time(field: str) -> None:
    with pytest.raises(UserError, match="at least one image and one size"):
        replace(SCORING, **{field: 0})


def test_diverged_network_is_named(tmp_path: Path) -> None:
    def diverged(size: Size) -> nn.Module:
        network = make_network(size)
        if size == SPACE.sizes[1]:
            nn.init.constant_(network.model.norm.weight, torch.nan)
        return network

    with pytest.raises(UserError, match="Size 32x2: The features hold NaN"):
        score(tmp_path / "out", networks=diverged)
    assert list(json.loads((tmp_path / "out/knn.json").read_text())["scores"]) == ["32x1"]


def score_in_process(out: str) -> tuple[sweep.Scores, list[str]]:
    networks = Counting()
    return score(Path(out), networks=networks), networks.built


def test_processes_share_the_sizes(tmp_path: Path) -> None:
    expected = score(tmp_path / "whole")
    score(tmp_path / "out", sizes=SPACE.sizes[2:3])
    (first, built), (second, also_built) = run_processes(score_in_process, 2, str(tmp_path / "out"))
    assert first == second == expected
    assert (built, also_built) == (["32x1"], ["32x2", "48x2"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["knn.csv", "knn.json"]


def test_results_of_stopped_processes_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: 2)
        patch.setattr(distributed, "rank", lambda: 1)
        with pytest.raises(KeyError):  # the other process's sizes are missing
            score(tmp_path / "out")
    networks = Counting()
    assert score(tmp_path / "out", networks=networks) == score(tmp_path / "whole")
    assert networks.built == ["32x1", "48x1"]
