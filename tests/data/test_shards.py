"""Sets in several tars are the folder with the same images."""

import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from data.image_files import refused
from data.test_loader import SETTINGS
from poa.data.entries import Entries, Entry
from poa.data.index import ImageIndex, open_index
from poa.data.loader import batches, read_or_next
from poa.data.webdataset import labels_beside
from poa.errors import UserError


def shard(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def by_key(files: Mapping[str, bytes], label: str) -> dict[str, bytes]:
    """The layout of WebDataset: KEY.png, and KEY.cls or KEY.json."""
    members: dict[str, bytes] = {}
    for name, content in files.items():
        of, key = name.removesuffix(".png").split("/")
        about = f"{of}\n" if label == "cls" else json.dumps({"caption": "a " + of, "Label": of})
        members |= {f"{key}.png": content, f"{key}.{label}": about.encode()}
    return members


def divided(files: Mapping[str, bytes]) -> list[dict[str, bytes]]:
    """Files in an order of their own in three parts."""
    order = sorted(files, key=lambda name: name[::-1])
    return [{name: files[name] for name in order[part::3]} for part in range(3)]


def seen(index: ImageIndex) -> tuple[object, ...]:
    images = [index.read(i) for i in range(len(index))]
    return index.classes, index.labels().tolist(), images, index.fingerprint


@pytest.mark.parametrize(
    ("layout", "named"), [("folders", "tars/{08..10}.tar"), ("cls", "tars/{08,09,10}.tar"), ("json", "tars")]
)
def test_shards_are_the_folder_with_the_same_images(
    tmp_path: Path, files: dict[str, bytes], layout: str, named: str
) -> None:
    for number, part in enumerate(divided(files), 8):
        # Keys alone sort otherwise than the classes.
        of_keys = {f"{name[:3]}/{chr(219 - ord(name[0]))}{name[4:]}": content for name, content in part.items()}
        shard(tmp_path / f"tars/{number:02}.tar", of_keys if layout == "folders" else by_key(of_keys, layout))
    for name in ("README.md", "08.parquet", "08_stats.json", ".hidden"):  # as img2dataset writes them
        (tmp_path / "tars" / name).write_text("three tars")
    folder, shards = open_index(tmp_path / "set"), open_index(tmp_path / named)
    assert seen(shards) == seen(folder)
    assert shards.ignored == ({} if layout != "json" else {".md": 1, ".parquet": 1, ".json": 1})
    assert len(list((tmp_path / "cache").glob("unfinished*"))) == 0
    for (one,), (other,) in zip(batches(folder, **SETTINGS), batches(shards, **SETTINGS), strict=True):
        assert all(map(torch.equal, one[:5], other[:5]))


def test_files_of_one_name_in_several_tars_are_told_apart(tmp_path: Path, files: dict[str, bytes]) -> None:
    parts = [{f"x/{number:03}.png": content for number, content in enumerate(part.values())} for part in divided(files)]
    for number, part in enumerate(parts):
        shard(tmp_path / f"tars/{number}.tar", part)
    index = open_index(tmp_path / "tars/{0..2}.tar")
    assert [index.name(i) for i in (0, 6, 7, 19)] == [
        f"x/0000{n}" for n in ("0-000.png", "0-006.png", "1-000.png", "2-005.png")
    ]
    assert [index.read(i) for i in range(20)] == [content for part in parts for content in part.values()]
    assert index.classes == ("x",)
    shard(tmp_path / "0.tar", {"y.jpg": b"1", "y.cls": b"a/b", "z.jpg": b"2", "z.cls": b"a"})
    shard(tmp_path / "1.tar", {"z.jpg": b"3", "z.cls": b"a"})
    index = open_index(tmp_path / "{0,1}.tar")
    assert [index.name(i) for i in range(3)] == ["a/00000-z.jpg", "a/00001-z.jpg", "a/b/00000-y.jpg"]
    assert [index.classes[label] for label in index.labels()] == ["a", "a", "a/b"]


def test_changed_shards_are_listed_again_and_damaged_members_are_passed_over(
    tmp_path: Path, files: dict[str, bytes]
) -> None:
    first, second, third = divided(files)
    for number, part in enumerate((first, second)):
        shard(tmp_path / f"tars/{number}.tar", {**part, "about.txt": b"in each"})
    assert len(open_index(tmp_path / "tars")) == 14
    damaged = min(third)
    shard(tmp_path / "tars/2.tar", {**third, damaged: b"\x89PNG\r\n\x1a\n damaged"})
    index = open_index(tmp_path / "tars")
    place = sorted(files).index(damaged)
    assert (len(index), read_or_next(index, place)[1], index.name(place)) == (20, [place], damaged)
    assert "labels" not in " ".join(index.notes)


def test_shards_that_cannot_be_used(tmp_path: Path, files: dict[str, bytes]) -> None:
    shard(tmp_path / "0.tar", files)
    os.truncate(shard(tmp_path / "1.tar", files), 2000)
    assert refused(tmp_path / "{0..3}.tar") == (
        f"2 of the 4 files that {tmp_path}/{{0..3}}.tar names do not exist, such as {tmp_path}/2.tar. Correct the "
        "numbers in its braces, or name the folder to take all tars in it."
    )
    assert "names more than 10,000 files" in refused(tmp_path / "{0..20000}.tar")
    assert f"{tmp_path}/1.tar is damaged or not a tar file" in refused(tmp_path / "{0..1}.tar")
    (tmp_path / "{a.tar").write_bytes(b"")
    assert "{b.tar does not exist" in refused(tmp_path / "{b.tar")


def test_a_label_at_a_server_that_is_away_is_not_left_out() -> None:
    class Away:
        def read(self, entry: Entry) -> bytes:
            raise UserError("away")

        parts = read

    files = Entries()
    files.append(Entry("a.cls", 1))
    with pytest.raises(UserError, match="away"):
        labels_beside(files, Away())  # type: ignore[arg-type]
