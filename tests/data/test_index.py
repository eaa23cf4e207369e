"""Images are found and read wherever they lie."""

import io
import multiprocessing
import os
import pickle
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.image_files import content, pack, same
from poa.data import archives
from poa.data.images import BadImage, decode
from poa.data.index import open_index
from poa.errors import UserError


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


def test_archives_are_read_without_positioned_reads(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.delattr(os, "pread")
    assert same(open_index(f"{pack(tmp_path / 'set', tmp_path / 'deflated.zip')}/top"), files)


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
    monkeypatch.setattr(archives, "raw_file", refuse)  # what opens tars
    with pytest.raises(UserError, match=f"Cannot read .*{kind}: Permission denied"):
        open_index(str(path))


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
    for damaged, reason in [(b"", "is truncated"), (bytes(len(whole)), "changed since")]:
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
    assert (len(index), index.classes, index.label(0), index.ignored) == (1, (), -1, {})
    assert decode(index.read(0)).size == (6, 4)


def test_five_thousand_files(tmp_path: Path) -> None:
    for i in range(5000):
        path = tmp_path / "set" / str(i % 50) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % i)
    index = open_index(str(tmp_path / "set"))
    assert len(index) == 5000
    assert all(index.read(i).decode() == Path(index.name(i)).stem for i in range(0, 5000, 7))
    assert index.fingerprint == open_index(str(tmp_path / "set")).fingerprint


def test_what_is_left_out_is_told_once(
    tmp_path: Path, files: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "set" / "notes.md").write_text("mine")
    for _ in range(2):
        open_index(str(tmp_path / "set"))
    told = f"Note: {tmp_path / 'set'}: taken as images are .png (20); other files are left out: .md (1)."
    assert caplog.messages == [told]


def test_several_sources_are_one_set(tmp_path: Path, files: dict[str, bytes]) -> None:
    """Their images follow one another; classes of one name are one; worker processes get the same."""
    (tmp_path / "more/zebra").mkdir(parents=True)
    for name in ("ant", "zebra"):
        (tmp_path / "more" / name).mkdir(exist_ok=True)
        (tmp_path / f"more/{name}/00.png").write_bytes(content(len(name) + 90))
    (tmp_path / "more/bare.png").write_bytes(content(99))
    packed = pack(tmp_path / "more", tmp_path / "plain.tar")
    first, second = open_index(tmp_path / "set"), open_index(f"{packed}/top")
    both = pickle.loads(pickle.dumps(open_index([tmp_path / "set", f"{packed}/top"])))
    assert both.classes == ("ant", "bee", "cat", "zebra")
    assert both.labels().tolist() == [*first.labels().tolist(), 0, -1, 3]
    assert [both.read(i) for i in range(23)] == [*files.values(), *(second.read(i) for i in range(3))]
    assert both.digests.tolist() == [*first.digests.tolist(), *second.digests.tolist()]
    assert (both.name(0), both.name(22)) == (f"{tmp_path}/set/ant/00.png", f"{packed}/top/zebra/00.png")
    assert both.source == f"{tmp_path}/set and {packed}/top"
    limited = open_index((str(tmp_path / "set"), f"{packed}/top"), limit=5)
    assert (len(limited), sorted(limited.labels().tolist())) == (5, [-1, 0, 1, 2, 3])
    assert open_index([tmp_path / "set"]).fingerprint == first.fingerprint
    with pytest.raises(UserError, match="set is named twice, so each of its images would count twice"):
        open_index([tmp_path / "set", f"{tmp_path}/set/"])
    with pytest.raises(UserError, match="No images are named"):
        open_index([])
