import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from data.image_files import content, listing, names, pack, refused, tarred, touch, zipped
from poa.data import lists, sources
from poa.data.images import IMAGE_ENDINGS, BadImage, decode
from poa.data.index import ImageIndex, open_index
from poa.data.sources import (
    SPECIAL,
    Source,
    check_out,
    ending_of,
    folder_label,
    notes,
    read_file,
    resolve,
    without_arrays,
)
from poa.errors import UserError


def test_endings_and_labels_come_from_the_path() -> None:
    assert [ending_of(name) for name in ("a.JPG", "a/b.c/d", "x", "a.tar.gz")] == [".jpg", "", "", ".gz"]
    paths = ["cat/1.jpg", "cat/old/2.jpg", "3.jpg", "/dog/4.jpg", "../dog/5.jpg"]
    assert [folder_label(path) for path in paths] == ["cat", "cat", "", "", ""]


def test_folder_is_walked_and_sorted_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.jpg", "b/10.jpg", "a/deep/er/x.png", "top.webp")
    found = listing(tmp_path)
    assert [entry.name for entry in found.entries] == ["a/deep/er/x.png", "b/10.jpg", "b/2.jpg", "top.webp"]
    assert [entry.size for entry in found.entries] == [15, 8, 7, 8]


def test_all_image_endings_in_any_case(tmp_path: Path) -> None:
    images = ["a.jpg", "b.JPEG", "c.png", "d.WebP", "e.bmp", "f.tif", "g.TIFF", "h.gif", "i.ppm", "j.PGM"]
    touch(tmp_path, *images, "k.h5", "l.jpg.txt", "jpg")
    assert names(tmp_path) == images


def test_arrays_are_images_of_sets_without_others(tmp_path: Path) -> None:
    mixed = touch(tmp_path / "mixed", "a/1.npy", "a/2.png", "b/1.DCM", "b/3.png")
    (mixed / "list.csv").write_text("a/1.npy,ant\na/2.png,bee\nb/3.png,cat\n")
    for path in (mixed, mixed / "list.csv", pack(mixed, tmp_path / "t.tar")):
        found = without_arrays(listing(path))
        assert [entry.name.removeprefix("top/") for entry in found.entries] == ["a/2.png", "b/3.png"]
        assert [entry.size for entry in found.entries] == [7, 7]
        assert found.labels in (None, ["bee", "cat"])
        assert found.ignored[".npy"] == 1
        assert notes(resolve(path), found)
    alone = listing(touch(tmp_path / "alone", "a/1.npy", "2.dcm"))
    assert without_arrays(alone) is alone
    assert [entry.name for entry in alone.entries] == ["2.dcm", "a/1.npy"]


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


def test_files_without_ending_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    root = touch(tmp_path / "set", "README", "a/x.avif", "a/y.jfif", "a/z.psd", "Makefile", "empty")
    for name in ("0a1b", "a/2c3d"):
        (root / name).write_bytes(content(0))
    (root / "list.txt").write_text("0a1b\nREADME\na/2c3d\n# a remark\n")
    images = ["0a1b", "a/2c3d", "a/x.avif", "a/y.jfif"]
    for path in (
        root,
        pack(root, tmp_path / "stored.zip"),
        pack(root, tmp_path / "deflated.zip"),
        pack(root, tmp_path / "t.tar"),
    ):
        found = listing(path if path.is_dir() else f"{path}/top")
        assert [entry.name for entry in found.entries] == images
        assert found.ignored == {"": 3, ".psd": 1, ".txt": 1}
    assert listing(root / "list.txt").ignored == {"": 1, "remarks": 1}
    (told,) = notes(resolve(str(root)), listing(root))
    assert told == (
        f"{root}: taken as images are without ending (2), .avif (1), .jfif (1); "
        "other files are left out: without ending (3), .psd (1), .txt (1)."
    )
    assert names(root / "list.txt") == ["0a1b", "a/2c3d"]


def test_folders_of_systems_are_left_out(tmp_path: Path) -> None:
    of_systems = ["@eaDir/a/T.jpg", "$RECYCLE.BIN/S-1/x.jpg", "a/@eaDir/1.jpg/T.jpg", "System Volume Information/x.jpg"]
    root = touch(tmp_path / "set", "a/1.jpg", "lost+found/x.jpg", ".Trash-1000/x.jpg", "a/Thumbs.db", *of_systems)
    for path in (root, zipped(tmp_path / "z.zip", "a/1.jpg", *of_systems)):
        found = listing(path)
        assert [entry.name for entry in found.entries] == ["a/1.jpg"]
        assert found.ignored["system folders"] in (4, 5)


def test_folders_of_runs_are_left_out(tmp_path: Path) -> None:
    root = touch(tmp_path / "set", "a/1.jpg", "runs/x/config.yaml", "runs/x/env.json", "runs/x/eval/knn/sizes.png")
    found = listing(root)
    assert [entry.name for entry in found.entries] == ["a/1.jpg"]
    assert str(root / "runs" / "x") not in found.stamps
    assert "folders of runs (1)" in notes(resolve(str(root)), found)[0]
    assert names(root / "runs" / "x") == ["eval/knn/sizes.png"]


def test_pictures_are_not_written_among_images(tmp_path: Path) -> None:
    root = touch(tmp_path / "set", "a/1.jpg", "runs/x/config.yaml", "runs/x/env.json", "list.txt")
    for out in (root, root / "eval", root / "a/new", root / "runs"):
        with pytest.raises(UserError, match="would be taken for images"):
            check_out(out, "digits", str(root))
    for out in (tmp_path / "eval", tmp_path / "set2", root / "runs/x/eval"):
        check_out(out, str(root), "digits")
    check_out(root, str(zipped(root / "b.zip", "1.jpg")), str(root / "a"))


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
    os.mkfifo(tmp_path / "pipe")
    found = listing(tmp_path)
    assert [entry.name for entry in found.entries] == ["folder.jpg/1.png"]
    assert found.ignored == {SPECIAL: 1, "": 1}
    assert "is a pipe or a device" in refused(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", Path("/dev/zero")):
        with pytest.raises(BadImage, match="not a regular file"):
            read_file(path)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xe9cole.jpg")
    touch(tmp_path, "new\nline.jpg")
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "list.txt").write_bytes(b"\xe9cole.jpg\n")
    assert names(tmp_path) == sorted(["new\nline.jpg", name])
    assert names(tmp_path / "list.txt") == [name]


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
    touch(tmp_path, "a.h5", "b.h5", "c.nii", "LICENSE")
    message = refused(tmp_path)
    assert ".h5 (2)" in message
    assert ".nii (1)" in message
    assert "without ending (1)" in message
    assert ".jpe, .jpeg, .jpf, .jpg" in message
    assert ".txt (1)" in refused(zipped(tmp_path / "set.zip", "a.txt"))
    assert "There is no file" in refused(tarred(tmp_path / "set.tar"))
    touch(tmp_path, *(f"x.kind{number}" for number in range(9)))
    assert "and 9 more kinds" in refused(tmp_path)


def test_images_without_a_reader_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advice = "Install it with: pip install 'x'"
    monkeypatch.setattr(sources, "LACKING", {".heic": advice, ".heif": advice})
    for module in (sources, lists):
        monkeypatch.setattr(module, "IMAGE_ENDINGS", IMAGE_ENDINGS - {".heic", ".heif"})
    told = f"since the reader for this format is not installed. {advice}."
    touch(tmp_path, "all/a.HEIC", "all/b.heic", "some/c.heif", "some/d.png", "none/e.png", "none/f.txt")
    assert f"2 .heic images are left out, {told}" in refused(tmp_path / "all")
    (tmp_path / "list.txt").write_text("all/a.HEIC\n")
    assert f"1 .heic image is left out, {told}" in refused(tmp_path / "list.txt")
    some, none = (notes(resolve(tmp_path / name), listing(tmp_path / name)) for name in ("some", "none"))
    assert some[1:] == [f"{tmp_path / 'some'}: 1 .heif image is left out, {told}"]
    assert len(none) == 1


def test_one_image_is_enough(tmp_path: Path) -> None:
    assert names(touch(tmp_path, "only.jpg")) == ["only.jpg"]


def test_a_file_that_is_no_data(tmp_path: Path) -> None:
    touch(tmp_path, "photo.jpg", "set.npz", "list.txt")
    assert f"single image: give the folder it is in, {tmp_path}" in refused(tmp_path / "photo.jpg")
    assert "cannot be used as data" in refused(tmp_path / "set.npz")
    assert "not a zip or tar file, so it cannot contain 'train'" in refused(tmp_path / "list.txt" / "train")


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
