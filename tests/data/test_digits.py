from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from poa.data.images import decode
from poa.data.index import ImageIndex, open_index
from poa.errors import UserError


def digits(part: str, cache: Path) -> ImageIndex:
    return open_index(f"digits{part}", cache=cache)


def test_digits_are_those_of_scikit_learn(tmp_path: Path) -> None:
    index = digits("", tmp_path)
    real = load_digits()
    assert len(index) == 1797
    assert index.classes == tuple("0123456789")
    for i in range(0, len(index), 50):
        number = int(Path(index.name(i)).stem)
        pixels = np.asarray(decode(index.read(i)))
        assert pixels.shape == (8, 8, 3)
        np.testing.assert_array_equal(np.rint(pixels[:, :, 1] * (16 / 255)), real.images[number])
        assert index.label(i) == real.target[number]


def test_ink_uses_the_whole_range(tmp_path: Path) -> None:
    index = digits("/test", tmp_path)
    pixels = np.stack([np.asarray(decode(index.read(i))) for i in range(20)])
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_parts_are_balanced_and_share_nothing(tmp_path: Path) -> None:
    train, test = digits("/train", tmp_path), digits("/test", tmp_path)
    names = [{index.name(i) for i in range(len(index))} for index in (train, test)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 1797
    share = np.bincount(test.labels()) / (np.bincount(train.labels()) + np.bincount(test.labels()))
    assert share.min() > 0.24
    assert share.max() <= 0.25


def test_parts_stay_the_same(tmp_path: Path) -> None:
    first, second = digits("/test", tmp_path / "a"), digits("/test/", tmp_path / "b")
    assert first.fingerprint == second.fingerprint != digits("/train", tmp_path / "a").fingerprint
    assert [first.name(i) for i in range(3)] == ["0/0030.png", "0/0055.png", "0/0101.png"]


def test_unknown_part_points_to_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'train'"):
        digits("/traim", tmp_path)
