"""Scores are used again only with the images, labels and weights they are of; what is wrong with images is told."""

import csv
import io
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from evaluation.sweeps import SIZES, Counting, folder, score, score_all
from poa.data.index import ImageIndex, open_index
from poa.errors import UserError
from poa.evaluation import results
from poa.evaluation.knn import Knn
from poa.evaluation.results import ResultFiles, Results
from poa.files import one_writer

CLASSES = ("ant", "bee")


def opened(root: Path, **options: Any) -> ImageIndex:
    return open_index(str(root), cache=root.parent / "cache", **options)


def images_of(root: Path) -> dict[str, Any]:
    """Images of one protocol, as they are now."""
    return {
        "train_index": opened(root / "train"),
        "test_index": opened(root / "test"),
        "protocol": Knn(ks=(1,)),
        "names": SIZES[:1],
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder(tmp_path / "train", classes=CLASSES, seed=0)
    folder(tmp_path / "test", classes=CLASSES, seed=2)
    return tmp_path


def told_by(out: Path, **options: Any) -> tuple[Results, str]:
    console = Console(file=io.StringIO(), width=1000)
    return score_all(out, console=console, **options), console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("change", ["labels", "images"])
def test_scores_are_made_anew_after_labels_or_images_were_corrected(root: Path, change: str) -> None:
    before, told = told_by(root / "out", **images_of(root))
    assert told == ""
    for ant in sorted((root / "test/ant").iterdir()):
        bee = root / "test/bee" / ant.name
        if change == "labels":
            ant.rename(root / "aside")
            bee.rename(ant)
            (root / "aside").rename(bee)
        else:
            shutil.copyfile(root / "train/bee" / ant.name.replace("2-", "0-"), ant)  # written in place
    changed, networks = images_of(root), Counting()
    after, told = told_by(root / "out", networks=networks, **changed)
    assert f"have changed since {root}/out/knn.json was written: test ({root}/test)." in told
    assert after.scores == score(root / "fresh", **changed)
    assert networks.built == [SIZES[0]]
    assert json.loads((root / "out/knn.json.before").read_text())["scores"] == before.scores
    assert score(root / "out", networks=Counting(0), **changed) == after.scores


def test_scores_of_an_earlier_version_are_made_anew_and_kept_aside(root: Path) -> None:
    score(root / "out", weights="teacher at step 60, sha256 0123456789abcdef", **images_of(root))
    file = root / "out/knn.json"
    content = json.loads(file.read_text())
    content["settings"] |= {"weights": "teacher at step 60", "train": "8 images 0123", "test": "8 images 4567"}
    del content["sources"], content["left_out"]
    content["scores"] = {SIZES[0]: {"top1@1": 1.0}, "48x1": {"top1@1": 2.0}}
    file.write_text(json.dumps(content))
    for options, words in (
        ({"weights": "teacher at step 6, sha256 0123456789abcdef"}, "weights"),
        ({"weights": "teacher at step 60, sha256 0123456789abcdef", "protocol": Knn(ks=(2,))}, "ks"),
    ):
        with pytest.raises(UserError, match=f"other settings: .*{words} "):
            score(root / "out", **{**images_of(root), **options})
    found, told = told_by(root / "out", weights="teacher at step 60, sha256 0123456789abcdef", **images_of(root))
    assert "is of an earlier version" in told
    assert f"are kept in {file}.before, and computed again." in told
    assert list(found.scores) == [SIZES[0]]
    assert found.scores[SIZES[0]]["top1@1"] > 1
    assert json.loads(Path(f"{file}.before").read_text())["scores"] == content["scores"]


def test_two_commands_at_once_keep_the_scores_of_both(root: Path) -> None:
    options = images_of(root)
    started: list[str] = []

    def other(what: str, done: int, total: int) -> None:
        if what == "test images" and not started:
            started.append(what)
            score(root / "out", **options | {"names": SIZES[1:3]})

    score(root / "out", progress=other, **options)
    written = Results.read(root / "out/knn.json")
    assert started
    assert list(written.scores) == list(SIZES[:3])
    assert written.scores == score(root / "alone", **options | {"names": SIZES[:3]})
    lines = list(csv.DictReader((root / "out/knn.csv").read_text().splitlines()))
    assert [line["size"] for line in lines] == list(SIZES[:3])
    assert sorted(path.name for path in (root / "out").iterdir()) == ["knn.csv", "knn.json"]


def test_a_folder_to_resume_from_is_that_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "one_writer", partial(one_writer, patience=0))
    first, second = (ResultFiles(tmp_path / "out", Results("knn", {})) for _ in range(2))
    first.start(overwrite=False)
    with first.work_on(["a", "b"]) as work:
        (work / "rows").touch()
        with second.work_on(["a"]) as other:
            assert (work.name, other.name) == ("a", "a (2)")
        second.finish()
        assert (work / "rows").exists(), "only what nobody works on is removed"
    assert not work.parent.exists() or not list(work.parent.iterdir())


def test_test_images_that_are_training_images_are_told_and_all_of_them_refused(root: Path) -> None:
    for name in ("ant/2-0.png", "bee/2-3.png"):
        shutil.copyfile(root / "test" / name, root / "train" / name.replace("2-", "7-"))
    _, told = told_by(root / "out", **images_of(root))
    assert told == (
        "Note: 2 of 8 test images are also among the training images, which makes the scores too good. Take them out "
        "of the training or the test images.\n"
    )
    for train, test in ((8, None), (None, 4)):
        options = images_of(root) | {
            "train_index": opened(root / "test", limit=train) if train != 8 else opened(root / "train"),
            "test_index": opened(root / "test", limit=test) if train != 8 else opened(root / "train", limit=8),
        }
        with pytest.raises(UserError, match=r"All \d test images \(.*limited to \d images\) are also among the train"):
            score(root / "refused", networks=Counting(0), **options)


def test_unreadable_images_are_told_with_the_classes_that_are_gone(root: Path) -> None:
    for path in (root / "test/bee").iterdir():
        path.write_bytes(b"")
    refused = (
        r"^4 of 8 test images could not be read, such as 'bee/2-0.png'\. No test image is left of class 'bee'\. That "
        r"is 50\.0%, more than --max-bad-share 0\.01\. Restore them, or allow more, such as --max-bad-share 0\.5\.$"
    )
    with pytest.raises(UserError, match=refused):
        score(root / "out", **images_of(root))
    assert not (root / "out/knn.json").exists()
    for networks in (Counting(1), Counting(0)):  # also where the scores are there already
        found, told = told_by(root / "out", networks=networks, max_bad_share=0.5, **images_of(root))
        assert told.startswith("Note: 4 of 8 test images could not be read, such as 'bee/2-0.png'. No test image")
    assert found == Results.read(root / "out/knn.json")
    (line,) = csv.DictReader((root / "out/knn.csv").read_text().splitlines())
    assert (line["bad_train"], line["bad_test"]) == ("0", "4")
