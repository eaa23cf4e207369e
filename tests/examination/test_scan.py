import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from poa.data.index import ImageIndex, open_index
from poa.errors import UserError
from poa.examination import scan as scanning
from poa.examination.measures import RECORD
from poa.examination.scan import CHUNK, folder_of, scan
from poa.files import one_writer


def quiet(*_: object) -> None:
    pass


@pytest.fixture
def index(tmp_path: Path) -> ImageIndex:
    """Some images, of which the first and the fiftieth cannot be read."""
    folder = tmp_path / "set"
    folder.mkdir()
    digits = open_index("digits")
    for i in range(3 * CHUNK):
        (folder / f"{i:03d}.png").write_bytes(b"no image" if i in (0, 50) else digits.read(i))
    return open_index(folder, cache=tmp_path / "cache")


def read_numbers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The images that are read from now on."""
    read: list[int] = []
    original = scanning._look

    def look(index: ImageIndex, i: int) -> scanning.Measured:
        read.append(i)
        return original(index, i)

    monkeypatch.setattr(scanning, "_look", look)
    return read


def test_a_stopped_scan_resumes(index: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done > CHUNK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(index, workers=0, progress=stop)
    for name, rest in ("records.bin", b"half a record"), ("reasons.jsonl", b"[64, half a line"):
        with (folder_of(index) / name).open("ab") as file:
            file.write(rest)
    read = read_numbers(monkeypatch)
    found = scan(index, workers=0, progress=quiet)
    assert read == list(range(2 * CHUNK, 3 * CHUNK))
    assert len(found.records) == 3 * CHUNK
    assert set(found.reasons) == {0, 50}
    assert [each for each in range(96) if found.records["state"][each]] == [0, 50]
    again = scan(index, workers=0, progress=quiet)
    assert len(read) == CHUNK
    assert again.records.tobytes() == found.records.tobytes()


def test_a_changed_file_is_measured_again(index: ImageIndex, tmp_path: Path) -> None:
    before = scan(index, workers=0, progress=quiet)
    (tmp_path / "set" / "000.png").write_bytes(index.read(1))
    after = scan(open_index(tmp_path / "set", cache=tmp_path / "cache"), workers=0, progress=quiet)
    assert (before.records["state"][0], after.records["state"][0]) == (1, 0)


def test_other_processes_can_make_the_chunks(index: ImageIndex) -> None:
    plan = pickle.loads(pickle.dumps(scanning._Chunks(index, start=CHUNK + 1)))
    assert [len(plan.make(number)) for number in range(len(plan))] == [CHUNK, CHUNK - 1]
    assert np.stack([each.record for each in plan.make(0)]).dtype == RECORD


def test_one_process_at_a_time(index: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "one_writer", partial(one_writer, patience=0))
    with one_writer(folder_of(index)), pytest.raises(UserError, match="is in use by"):
        scan(index, workers=0, progress=quiet)
