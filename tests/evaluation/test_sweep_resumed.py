"""A stopped sweep goes on where it was, and only with the settings it began with."""

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.sweeps import SIZES, Counting, digits, score
from poa import distributed
from poa.errors import UserError
from poa.evaluation import evaluate
from poa.evaluation.knn import Knn
from poa.evaluation.protocol import Outcome
from poa.evaluation.results import Scores
from poa.features import extract


def test_scored_sizes_are_skipped_and_others_added(tmp_path: Path, whole: Scores) -> None:
    first = score(tmp_path / "out", names=SIZES[:2])
    networks = Counting()
    both = score(tmp_path / "out", networks=networks)
    assert networks.built == ["48x1", "48x2"]
    assert {name: both[name] for name in first} == first
    assert score(tmp_path / "out", networks=Counting(0)) == both
    assert both == whole


def test_interrupted_between_groups(tmp_path: Path, whole: Scores) -> None:
    with pytest.raises(KeyboardInterrupt):
        score(tmp_path / "out", networks=Counting(3))
    assert list(json.loads((tmp_path / "out/knn.json").read_text())["scores"]) == ["32x1", "32x2", "48x1"]
    networks = Counting()
    assert score(tmp_path / "out", networks=networks) == whole
    assert networks.built == ["48x2"]


@pytest.mark.parametrize("stop_at", [("train images", 32), ("train images", 80), ("test images", 16)])
def test_interrupted_inside_a_group(
    tmp_path: Path, whole: Scores, monkeypatch: pytest.MonkeyPatch, stop_at: tuple[str, int]
) -> None:
    def stop(what: str, done: int, _: int) -> None:
        if (what, done) == stop_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "extract_features", save_each_batch)
    with pytest.raises(KeyboardInterrupt):
        score(tmp_path / "out", progress=stop)
    progress: list[tuple[str, int]] = []
    assert score(tmp_path / "out", progress=lambda what, done, _: progress.append((what, done))) == whole
    assert progress[0] == ("networks", 0)
    assert progress[1] == (("test images", 16) if stop_at == ("train images", 80) else (stop_at[0], stop_at[1] + 16))


def save_each_batch(*arguments: Any, **options: Any) -> extract.Extracted:
    return extract.extract_features(*arguments, **options, save_every=1)


def test_interrupted_between_the_sizes_of_a_group(
    tmp_path: Path, whole: Scores, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert score(tmp_path / "out", progress=lambda *call: progress.append(call)) == whole
    before = progress[: progress.index(("networks", 2, 4))]
    assert before == [("networks", 1, 4)], "the features of the group were made again"


def test_results_of_stopped_processes_are_found(tmp_path: Path, whole: Scores, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: 2)
        patch.setattr(distributed, "rank", lambda: 1)
        with pytest.raises(AssertionError):  # the other process's sizes are missing
            score(tmp_path / "out")
    networks = Counting()
    assert score(tmp_path / "out", networks=networks) == whole
    assert networks.built == ["32x1", "48x1"]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    score(tmp_path / "out", names=SIZES[:1])
    for options, words in (
        ({"weights": "seed 1"}, r"weights \(seed 0 before, seed 1 now\)"),
        ({"protocol": Knn(ks=(5,))}, r"ks \(\[5, 20\] before, \[5\] now\)"),
        (digits(tmp_path / "cache", test=41), r"test \(40 images [\w, ]+ before, 41 images [\w, ]+ now\)"),
    ):
        with pytest.raises(UserError, match=words + r".*another --name.*--overwrite"):
            score(tmp_path / "out", **options)
    assert score(tmp_path / "out", names=SIZES[:1], at_once=1, batch=7, networks=Counting(0))


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
