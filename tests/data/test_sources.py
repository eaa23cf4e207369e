import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from poa.data import sources
from poa.data.archives import list_tar, list_zip
from poa.data.images import decode
from poa.data.index import ImageIndex, open_index
from poa.data.sources import Listing, Progress, Source, ending_of, folder_labels, list_folder, list_paths, resolve
from poa.errors import UserError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return path


def tarred(path: Path, *names: str, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))
    return path


def listing(path: Path | str, progress: Progress = lambda _: None) -> Listing:
    source = resolve(str(path))
    lister = {"folder": list_folder, "list": list_paths, "zip": list_zip, "tar": list_tar}[source.kind]
    return lister(source, progress)


def names(path: Path | str) -> list[str]:
    return [entry.name for entry in listing(path).entries]


def test_endings_and_labels_come_from_the_path() -> None:
    assert [ending_of(name) for name in ("a.JPG", "a/b.c/d", "x", "a.tar.gz")] == [".jpg", "", "", ".gz"]
    paths = ["cat/1.jpg", "cat/old/2.jpg", "3.jpg", "/dog/4.jpg", "../dog/5.jpg"]
    assert folder_labels(paths) == ["cat", "cat", "", "", ""]


def test_folder_is_walked_and_sorted_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.jpg", "b/10.jpg", "a/deep/er/x.png", "top.webp")
    found = listing(tmp_path)
    assert [entry.name for entry in found.entries] == ["a/deep/er/x.png", "b/10.jpg", "b/2.jpg", "top.webp"]
    assert [entry.size for entry in found.entries] == [15, 8, 7, 8]


def test_all_image_endings_in_any_case(tmp_path: Path) -> None:
    images = ["a.jpg", "b.JPEG", "c.png", "d.WebP", "e.bmp", "f.tif", "g.TIFF", "h.gif", "i.ppm", "j.PGM"]
    touch(tmp_path, *images, "k.npy", "l.jpg.txt", "jpg")
    assert names(tmp_path) == images


def test_hidden_files_and_others_are_counted_not_taken(tmp_path: Path) -> None:
    others = [".hidden.jpg", ".git/x.jpg", "__MACOSX/x.jpg", "a/._1.jpg", "notes.txt", "a/README"]
    touch(tmp_path / "f", "a/1.jpg", *others)
    for path in (
        tmp_path / "f",
        zipped(tmp_path / "z.zip", "a/1.jpg", *others),
        tarred(tmp_path / "t.tar", "a/1.jpg", *others),
    ):
        found = listing(path)
        assert [entry.name for entry in found.entries] == ["a/1.jpg"]
        assert (found.ignored["hidden"], found.ignored[".txt"], found.ignored[""]) == (4, 1, 1)


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "far.jpg")
    root = touch(tmp_path / "set", "a/1.jpg", "b/2.jpg")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "other").symlink_to(root / "b")
    (root / "b" / "itself").symlink_to(root / "b")
    (root / "b" / "circle.jpg").symlink_to(root / "b" / "circle.jpg")
    (root / "b" / "nowhere.jpg").symlink_to(root / "gone.jpg")
    (root / "b" / "image.jpg").symlink_to(tmp_path / "elsewhere" / "far.jpg")
    assert names(root) == ["a/1.jpg", "b/2.jpg", "b/image.jpg", "linked/far.jpg"]


def test_a_folder_or_pipe_named_like_an_image_is_none(tmp_path: Path) -> None:
    touch(tmp_path, "folder.jpg/1.png")
    os.mkfifo(tmp_path / "pipe.jpg")
    assert names(tmp_path) == ["folder.jpg/1.png"]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xe9cole.jpg")
    touch(tmp_path, "new\nline.jpg")
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "list.txt").write_bytes(b"\xe9cole.jpg\n")
    assert names(tmp_path) == sorted(["new\nline.jpg", name])
    assert names(tmp_path / "list.txt") == [name]


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
    (tmp_path / "list.csv").write_text(header + 'a.jpg,cat\n"b, c.jpg", dog ,extra\n', encoding="utf-8")
    found = listing(tmp_path / "list.csv")
    assert [entry.name for entry in found.entries] == ["a.jpg", "b, c.jpg"]
    assert found.labels == ["cat", "dog"]
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


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_archives_are_folders(tmp_path: Path, ending: str) -> None:
    pack = {"zip": zipped, "tar": tarred}[ending]
    path = pack(
        tmp_path / f"set.{ending}", "train/b/2.jpg", "./train/a/1.jpg", "test/x.jpg", "trainer/y.jpg", "train/l.txt"
    )
    assert names(path) == ["test/x.jpg", "train/a/1.jpg", "train/b/2.jpg", "trainer/y.jpg"]
    assert names(f"{path}/train") == names(f"{path}/train/") == ["a/1.jpg", "b/2.jpg"]
    assert names(f"{path}/train/a") == ["1.jpg"]


def test_zip_written_on_windows(tmp_path: Path) -> None:
    zipped(tmp_path / "set.zip", "train\\cat\\1.jpg")
    assert names(f"{tmp_path}/set.zip/train") == ["cat/1.jpg"]


def test_the_last_of_two_equal_entries_counts(tmp_path: Path) -> None:
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w") as archive:
        for content in (b"old", b"newer"):
            info = tarfile.TarInfo("a.jpg")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    assert [(entry.name, entry.size) for entry in listing(path).entries] == [("a.jpg", 5)]


def test_hard_links_in_a_tar(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg")
    (tmp_path / "a" / "2.jpg").hardlink_to(tmp_path / "a" / "1.jpg")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(tmp_path / "a" / "1.jpg", "1.jpg")
        archive.add(tmp_path / "a" / "2.jpg", "2.jpg")
    first, second = listing(tmp_path / "set.tar").entries
    assert (second.name, second.offset, second.size) == ("2.jpg", first.offset, first.size)


def test_progress_counts_up_to_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_REPORT_EVERY", 10)
    paths = [f"{number}.jpg" for number in range(25)]
    touch(tmp_path / "set", *paths, "x.txt")
    (tmp_path / "list.txt").write_text("".join(f"set/{path}\n" for path in paths))
    for path in (tmp_path / "set", tmp_path / "list.txt", tarred(tmp_path / "set.tar", *paths, "x.txt")):
        told: list[int] = []
        listing(path, told.append)
        assert told == [10, 20]


@pytest.mark.parametrize("data", ["digits", "digits/", "digits/train", "digits/test"])
def test_digits_are_embedded(data: str) -> None:
    assert resolve(data).kind == "digits"
    assert str(resolve(data)) == data.rstrip("/")


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path, "set/a.jpg")
    assert resolve("~/set") == Source("folder", (tmp_path / "set").resolve())


def refused(path: Path | str) -> str:
    with pytest.raises(UserError) as error:
        listing(path)
    return str(error.value)


def test_missing_path_points_to_its_sibling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "images/train/a.jpg", "images/val/a.jpg")
    message = refused(tmp_path / "images" / "traim")
    assert "Did you mean 'train'" in message
    assert f"{tmp_path / 'images' / 'traim'} does not exist" in message
    assert "Did you mean 'images'" in refused(tmp_path / "imgaes" / "train")
    (tmp_path / "void").mkdir()
    assert "There is nothing in it" in refused(tmp_path / "void" / "x")
    monkeypatch.chdir(tmp_path)
    assert "Did you mean 'digits'" in refused("digit")
    assert "Choose from digits, images, void" in refused("qqqqqqq")


def test_unknown_part_of_digits() -> None:
    with pytest.raises(UserError, match=r"no part 'tset'\. Did you mean 'test'"):
        resolve("digits/tset")


def test_empty_data() -> None:
    with pytest.raises(UserError, match="--data is empty"):
        resolve("")


def test_no_images(tmp_path: Path) -> None:
    assert f"There is no file in {tmp_path}" in refused(tmp_path)
    touch(tmp_path, "a.npy", "b.npy", "c.dcm", "LICENSE")
    message = refused(tmp_path)
    assert "2 .npy, 1 .dcm, 1 without ending" in message or "2 .npy, 1 without ending, 1 .dcm" in message
    assert ".jpeg, .jpg" in message
    assert "1 .txt" in refused(zipped(tmp_path / "set.zip", "a.txt"))
    assert "There is no file" in refused(tarred(tmp_path / "set.tar"))
    touch(tmp_path, *(f"x.kind{number}" for number in range(9)))
    assert "and 9 other kinds" in refused(tmp_path)


def test_one_image_is_enough(tmp_path: Path) -> None:
    assert names(touch(tmp_path, "only.jpg")) == ["only.jpg"]


def test_a_file_that_is_no_data(tmp_path: Path) -> None:
    touch(tmp_path, "photo.jpg", "set.npz", "list.txt")
    assert f"single image: give the folder it is in, {tmp_path}" in refused(tmp_path / "photo.jpg")
    assert "cannot be used as data" in refused(tmp_path / "set.npz")
    assert "not a zip or tar file, so it cannot contain 'train'" in refused(tmp_path / "list.txt" / "train")


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_missing_folder_in_an_archive(tmp_path: Path, ending: str) -> None:
    path = {"zip": zipped, "tar": tarred}[ending](tmp_path / f"set.{ending}", "images/train/a.jpg", "images/val/a.jpg")
    assert "Did you mean 'train'" in refused(f"{path}/images/traim")
    assert "Did you mean 'images'" in refused(f"{path}/image/train")
    assert f"give {path}/images/train" in refused(f"{path}/images/train/a.jpg")


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_damaged_archives(tmp_path: Path, ending: str) -> None:
    path = {"zip": zipped, "tar": tarred}[ending](tmp_path / f"set.{ending}", *(f"{i}.jpg" for i in range(100)))
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2 + 100], b"no archive at all", b""):
        path.write_bytes(content)
        assert f"{path} is damaged or not a {ending} file" in refused(path)


def test_damage_inside_a_tar_is_not_its_end(tmp_path: Path) -> None:
    path = tarred(tmp_path / "set.tar", "a.jpg", "b.jpg", "c.jpg")
    content = bytearray(path.read_bytes())
    content[1024:1124] = b"\xff" * 100  # the header of b.jpg
    path.write_bytes(content)
    assert "bad header at byte 1024" in refused(path)


@pytest.mark.parametrize(
    ("name", "mode"), [("s.tar.gz", "w:gz"), ("s.tgz", "w:gz"), ("s.tar.xz", "w:xz"), ("s.tar", "w:bz2")]
)
def test_compressed_tars_say_how_to_unpack(tmp_path: Path, name: str, mode: str) -> None:
    message = refused(tarred(tmp_path / name, "a.jpg", mode=mode))
    assert "compressed tar" in message
    assert f"mkdir s && tar -xf {tmp_path / name} -C s" in message


def test_odd_zips_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "lzma.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.jpg", b"x")
    assert "method 14" in refused(tmp_path / "lzma.zip")
    content = bytearray(zipped(tmp_path / "secret.zip", "a.jpg").read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "secret.zip").write_bytes(content)
    assert "encrypted" in refused(tmp_path / "secret.zip")


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


def test_unreadable_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_dir", refuse)
    assert "Cannot read /locked/set: Permission denied" in refused("/locked/set")


def digits(part: str, cache: Path) -> ImageIndex:
    return open_index(f"digits{part}", cache=cache)


def test_digits_are_those_of_scikit_learn(tmp_path: Path) -> None:
    index = digits("", tmp_path)
    real = load_digits()
    assert len(index) == 1797
    assert index.classes == tuple("0123456789")
    for i in range(0, len(index), 50):
        number = int(Path(index.name(i)).stem)
        pixels = np.asarray(decode(index.read(i)))
        assert pixels.shape == (8, 8, 3)
        np.testing.assert_array_equal(np.rint(pixels[:, :, 1] * (16 / 255)), real.images[number])
        assert index.label(i) == real.target[number]


def test_ink_uses_the_whole_range(tmp_path: Path) -> None:
    index = digits("/test", tmp_path)
    pixels = np.stack([np.asarray(decode(index.read(i))) for i in range(20)])
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_parts_are_balanced_and_share_nothing(tmp_path: Path) -> None:
    train, test = digits("/train", tmp_path), digits("/test", tmp_path)
    names = [{index.name(i) for i in range(len(index))} for index in (train, test)]
    assert not names[0] & names[1]
    assert len(names[0] | names[1]) == 1797
    share = np.bincount(test.labels()) / (np.bincount(train.labels()) + np.bincount(test.labels()))
    assert share.min() > 0.24
    assert share.max() <= 0.25


def test_parts_stay_the_same(tmp_path: Path) -> None:
    first, second = digits("/test", tmp_path / "a"), digits("/test/", tmp_path / "b")
    assert first.fingerprint == second.fingerprint != digits("/train", tmp_path / "a").fingerprint
    assert [first.name(i) for i in range(3)] == ["0/0030.png", "0/0055.png", "0/0101.png"]


def test_unknown_part_points_to_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'train'"):
        digits("/traim", tmp_path)
