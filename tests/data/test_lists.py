import os
from pathlib import Path

import pytest

from data.image_files import listing, names, refused, touch
from poa.data.sources import notes, resolve


def test_text_list_keeps_its_order(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.jpg", "a/1.jpg", "with space.jpg")
    text = f"\n b/2.jpg \r\n./a/1.jpg\n\n{tmp_path}/a/1.jpg\nwith space.jpg\nnotes.md"
    (tmp_path / "list.txt").write_text(text)
    found = listing(tmp_path / "list.txt")
    assert [entry.name for entry in found.entries] == ["b/2.jpg", "a/1.jpg", f"{tmp_path}/a/1.jpg", "with space.jpg"]
    assert found.labels is None
    assert found.ignored == {".md": 1}


@pytest.mark.parametrize("header", ["", "path,label\n", "\ufeffimage path,class,split\n"])
def test_csv_list_with_labels(tmp_path: Path, header: str) -> None:
    touch(tmp_path, "a.jpg", "b, c.jpg")
    (tmp_path / "list.csv").write_text(header + 'a.jpg,"big\ncat"\n"b, c.jpg", dog ,extra\n', encoding="utf-8")
    found = listing(tmp_path / "list.csv")
    assert [entry.name for entry in found.entries] == ["a.jpg", "b, c.jpg"]
    assert found.labels == ["big\ncat", "dog"]
    assert found.ignored == {}


def test_csv_list_without_labels_and_tsv(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.jpg", "x/b.jpg")
    (tmp_path / "list.csv").write_text("path\nx/a.jpg\nx/b.jpg\n")
    (tmp_path / "list.tsv").write_text("x/a.jpg\t1\n")
    assert listing(tmp_path / "list.csv").labels is None
    assert listing(tmp_path / "list.tsv").labels == ["1"]


def test_list_may_be_a_link_to_a_store_without_endings(tmp_path: Path) -> None:
    touch(tmp_path, "set/a.jpg")
    (tmp_path / "0123abcd").write_text("a.jpg\n")
    (tmp_path / "set" / "list.txt").symlink_to(tmp_path / "0123abcd")
    assert names(tmp_path / "set" / "list.txt") == ["a.jpg"]


def test_empty_lists(tmp_path: Path) -> None:
    for name, text in {"a.txt": "", "b.txt": "\n \n", "c.csv": "path,label\n"}.items():
        (tmp_path / name).write_text(text)
        assert f"{name} is empty" in refused(tmp_path / name)


def test_list_with_missing_files(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "list.txt").write_text("a.jpg\n" + "".join(f"gone{i}.jpg\n" for i in range(5)) + "nul\0.jpg\n")
    message = refused(tmp_path / "list.txt")
    assert "6 of 7 files in the list" in message
    assert "cannot be found, such as 'gone0.jpg', 'gone1.jpg', 'gone2.jpg':" in message
    assert f"paths are relative to {tmp_path}" in message


def test_a_list_that_is_no_csv(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text('"' + "x" * 200_000)
    assert "not a valid CSV file" in refused(tmp_path / "list.csv")


# ---- lists as people export them -------------------------------------------------------------------------------------

ROWS = [("00.png", "a"), ("01.png", "b"), ("02.png", "a")]
DIVIDED = {
    "pandas.csv": ",path,label\n" + "".join(f"{i},{path},{label}\n" for i, (path, label) in enumerate(ROWS)),
    "no header.csv": "".join(f"{i},{path},{label}\n" for i, (path, label) in enumerate(ROWS, 1)),
    "label first.csv": "label,path\n" + "".join(f"{label},{path}\n" for path, label in ROWS),
    "label first, no header.csv": "".join(f"{label},{path}\n" for path, label in ROWS),
    "semicolons.csv": "path;label\n" + "".join(f"{path};{label}\n" for path, label in ROWS),
    "tabs.csv": "".join(f"{path}\t{label}\n" for path, label in ROWS),
    "tabs.txt": "".join(f"{path}\t{label}\n" for path, label in ROWS),
    "commas.tsv": "".join(f"{path},{label}\n" for path, label in ROWS),
    "words.txt": "".join(f"{path} {label}\n" for path, label in ROWS),
    "label first.txt": "".join(f"{label} {path}\n" for path, label in ROWS),
    "quotes.csv": '"file name","class"\r\n' + "".join(f'"{path}","{label}"\r\n' for path, label in ROWS),
    "old Mac.csv": "".join(f"{path},{label}\r" for path, label in ROWS),
    "named.csv": "id,split,species,image\n" + "".join(f"7,x,{label},{path}\n" for path, label in ROWS),
    "masks.csv": "image,mask,label\n" + "".join(f"{path},0{path},{label}\n" for path, label in ROWS),
    "Excel.csv": "sep=;\npath;label\n" + "".join(f"{path};{label}\n" for path, label in ROWS),
    "Windows.txt": "".join(f".\\{path}\t{label}\r\n" for path, label in ROWS),
}


@pytest.fixture
def three(tmp_path: Path) -> Path:
    return touch(tmp_path, *(path for path, _ in ROWS))


@pytest.mark.parametrize("name", DIVIDED)
def test_columns_are_found_however_they_are_divided(three: Path, name: str) -> None:
    (three / name).write_text(DIVIDED[name], newline="")
    found = listing(three / name)
    assert [entry.name for entry in found.entries] == [path for path, _ in ROWS]
    assert found.labels == ["a", "b", "a"]
    assert found.ignored == {}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_are_found(three: Path, encoding: str) -> None:
    (three / "list.csv").write_text(DIVIDED["pandas.csv"], encoding=encoding)
    (three / "list.txt").write_text("".join(f"{path}\n" for path, _ in ROWS), encoding=encoding)
    assert listing(three / "list.csv").labels == ["a", "b", "a"]
    assert len(names(three / "list.txt")) == 3


def test_what_columns_are_taken_for_is_told(three: Path) -> None:
    for name, told in {
        "pandas.csv": "paths are taken from column 2 (path), labels from column 3 (label)",
        "words.txt": "paths are taken from column 1, labels from column 2",
    }.items():
        (three / name).write_text(DIVIDED[name])
        source = resolve(str(three / name))
        assert notes(source, listing(three / name)) == [f"{source}: {told}."]
    (three / "index.csv").write_text(",path\n0,00.png\n1,01.png\n")
    assert listing(three / "index.csv").columns == (
        "paths are taken from column 2 (path), there is no column of labels"
    )
    (three / "plain.txt").write_text("00.png\n")
    assert listing(three / "plain.txt").columns == ""


def test_columns_that_are_not_clear_are_refused(three: Path) -> None:
    (three / "two.csv").write_text("".join(f"{path},{path},a\n" for path, _ in ROWS))
    assert "names images in columns 1 and 2, such as" in refused(three / "two.csv")
    (three / "labels.csv").write_text("".join(f"x,{path},{label}\n" for path, label in ROWS))
    message = refused(three / "labels.csv")
    assert "has paths in column 2 and 2 other columns, such as ['x', '00.png', 'a']" in message
    assert "Write `label` above their column" in message


def test_lines_without_a_path_are_counted(three: Path) -> None:
    (three / "list.csv").write_text("label,path\n" + "".join(f"{label},{path}\n" for path, label in ROWS) + "c,\nc\n")
    found = listing(three / "list.csv")
    assert found.labels == ["a", "b", "a"]
    assert found.ignored == {"lines without a path": 2}


def test_other_spellings_of_a_name_are_found(tmp_path: Path) -> None:
    touch(tmp_path, "\u00e9/1.jpg", "u\u0308/2.jpg")
    (tmp_path / "list.txt").write_text("e\u0301\\1.jpg\n\u00fc/2.jpg\ne\u0301/1.jpg\n", encoding="utf-8")
    assert names(tmp_path / "list.txt") == ["\u00e9/1.jpg", "u\u0308/2.jpg", "\u00e9/1.jpg"]
    (tmp_path / "excel.csv").write_bytes("path;label\n\u00e9/1.jpg;a\n".encode("cp1252"))
    assert "The list is not in UTF-8: save it as UTF-8." in refused(tmp_path / "excel.csv")


def test_a_list_names_regular_files_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    touch(tmp_path, "folder.jpg/x", "a.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "folder.jpg", "zero.jpg"):
        (tmp_path / "list.txt").write_text(f"a.jpg\n{name}\n")
        message = refused(tmp_path / "list.txt")
        assert f"list.txt cannot be used (folders, pipes or devices), such as '{name}':" in message


def test_a_list_has_a_greatest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg")
    with (tmp_path / "list.txt").open("wb") as file:
        file.truncate(1 << 42)  # takes no room on the disk
    assert "is too large for a list of paths: more than 1 GB" in refused(tmp_path / "list.txt")
