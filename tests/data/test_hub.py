"""Sets of the Hugging Face hub; a stand-in takes the hub's place."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from data.image_files import same
from data.test_parquet import as_huggingface, write_parquet
from poa.data import hub
from poa.data.index import open_index
from poa.errors import UserError

ANSWER: Any = SimpleNamespace(headers={}, status_code=404, request=None)


class ConnectError(Exception):
    """What the client raises is no OSError."""


@pytest.fixture
def asked(tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the stand-in was asked for; it has ``me/set``, and ``old``, of which the hub made Parquet files."""
    calls: list[Any] = []
    table = as_huggingface(files)
    write_parquet(table, tmp_path / "me/set/None/data/train-00000-of-00001.parquet")
    write_parquet(table[:4], tmp_path / "me/set/None/data/test-00000-of-00001.parquet")
    write_parquet(table[:7], tmp_path / "me/set/v1/data/train-00000-of-00001.parquet")
    write_parquet(table[:5], tmp_path / "old/refs/convert/parquet/default/train/0000.parquet")
    (tmp_path / "old/None").mkdir(parents=True)
    shutil.copytree(tmp_path / "old/None", tmp_path / "zips/None")
    (tmp_path / "old/None/images.zip").touch()
    (tmp_path / "zips/None/images.zip").touch()

    class Api:
        def dataset_info(self, name: str, revision: str | None, timeout: float) -> Any:
            calls.append((name, revision))
            if not (tmp_path / name).is_dir():
                raise RepositoryNotFoundError("401 Client Error", response=ANSWER)
            root = tmp_path / name / str(revision)
            if not root.is_dir():
                raise RevisionNotFoundError("404 Client Error", response=ANSWER)
            names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
            return SimpleNamespace(sha=str(revision), siblings=[SimpleNamespace(rfilename=name) for name in names])

    def download(name: str, *, repo_type: str, revision: str, allow_patterns: list[str]) -> str:
        assert repo_type == "dataset"
        calls.append(allow_patterns)
        return str(tmp_path / name / revision)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


def test_a_set_of_the_hub_is_fetched_once(tmp_path: Path, files: dict[str, bytes], asked: list[Any]) -> None:
    index = open_index("hf:me/set:train")
    assert asked == [("me/set", None), ["data/train-00000-of-00001.parquet"]]
    assert same(index, files)
    assert index.identity.text == open_index(tmp_path / "set").identity.text
    assert index.source == "hf:me/set:train"
    assert any("revision None, images are taken from column image" in note for note in index.notes)
    assert open_index("hf:me/set:train").folder == index.folder
    assert len(asked) == 2
    assert [len(open_index(name)) for name in ("hf:me/set:test", "hf:me/set@v1", "hf:old")] == [4, 7, 5]
    assert asked[-3:] == [("old", None), ("old", hub.CONVERTED), ["default/train/0000.parquet"]]


def test_sets_that_cannot_be_fetched(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for data, said in {
        "hf:": "names no set: give hf:OWNER/NAME",
        "hf:me/set": "hf:me/set has several parts: test, train. Name the one to take, such as hf:me/set:test",
        "hf:me/set:val": "There is no part 'val' in hf:me/set",
        "hf:nobody/set": r"There is no set of images 'nobody/set' on the hub, or .*401",
        "hf:me/set@v2": r"hf:me/set@v2 cannot be fetched from the hub \(Revision.* Check the name",
        "hf:zips": r"hf:zips has no Parquet files, .* it has .zip \(1\)",
    }.items():
        with pytest.raises(UserError, match=said):
            open_index(data)

    def away(*_: Any, **__: Any) -> None:
        raise ConnectError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", away)
    with pytest.raises(UserError, match=r"cannot be fetched from the hub \(ConnectError: no route\)\. Check the conn"):
        open_index("hf:me/set:train")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set, and it was not fetched before"):
        open_index("hf:me/set:train")
