"""Parquet and Arrow files, and sets that `datasets` has saved, are folders of images."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pytest
from pyarrow import ipc, parquet

from data.image_files import same
from poa.data import rows
from poa.data.entries import Entry
from poa.data.images import BadImage
from poa.data.index import open_index
from poa.data.parquet import list_rows
from poa.data.sources import resolve
from poa.errors import UserError

CLASSES = ["cat", "bee", "ant"]
FEATURES = {"image": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}


def as_huggingface(files: dict[str, bytes], *, order: int = 0) -> arrow.Table:
    """A table as `datasets` writes it, its rows in an order of their own."""
    names = np.random.default_rng(order).permutation(list(files)).tolist()
    images = [{"bytes": files[name], "path": name.split("/")[1]} for name in names]
    table = arrow.table({"image": images, "label": [CLASSES.index(name[:3]) for name in names]})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": FEATURES}})})


def write_stream(table: arrow.Table, path: Path) -> None:
    with ipc.new_stream(path, table.schema) as file:
        file.write_table(table, max_chunksize=6)


def write_arrow(table: arrow.Table, path: Path) -> None:
    with ipc.new_file(path, table.schema, options=ipc.IpcWriteOptions(compression="lz4")) as file:
        file.write_table(table, max_chunksize=6)


def write_parquet(table: arrow.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=6)


@pytest.mark.parametrize(
    ("name", "write"), [("a.parquet", write_parquet), ("a.arrow", write_stream), ("a.feather", write_arrow)]
)
def test_a_table_is_the_folder_with_the_same_images(
    tmp_path: Path, files: dict[str, bytes], name: str, write: Callable[[arrow.Table, Path], None]
) -> None:
    write(as_huggingface(files), tmp_path / name)
    folder, index = open_index(tmp_path / "set"), open_index(tmp_path / name)
    assert [index.name(i) for i in range(20)] == [folder.name(i) for i in range(20)]
    assert index.classes == folder.classes == ("ant", "bee", "cat")
    assert index.labels().tolist() == folder.labels().tolist()
    assert index.identity.text == folder.identity.text
    assert same(index, files)
    assert f"{tmp_path / name}: images are taken from column image, labels from column label." in index.notes


def test_few_row_groups_stay_in_memory(
    tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(as_huggingface(files), tmp_path / "a.parquet")
    place = list_rows(resolve(tmp_path / "a.parquet"), lambda _: None).place
    assert place is not None
    table = as_huggingface(files)["image"].to_pylist()
    groups = [sum(len(each["bytes"]) for each in table[start : start + 6]) for start in (0, 6, 12, 18)]
    assert (place.files, place.largest) == ({str(tmp_path / "a.parquet"): [6, 6, 6, 2]}, max(groups))
    asked: list[int] = []
    opened = rows.open_rows(tmp_path / "a.parquet")

    def read(number: int, columns: list[str]) -> Any:
        asked.append(number)
        assert columns == ["image.bytes"]
        return opened.read(number, columns)

    monkeypatch.setattr(rows, "open_rows", lambda _: opened._replace(read=read))
    monkeypatch.setattr(rows, "MOST_BYTES", 2 * place.largest)
    images = rows.Rows(place)
    for row in (0, 5, 6, 1, 19, 7, 0):
        assert images.read(Entry("", len(table[row]["bytes"]), row)) == table[row]["bytes"]
    assert asked == [0, 1, 3, 1, 0]


def test_several_files_and_parts_of_a_set(tmp_path: Path, files: dict[str, bytes]) -> None:
    table = as_huggingface(files)
    for name, part in {
        "data/train-00000-of-00002": table[:11],
        "data/train-00001-of-00002": table[11:],
        "data/test-00000-of-00001": table[:3],
    }.items():
        write_parquet(part, tmp_path / "hub" / f"{name}.parquet")
    (tmp_path / "hub/README.md").touch()
    index = open_index(tmp_path / "hub/train")
    assert same(index, files)
    assert index.source == f"{tmp_path}/hub/train"
    assert len(open_index(tmp_path / "hub/test")) == 3
    with pytest.raises(UserError, match=r"several parts: test, train. Name the one to take, such as \S*/hub/test"):
        open_index(tmp_path / "hub")
    with pytest.raises(UserError, match=r"no part 'trai' in .*Did you mean 'train'"):
        open_index(tmp_path / "hub/trai")
    write_parquet(table[:1], tmp_path / "plain" / "0.parquet")
    write_parquet(table[1:], tmp_path / "plain" / "1.parquet")
    assert same(open_index(tmp_path / "plain"), files)
    write_parquet(table[:2], tmp_path / "plain" / "2.parquet")
    assert len(open_index(tmp_path / "plain")) == 22


def test_what_datasets_has_saved(tmp_path: Path, files: dict[str, bytes]) -> None:
    for part in ("train", "test"):
        folder = tmp_path / "saved" / part
        folder.mkdir(parents=True)
        for number, rest in enumerate((as_huggingface(files)[:13], as_huggingface(files)[13:])):
            write_stream(rest, folder / f"data-0000{number}-of-00002.arrow")
        write_stream(as_huggingface(files)[:1], folder / "cache-0123456789abcdef.arrow")  # of a `map`, say
        names = [{"filename": f"data-0000{number}-of-00002.arrow"} for number in range(2)]
        (folder / "state.json").write_text(json.dumps({"_data_files": names}))
        (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "saved/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert same(index := open_index(tmp_path / "saved/train"), files)
    assert len(index) == 20
    with pytest.raises(UserError, match="several parts: test, train"):
        open_index(tmp_path / "saved")


def test_columns_by_type_and_name(tmp_path: Path, files: dict[str, bytes]) -> None:
    first = list(files.values())[:3]

    def opened(**columns: Any) -> Any:
        write_parquet(arrow.table(columns), tmp_path / "a.parquet")
        return open_index(tmp_path / "a.parquet")

    index = opened(jpg=[*first, None], category=arrow.array(["b", "a", None, "a"]).dictionary_encode())
    assert [index.name(i) for i in range(3)] == ["00000002", "a/00000001", "b/00000000"]
    assert (index.labels().tolist(), index.classes) == ([-1, 0, 1], ("a", "b"))
    assert index.ignored == {"rows without an image": 1}
    assert any("rows without an image (1)" in note for note in index.notes)
    index = opened(image=[{"bytes": each, "path": f"/x{n}/{n}.png"} for n, each in enumerate(first)], mask=first)
    assert [index.name(i) for i in range(3)] == ["x0/0.png", "x1/1.png", "x2/2.png"]
    assert index.classes == ("x0", "x1", "x2")
    assert opened(image=first, label=[10, 9, -1], other=[1, 2, 3]).classes == ("-1", "10", "9")
    with pytest.raises(UserError, match=r"images in columns left, right. Call the one that counts `image`"):
        opened(left=first, right=first)
    with pytest.raises(UserError, match=r"no column of encoded images, only path \(string\), label \(int64\)"):
        opened(path=["a.png"], label=[1])


def test_tables_that_do_not_fit(tmp_path: Path, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    table = as_huggingface(files)
    write_parquet(table.set_column(1, "label", [[3] * 20]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"Label 3 in .* is none of the 3 classes of column label"):
        open_index(tmp_path / "a.parquet")
    write_parquet(table, tmp_path / "two" / "0.parquet")
    write_parquet(table.rename_columns(["image", "klass"]), tmp_path / "two" / "1.parquet")
    with pytest.raises(UserError, match=r"1.parquet has no column 'label', but \S*0.parquet has"):
        open_index(tmp_path / "two")
    index = open_index(tmp_path / "two/0.parquet")
    whole = (tmp_path / "two/0.parquet").read_bytes()
    for content in (whole[:1000], b"no table", b""):
        (tmp_path / "a.parquet").write_bytes(content)
        with pytest.raises(UserError, match="is damaged or not a Parquet or Arrow file"):
            open_index(tmp_path / "a.parquet")
    write_parquet(table[::-1], tmp_path / "two/0.parquet")
    with pytest.raises(BadImage, match="has changed since it was indexed"):
        index.read(0)
    (tmp_path / "two/0.parquet").write_bytes(whole[:1000])
    place = list_rows(resolve(tmp_path / "two/1.parquet"), lambda _: None).place
    assert place is not None
    with pytest.raises(BadImage, match="damaged in"):
        rows.Rows(place._replace(files={str(tmp_path / "two/0.parquet"): [6, 6, 6, 2]})).read(Entry("", 5))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"0.parquet needs the package pyarrow.*poa-ssl\[parquet\]"):
        open_index(tmp_path / "two/0.parquet")


def test_folders_of_images_stay_folders(tmp_path: Path, files: dict[str, bytes]) -> None:
    write_parquet(as_huggingface(files), tmp_path / "set/features.parquet")
    write_parquet(as_huggingface(files), tmp_path / "flat/features.parquet")
    (tmp_path / "flat/x.png").write_bytes(files["ant/00.png"])
    assert [resolve(tmp_path / name).kind for name in ("set", "flat")] == ["folder", "folder"]
