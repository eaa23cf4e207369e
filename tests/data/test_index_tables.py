"""The table of an index is stored, found again, and made anew when the images have changed."""

import logging
import os
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from data.image_files import pack, same
from poa.data import table
from poa.data.images import IMAGE_ENDINGS
from poa.data.index import ImageIndex, open_index
from poa.data.table import Table
from poa.errors import UserError


def test_second_opening_reuses_the_table(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(tmp_path / "set")
    told: list[tuple[str, int, int | None]] = []
    first = open_index(data, progress=lambda *count: told.append(count))
    assert told == [("images indexed", 20, 20)]

    scan = os.scandir
    walked: list[Path] = []

    def watched(path: Path) -> object:
        walked.append(Path(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", watched)
    again = open_index(data, progress=lambda *count: told.append(count))
    assert len(told) == 1
    assert {path for path in walked if path.is_relative_to(data)} == {Path(data)}  # where its kind is seen
    assert (again.fingerprint, again.folder) == (first.fingerprint, first.folder)
    assert same(again, files)
    monkeypatch.setattr(table, "_AT_ONCE", 6)
    assert list(Table.load(first.folder).paths()) == [f"{data}/{first.name(i)}" for i in range(20)]


def age(folder: Path) -> None:
    """Make a folder look old, lest a change within one tick of the file system's clock goes unseen."""
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (1_000_000_000, 1_000_000_000))


@pytest.mark.parametrize("change", ["add", "remove", "add folder", "remove folder"])
def test_changed_folder_is_listed_again(tmp_path: Path, files: dict[str, bytes], change: str) -> None:
    data = tmp_path / "set"
    age(data)
    old = open_index(str(data))
    assert len(old) == 20
    if change == "add":
        (data / "ant" / "new.png").write_bytes(b"x")
    elif change == "remove":
        (data / "ant" / "00.png").unlink()
    elif change == "add folder":
        (data / "dog").mkdir()
        (data / "dog" / "new.png").write_bytes(b"x")
    else:
        shutil.rmtree(data / "ant")
    assert len(open_index(str(data))) == {"add": 21, "remove": 19, "add folder": 21, "remove folder": 18}[change]
    assert len(old) == 20  # the table of a run under way stays as it is
    assert pickle.loads(pickle.dumps(old)).name(19) == "cat/12.png"


@pytest.mark.parametrize("kind", ["stored.zip", "plain.tar", "list.txt"])
def test_changed_archive_or_list_is_listed_again(tmp_path: Path, files: dict[str, bytes], kind: str) -> None:
    def write(number: int) -> str:
        if kind == "list.txt":
            (tmp_path / "set" / kind).write_text("".join(f"{name}\n" for name in list(files)[:number]))
            return str(tmp_path / "set" / kind)
        for name in list(files)[number:]:
            (tmp_path / "set" / name).unlink()
        return str(pack(tmp_path / "set", tmp_path / kind))

    assert len(open_index(write(20))) == 20
    assert len(open_index(write(17))) == 17


def test_damaged_table_is_made_anew(tmp_path: Path, files: dict[str, bytes]) -> None:
    folder = open_index(str(tmp_path / "set")).folder
    for name in ("names.npy", "records.npy", "meta.json", "stamps.json", "sizes.json"):
        for damage in (b"rubbish", b"", b"[]", (folder / name).read_bytes()[:-1]):
            (folder / name).write_bytes(damage)
            assert same(open_index(str(tmp_path / "set")), files)
        (folder / name).unlink()
        assert same(open_index(str(tmp_path / "set")), files)
    (folder / "blob.bin").write_bytes(b"rubbish")  # where embedded images are
    assert same(open_index(str(tmp_path / "set")), files)
    assert (folder / "blob.bin").read_bytes() == b""


def test_cache_holds_nothing_unfinished_and_forgets_old_tables(
    tmp_path: Path, files: dict[str, bytes], cache: Path
) -> None:
    data = str(tmp_path / "set")
    age(tmp_path / "set")
    old = open_index(data).folder
    (cache / "unfinished-0").mkdir()
    os.utime(old, (0, 0))
    os.utime(cache / "unfinished-0", (0, 0))
    (tmp_path / "set" / "new.png").write_bytes(b"x")
    new = open_index(data).folder
    assert list(cache.iterdir()) == [new]


def test_cache_argument_wins(tmp_path: Path, files: dict[str, bytes], cache: Path) -> None:
    index = open_index(str(tmp_path / "set"), cache=tmp_path / "mine")
    assert index.folder.parent == tmp_path / "mine"
    assert not cache.exists()


def test_unwritable_cache_is_done_without(
    tmp_path: Path, files: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        index = open_index(str(tmp_path / "set"), cache=tmp_path / "file" / "cache")
    assert same(index, files)
    assert "set POA_CACHE" in caplog.text


def test_user_without_home(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.delenv("POA_CACHE")
    monkeypatch.setattr(Path, "home", homeless)
    with caplog.at_level(logging.WARNING):
        assert same(open_index(str(tmp_path / "set")), files)
    assert "no home" in caplog.text


def test_full_disk_is_the_users_to_mend(
    tmp_path: Path, files: dict[str, bytes], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: object, array: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", refuse)
    with pytest.raises(UserError, match="No space left on device"):
        open_index(str(tmp_path / "set"))
    assert list(cache.iterdir()) == []


def test_many_may_build_the_same_table_at_once(tmp_path: Path, files: dict[str, bytes], cache: Path) -> None:
    indexes: list[ImageIndex] = []
    threads = [threading.Thread(target=lambda: indexes.append(open_index(str(tmp_path / "set")))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(indexes) == 8
    assert all(same(index, files) for index in indexes)
    assert len(list(cache.iterdir())) == 1


def test_new_readers_find_images(tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set" / "new.fake").write_bytes(b"photo")
    before = open_index(tmp_path / "set")
    assert before.ignored == {".fake": 1}
    monkeypatch.setattr("poa.data.sources.IMAGE_ENDINGS", IMAGE_ENDINGS | {".fake"})
    monkeypatch.setattr("poa.data.index.OPTIONAL_FORMATS", ("AVIF", "FAKE"))
    after = open_index(tmp_path / "set")
    assert (len(before), len(after)) == (20, 21)
