"""Labels of an index, and some of its images chosen evenly."""

from pathlib import Path

import numpy as np
import pytest

from data.image_files import content, pack
from poa.data.index import open_index
from poa.data.sampler import spread
from poa.errors import UserError


def test_limit_takes_turns_between_classes(tmp_path: Path, files: dict[str, bytes]) -> None:
    for limit, counts in {
        1: [1, 0, 0],
        3: [1, 1, 1],
        8: [2, 3, 3],
        9: [2, 4, 3],
        15: [2, 5, 8],
        20: [2, 5, 13],
    }.items():
        index = open_index(str(tmp_path / "set"), limit=limit)
        assert len(index) == limit
        assert np.bincount(index.labels(), minlength=3).tolist() == counts
        assert index.classes == ("ant", "bee", "cat")
        assert all(index.read(i) == files[index.name(i)] for i in range(limit))
        again = open_index(str(tmp_path / "set"), limit=limit, cache=tmp_path / "other")
        assert [again.name(i) for i in range(limit)] == [index.name(i) for i in range(limit)]


def test_spread_is_even_inside_a_class_and_without_labels() -> None:
    chosen = spread(np.full(1000, -1), 100)
    assert (chosen // 10).tolist() == list(range(100))
    assert len(set((chosen % 10).tolist())) > 5  # not always the same place, lest a rhythm of the list is met
    labels = np.arange(1000) % 2
    chosen = spread(labels, 20)
    assert all((chosen[labels[chosen] == label] // 100).tolist() == list(range(10)) for label in (0, 1))


def test_spread_chooses_each_image_once() -> None:
    chance = np.random.default_rng(0)
    for _ in range(50):
        labels = chance.integers(-1, 6, 60)
        limit = int(chance.integers(1, 61))
        chosen = spread(labels, limit)
        assert len(chosen) == limit
        assert (np.diff(chosen) > 0).all()
        counts, sizes = (np.bincount(values + 1, minlength=7) for values in (labels[chosen], labels))
        assert (counts[counts < sizes] >= counts.max() - 1).all()  # who gives less than the most, by two, is used up


@pytest.mark.parametrize(
    ("limit", "words"), [(0, "at least 1, got 0"), (-3, "got -3"), (21, "more than the number of images")]
)
def test_bad_limits(tmp_path: Path, files: dict[str, bytes], limit: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_index(str(tmp_path / "set"), limit=limit)


def test_required_labels(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(UserError, match="have no labels: put the images of each class into a folder"):
        open_index(str(tmp_path / "set" / "ant")).require_labels()
    with pytest.raises(UserError, match="same label 'top'"):
        open_index(str(pack(tmp_path / "set", tmp_path / "stored.zip"))).require_labels()
    (tmp_path / "set" / "stray.png").write_bytes(content(0))
    index = open_index(str(tmp_path / "set"))
    assert (index.classes, index.label(20)) == (("ant", "bee", "cat"), -1)
    with pytest.raises(UserError, match=r"1 of 21 images in .* have no label, such as 'stray.png'"):
        index.require_labels()
