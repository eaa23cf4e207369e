"""Images that cannot be read: listed once, and counted from each start on, over all processes."""

from pathlib import Path
from unittest.mock import Mock

import pytest

from poa.errors import UserError
from poa.pretraining.bad import BadImages, most_bad


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Mock:
    monkeypatch.setattr("poa.pretraining.bad.why_bad", lambda *_: "damaged")
    index = Mock(__len__=lambda _: 100)
    index.name = lambda number: f"{number}.png"
    return index


def test_most_bad() -> None:
    assert [most_bad(50, share=share) for share in (0.0, 0.001, 0.1)] == [0, 1, 5]


def test_each_is_listed_once_and_told_once(index: Mock, tmp_path: Path) -> None:
    bad = BadImages(index, tmp_path / "bad.txt", share=0.03)
    assert bad.add([]) is None
    assert bad.add([5, 2]) == f"Images that cannot be read are skipped: 2 so far, listed in {tmp_path / 'bad.txt'}"
    assert bad.add([2]) is None
    assert (tmp_path / "bad.txt").read_text() == "2.png\tdamaged\n5.png\tdamaged\n"


def test_those_of_before_count_only_if_they_are_still_bad(index: Mock, tmp_path: Path) -> None:
    BadImages(index, tmp_path / "bad.txt", share=0.02).add([1, 2])
    bad = BadImages(index, tmp_path / "bad.txt", share=0.02)
    bad.add([3])
    bad.add([1])
    with pytest.raises(UserError, match=r"3 of 100 images cannot be read, more than the allowed share of 2\.0%"):
        bad.add([2])
    assert len((tmp_path / "bad.txt").read_text().splitlines()) == 3


def test_those_of_other_processes_count(index: Mock, tmp_path: Path) -> None:
    one, other = (BadImages(index, tmp_path / "bad.txt", share=0.02) for _ in range(2))
    one.add([1, 2])
    with pytest.raises(UserError, match="3 of 100 images"):
        other.add([3])
