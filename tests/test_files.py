"""Files and folders are there whole or not at all."""

import errno
import os
import re
import resource
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from poa import files
from poa.errors import UserError
from poa.files import one_writer, whole_file, whole_folder, working_folder


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


def test_what_a_kill_left_long_ago_is_removed(tmp_path: Path) -> None:
    for left in (".model.tmp", ".model.0123abcd.tmp", ".a[b].0123abcd.tmp", ".model.recent.tmp", ".other.tmp"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "half").touch()
        if "recent" not in left:
            os.utime(tmp_path / left, (0, 0))
    with whole_folder(tmp_path / "model") as temporary:
        (temporary / "new").touch()
    with whole_file(tmp_path / "a[b]") as file:
        file.touch()
    assert names(tmp_path) == [".model.recent.tmp", ".other.tmp", "a[b]", "model"]
    assert names(tmp_path / "model") == ["new"]


def test_a_working_folder_is_removed(tmp_path: Path) -> None:
    def interrupted() -> None:
        with working_folder(tmp_path / "place") as work:
            (work / "half").write_text("a file")
            assert names(tmp_path) == [work.name]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == []


def test_two_may_write_the_same_at_once(tmp_path: Path) -> None:
    with whole_file(tmp_path / "a") as first, whole_file(tmp_path / "a") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a").read_text() == "first"  # which ended last
    with whole_folder(tmp_path / "b") as one, whole_folder(tmp_path / "b") as other:
        (one / "one").touch()
        (other / "other").touch()
    assert names(tmp_path / "b") == ["one"]
    assert names(tmp_path) == ["a", "b"]


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    told = rf"^{tmp_path} is in use by process {os.getpid()} on {re.escape(socket.gethostname())} since 20[-0-9 :]+\."
    with one_writer(tmp_path), pytest.raises(UserError, match=told), one_writer(tmp_path, patience=0):
        pytest.fail("two hold one lock")
    (tmp_path / files.LOCK).write_text("process 1, which has ended, and only its file is left\n" * 9)
    with one_writer(tmp_path):
        assert (tmp_path / files.LOCK).read_text().startswith(f"process {os.getpid()} on ")
        assert (tmp_path / files.LOCK).read_text().count("\n") == 1


def test_a_folder_that_its_writer_removed_has_one_writer_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waited for it holds the lock of the new folder, not that of a file which nobody finds any more."""
    folder = tmp_path / "work"
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(one_writer(folder))

        def remove_and_end(_: float) -> None:
            shutil.rmtree(folder)
            first.close()

        monkeypatch.setattr(files.time, "sleep", remove_and_end)
        second.enter_context(one_writer(folder))
        with pytest.raises(UserError, match="is in use by process"), one_writer(folder, patience=0):
            pytest.fail("two hold one lock")


def test_a_file_system_without_locks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files, "_lock", refuse)
    with one_writer(tmp_path):
        assert f"Files in {tmp_path} cannot be locked (No locks available)" in caplog.text


def test_windows_opens_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def open_as_windows(path: Path, flags: int) -> int:
        if path.is_dir():
            raise PermissionError(13, "Permission denied")
        return opened(path, flags)

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "open", open_as_windows)
    with whole_file(tmp_path / "a", durable=True) as temporary:
        temporary.write_text("whole")
    assert names(tmp_path) == ["a"]


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
