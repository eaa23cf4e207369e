import io
import logging
import multiprocessing
import os
import pickle
import shutil
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from poa.data.images import BadImage, decode
from poa.data.index import ImageIndex, open_index, spread
from poa.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def content(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (4 + number % 5, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """Three classes of 2, 5 and 13 images in the folder ``set``."""
    names = [f"{name}/{i:02d}.png" for name, size in (("ant", 2), ("bee", 5), ("cat", 13)) for i in range(size)]
    images = {name: content(number) for number, name in enumerate(names)}
    for name, encoded in images.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(encoded)
    return images


def pack(folder: Path, path: Path) -> Path:
    """Pack a folder; the ending of the path says how."""
    members = sorted(folder.rglob("*"), reverse=True)
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as archive:
            for member in members:
                archive.add(member, f"./top/{member.relative_to(folder)}", recursive=False)
        return path
    compression = zipfile.ZIP_DEFLATED if "deflated" in path.name else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", compression) as zipped:
        for member in members:
            zipped.write(member, f"top/{member.relative_to(folder)}")
    return path


def same(index: ImageIndex, images: dict[str, bytes]) -> bool:
    """Compare in shuffled order: random access must not depend on what was read before."""
    order = np.random.default_rng(0).permutation(len(index))
    return {index.name(i): index.read(i) for i in order.tolist()} == images


@pytest.mark.parametrize("kind", ["folder", "stored.zip", "deflated.zip", "plain.tar", "list.txt", "list.csv"])
def test_random_access_equals_the_files(tmp_path: Path, files: dict[str, bytes], kind: str) -> None:
    data = tmp_path / "set"
    if kind.endswith((".zip", ".tar")):
        data = pack(data, tmp_path / kind) / "top"
    elif kind.startswith("list"):
        data = data / kind
        data.write_text("".join(f"{name}{',' + name[:3] if kind == 'list.csv' else ''}\n" for name in files))
    index = open_index(str(data))
    assert same(index, files)
    assert index.classes == ("ant", "bee", "cat")
    assert index.labels().tolist() == [0] * 2 + [1] * 5 + [2] * 13
    assert [index.label(i) for i in range(20)] == index.require_labels().tolist()
    assert index.labels().dtype == np.int64


def test_the_same_images_have_the_same_fingerprint_wherever_they_lie(tmp_path: Path, files: dict[str, bytes]) -> None:
    folder = open_index(str(tmp_path / "set"))
    archive = open_index(f"{pack(tmp_path / 'set', tmp_path / 'deflated.zip')}/top")
    assert folder.fingerprint == archive.fingerprint
    (tmp_path / "set" / "bee" / "00.png").rename(tmp_path / "set" / "bee" / "99.png")
    renamed = open_index(str(tmp_path / "set"))
    assert renamed.fingerprint != folder.fingerprint
    assert (
        len({renamed.fingerprint, *(open_index(str(tmp_path / "set"), limit=n).fingerprint for n in (5, 6, 20))}) == 3
    )


def test_a_zip_with_something_before_it(tmp_path: Path, files: dict[str, bytes]) -> None:
    path = pack(tmp_path / "set", tmp_path / "stored.zip")
    path.write_bytes(b"#!/bin/sh\nexit\n" + path.read_bytes())
    assert same(open_index(f"{path}/top"), files)


def test_a_zip_with_extra_fields_and_streamed_entries(tmp_path: Path, files: dict[str, bytes]) -> None:
    class Pipe(io.RawIOBase):
        def __init__(self, path: Path) -> None:
            self.file = path.open("wb")

        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            return self.file.write(data)

        def close(self) -> None:
            self.file.close()

    with Pipe(tmp_path / "set.zip") as pipe, zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, encoded in files.items():
            info = zipfile.ZipInfo(name)
            info.extra = b"\xfe\xca\x04\x00abcd"
            archive.writestr(info, encoded)
    assert same(open_index(str(tmp_path / "set.zip")), files)


def test_second_opening_reuses_the_table(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(tmp_path / "set")
    told: list[int] = []
    first = open_index(data, progress=told.append)
    assert told[-1] == 20

    scan = os.scandir
    walked: list[Path] = []

    def watched(path: Path) -> object:
        walked.append(Path(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", watched)
    again = open_index(data, progress=told.append)
    assert told == [20]
    assert not any(path.is_relative_to(data) for path in walked)
    assert (again.fingerprint, again.folder) == (first.fingerprint, first.folder)
    assert same(again, files)


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
    for name in ("names.npy", "records.npy", "meta.json", "stamps.json"):
        (folder / name).write_bytes(b"rubbish")
        assert same(open_index(str(tmp_path / "set")), files)
        (folder / name).unlink()
        assert same(open_index(str(tmp_path / "set")), files)


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


def test_unreadable_folder_is_named(tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def guarded(path: Path) -> object:
        if Path(path).name == "bee":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(UserError, match=r"Cannot read .*set/bee: Permission denied\. .*chmod u\+r"):
        open_index(str(tmp_path / "set"))


@pytest.mark.parametrize("kind", ["stored.zip", "plain.tar", "list.txt"])
def test_unreadable_file_is_named(
    tmp_path: Path, files: dict[str, bytes], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / kind
    path.write_text("x.png") if kind == "list.txt" else pack(tmp_path / "set", path)

    def refuse(file: object, *args: object, **options: object) -> object:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(io, "open", refuse)  # what Path.open and zipfile call
    with pytest.raises(UserError, match=f"Cannot read .*{kind}: Permission denied"):
        open_index(str(path))


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


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("data", "start"), [("set", "fork"), ("deflated.zip", "fork"), ("plain.tar", "fork"), ("deflated.zip", "spawn")]
)
def test_other_processes_read_the_same(tmp_path: Path, files: dict[str, bytes], data: str, start: str) -> None:
    if data != "set":
        pack(tmp_path / "set", tmp_path / data)
    index = open_index(str(tmp_path / data), limit=15)
    here = [index.read(i) for i in range(15)]  # opens the archive, so that a fork inherits it
    with multiprocessing.get_context(start).Pool(2) as pool:
        assert pool.map(index.read, list(range(15)) * 4, chunksize=3) == here * 4
    copy = pickle.loads(pickle.dumps(index))
    assert (copy.fingerprint, copy.name(7), len(copy)) == (index.fingerprint, index.name(7), 15)


def test_threads_do_not_disturb_one_another(tmp_path: Path, files: dict[str, bytes]) -> None:
    index = open_index(f"{pack(tmp_path / 'set', tmp_path / 'deflated.zip')}/top")
    right: list[bool] = []

    def work(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(20).tolist() * 20
        right.append(all(index.read(i) == files[index.name(i)] for i in order))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 4


def test_pickle_is_small(tmp_path: Path) -> None:
    for i in range(300):
        (tmp_path / f"{i}.jpg").write_bytes(b"x")
    index = open_index(str(tmp_path))
    index.read(0)
    assert len(pickle.dumps(index)) < 300


def test_open_files_are_closed_with_the_index(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = pack(tmp_path / "set", tmp_path / "stored.zip")
    index = open_index(str(path))
    opened: list[int] = []
    closed: list[int] = []
    real_open, real_close = os.open, os.close

    def watched_open(*args: Any) -> int:
        opened.append(real_open(*args))
        return opened[-1]

    def watched_close(descriptor: int) -> None:
        closed.append(descriptor)
        real_close(descriptor)

    monkeypatch.setattr(os, "open", watched_open)
    monkeypatch.setattr(os, "close", watched_close)
    index.read(0)
    index.read(1)
    assert (len(opened), closed) == (1, [])
    del index
    assert closed == opened


def test_vanished_and_damaged_files_are_bad_images(tmp_path: Path, files: dict[str, bytes]) -> None:
    index = open_index(str(tmp_path / "set"))
    (tmp_path / "set" / index.name(3)).unlink()
    with pytest.raises(BadImage, match="No such file"):
        index.read(3)
    path = pack(tmp_path / "set", tmp_path / "deflated.zip")
    index = open_index(str(path))
    whole = path.read_bytes()
    for damaged, reason in [(b"", "ends before"), (bytes(len(whole)), "changed since")]:
        path.write_bytes(damaged)
        with pytest.raises(BadImage, match=reason):
            index.read(3)
    first_byte = 30 + len("top/cat/12.png")  # of the entry that the archive begins with
    path.write_bytes(whole[:first_byte] + b"\xff" * 20 + whole[first_byte + 20 :])
    with pytest.raises(BadImage, match="damaged in"):
        index.read(len(index) - 1)


def test_no_image_outside_the_index(tmp_path: Path, files: dict[str, bytes]) -> None:
    for index in (open_index(str(tmp_path / "set")), open_index(str(tmp_path / "set"), limit=5)):
        for i in (-1, len(index)):
            with pytest.raises(IndexError):
                index.name(i)


def test_one_image_is_a_set(tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "a.png").write_bytes(content(0))
    index = open_index(str(tmp_path / "only"), limit=1)
    assert (len(index), index.classes, index.label(0), index.num_ignored) == (1, (), -1, 0)
    assert decode(index.read(0)).size == (6, 4)


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
    ("limit", "words"), [(0, "at least 1, got 0"), (-3, "got -3"), (21, "more than the 20 images")]
)
def test_bad_limits(tmp_path: Path, files: dict[str, bytes], limit: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_index(str(tmp_path / "set"), limit=limit)


def test_required_labels(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(UserError, match="have no labels: put those of a class into a folder"):
        open_index(str(tmp_path / "set" / "ant")).require_labels()
    with pytest.raises(UserError, match="one label 'top'"):
        open_index(str(pack(tmp_path / "set", tmp_path / "stored.zip"))).require_labels()
    (tmp_path / "set" / "stray.png").write_bytes(content(0))
    index = open_index(str(tmp_path / "set"))
    assert (index.classes, index.label(20)) == (("ant", "bee", "cat"), -1)
    with pytest.raises(UserError, match=r"1 of 21 images in .* have no label, such as 'stray.png'"):
        index.require_labels()


def test_five_thousand_files(tmp_path: Path) -> None:
    for i in range(5000):
        path = tmp_path / "set" / str(i % 50) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % i)
    index = open_index(str(tmp_path / "set"))
    assert len(index) == 5000
    assert all(index.read(i).decode() == Path(index.name(i)).stem for i in range(0, 5000, 7))
    assert index.fingerprint == open_index(str(tmp_path / "set")).fingerprint
