"""Files and folders are there whole or not at all."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from poa.errors import UserError
from poa.files import whole_file, whole_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def limited_size(num_bytes: int) -> Iterator[None]:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def interrupted_file(path: Path, error: type[BaseException]) -> None:
    with whole_file(path) as temporary:
        temporary.write_text("half")
        raise error


def interrupted_folder(folder: Path, error: type[BaseException]) -> None:
    with whole_folder(folder) as temporary:
        (temporary / "new").touch()
        raise error


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_appears_when_it_is_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "new/folder/a.txt"
    for text in ("first", "second"):
        with whole_file(path, durable=durable) as temporary:
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
        assert names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error):
        interrupted_file(path, error)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]
    with pytest.raises(error), whole_file(path):
        raise error  # before anything is written


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "new/model"
    for text in ("first", "second"):
        with whole_folder(folder) as temporary:
            (temporary / f"{text}.txt").write_text(text)
            assert not folder.exists() or names(folder) == ["first.txt"]
        assert names(folder) == [f"{text}.txt"]
        assert names(folder.parent) == ["model"]


@pytest.mark.parametrize("error", [UserError, KeyboardInterrupt])
def test_an_error_leaves_the_old_folder(tmp_path: Path, error: type[BaseException]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(error):
        interrupted_folder(folder, error)
    assert names(tmp_path) == ["model"]
    assert names(folder) == ["old"]


def test_the_current_folder_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with whole_folder(Path()) as temporary:
        (temporary / "new").touch()
    assert names(Path()) == ["new"]
    assert names(tmp_path) == ["here"]


def test_what_a_kill_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / ".model.tmp").mkdir()
    (tmp_path / ".model.tmp/half").touch()
    with whole_folder(tmp_path / "model") as temporary:
        (temporary / "new").touch()
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["new"]


def test_a_full_disk_is_told_by_the_name_of_the_folder(tmp_path: Path) -> None:
    told = rf"^{tmp_path}/model cannot be written: File too large\. Choose another folder"
    with limited_size(1000), pytest.raises(UserError, match=told), whole_folder(tmp_path / "model") as temporary:
        (temporary / "big").write_bytes(bytes(2000))
    assert names(tmp_path) == []


def test_a_folder_in_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="model cannot be written: Not a directory"),
        whole_folder(tmp_path / "file/model"),
    ):
        pytest.fail("nothing to write to")
