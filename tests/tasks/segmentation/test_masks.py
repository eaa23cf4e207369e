import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from poa.data.content import LeftOut
from poa.data.index import open_index
from poa.errors import UserError
from poa.tasks.segmentation.masks import Pairs, PairStatistics, class_names, pair_up, read_names, statistics
from tasks.segmentation.mask_images import IGNORE, write_pairs


def pairs_of(images: str | Path, masks: str | Path) -> Pairs:
    return pair_up(open_index(str(images)), open_index(str(masks)))


def ignoring(found: PairStatistics, ignore: int) -> PairStatistics:
    return replace(found, pairs=replace(found.pairs, ignore=ignore))


def statistics_of(root: Path, **options: Any) -> PairStatistics:
    return statistics(pairs_of(*write_pairs(root, **options)))


def test_pairs_by_name(tmp_path: Path) -> None:
    images, masks = write_pairs(tmp_path, num_images=12)
    (tmp_path / "masks/extra.png").write_bytes((tmp_path / "masks/3.png").read_bytes())
    for part in ("images", "masks"):  # in folders below, and in an order of their own
        (tmp_path / part / "b").mkdir()
        for file in sorted((tmp_path / part).glob("1*")):
            shutil.move(file, tmp_path / part / "b" / file.name)
    pairs = pairs_of(images, masks)
    assert len(pairs) == 12
    for i in range(12):
        name = pairs.name(i)
        expected = np.array(Image.open(tmp_path / "masks" / Path(name).with_suffix(".png")))
        assert np.array_equal(pairs.read(i).mask.numpy(), expected)
        assert np.array_equal(
            pairs.read(i).image[0].permute(1, 2, 0).numpy(), np.array(Image.open(tmp_path / "images" / name))
        )
    assert pairs.take([3, 5]).name(1) == pairs.name(5)
    limited = pair_up(open_index(images, limit=5), open_index(masks))
    assert [limited.read(i).mask.shape for i in range(5)] == [(24, 32)] * 5


def test_archives(tmp_path: Path) -> None:
    images, masks = write_pairs(tmp_path / "plain", num_images=3)
    with ZipFile(tmp_path / "all.zip", "w") as archive:
        for file in (tmp_path / "plain").rglob("*.*"):
            archive.write(file, file.relative_to(tmp_path / "plain"))
    zipped, plain = pairs_of(tmp_path / "all.zip/images", tmp_path / "all.zip/masks"), pairs_of(images, masks)
    assert all(zipped.read(i).mask.equal(plain.read(i).mask) for i in range(3))
    assert zipped.identity.text == plain.identity.text
    assert pair_up(open_index(images, limit=2), open_index(masks)).identity.text != plain.identity.text
    assert zipped.identity.num_among(plain.identity) == 3


def test_masks_are_found_however_they_are_spelt(tmp_path: Path) -> None:
    images, masks = write_pairs(tmp_path, num_images=2)
    (tmp_path / "images/0.jpg").rename(tmp_path / "images/caf\u00e9.JPG")
    (tmp_path / "masks/0.png").rename(tmp_path / "masks/Cafe\u0301.png")
    assert len(pairs_of(images, masks)) == 2


def test_ids_of_all_kinds_of_masks(tmp_path: Path) -> None:
    images, masks = write_pairs(tmp_path, num_images=1, height=2, width=2)
    file = tmp_path / "masks/0.png"
    ids = np.array([[0, 1], [2, IGNORE]], np.uint8)
    palette = Image.fromarray(ids).convert("P")
    palette.putpalette([7, 7, 7] * 256)  # colours do not matter
    deep = Image.fromarray(np.array([[0, 1], [2, 60000]], np.uint16))
    bits = Image.fromarray(np.array([[False, True], [True, False]]))
    for image, expected in ((Image.fromarray(ids), ids), (palette, ids), (deep, [[0, 1], [2, 60000]])):
        image.save(file)
        assert pairs_of(images, masks).read(0).mask.tolist() == np.array(expected).tolist()
    bits.save(file)
    assert pairs_of(images, masks).read(0).mask.tolist() == [[0, 1], [1, 0]]


def test_statistics(tmp_path: Path) -> None:
    images, masks = write_pairs(tmp_path, num_images=6)
    write_pairs(tmp_path / "small", num_images=1, height=10, width=40)
    for part, ending in (("images", "jpg"), ("masks", "png")):
        shutil.copy(tmp_path / "small" / part / f"0.{ending}", tmp_path / part / f"2.{ending}")
    (tmp_path / "images/4.jpg").write_bytes(b"damaged")
    (tmp_path / "masks/1.png").write_bytes((tmp_path / "masks/1.png").read_bytes()[:60])
    told: list[int] = []
    found = statistics(pairs_of(images, masks), advance=told.append)
    assert (len(found.pairs), found.left_out, sum(told)) == (4, LeftOut(2, 6, ("1.jpg", "4.jpg")), 6)
    assert [found.pairs.name(i) for i in range(4)] == ["0.jpg", "2.jpg", "3.jpg", "5.jpg"]
    assert found.smallest == ("2.jpg", 10)
    every = np.concatenate([found.pairs.read(i).mask.numpy().flatten() for i in range(4)])
    assert found.pixels == {number: int((every == number).sum()) for number in (0, 1, 2, IGNORE)}
    assert class_names(found, found, names=None) == ("0", "1", "2")
    assert class_names(found, found, names=("ground", "red", "green", "blue"))[3] == "blue"


def test_bad_masks(tmp_path: Path) -> None:
    images, masks = write_pairs(tmp_path, num_images=3)
    file, kept = tmp_path / "masks/1.png", (tmp_path / "masks/1.png").read_bytes()
    for image, words in (
        (Image.new("L", (30, 24)), r"mask '1.png' in .*masks has 30x24 pixels, .*'1.jpg' has 32x24 .*nearest"),
        (Image.new("RGB", (32, 24)), r"mask '1.png' .* colour image \(RGB\).*palette"),
        (Image.new("RGBA", (32, 24)), r"colour image \(RGBA\)"),
        (Image.new("LA", (32, 24)), r"colour image \(LA\)"),
    ):
        image.save(file)
        with pytest.raises(UserError, match=words):
            statistics(pairs_of(images, masks))
    Image.new("L", (32, 24)).save(file, "JPEG")
    with pytest.raises(UserError, match=r"'1.png' in .* is a JPEG file, whose compression changes class ids"):
        statistics(pairs_of(images, masks))
    file.unlink()
    with pytest.raises(UserError, match=r"1 of 3 images in .* have no mask in .*, such as '1.jpg'; .* called '0.png'"):
        pairs_of(images, masks)
    file.write_bytes(kept)
    (tmp_path / "images/2.png").write_bytes(kept)
    with pytest.raises(UserError, match=r"'2.jpg' and '2.png' .* differ only in their endings"):
        pairs_of(images, masks)
    (tmp_path / "images/2.png").unlink()
    for number in range(3):
        (tmp_path / f"images/{number}.jpg").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"Of 3 images in .* none could"):
        statistics(pairs_of(images, masks))


def test_classes_that_do_not_fit(tmp_path: Path) -> None:
    found = statistics_of(tmp_path / "all")
    for number in (0, 1):
        Image.new("L", (32, 24), number).save(tmp_path / f"all/masks/{number}.png")
    for options, words in (
        ({"names": ("a", "b"), "ignore": IGNORE}, r"class id 2, but there are 2 class names, .* 0 to 1.*--ignore 2"),
        ({"names": ("a", "b", "c"), "ignore": 1}, r"class id 255"),
    ):
        with pytest.raises(UserError, match=words):
            class_names(ignoring(found, options["ignore"]), found, names=options["names"])
    one = replace(found, pixels={1: 5, IGNORE: 3}, examples={1: "x.png"})
    with pytest.raises(UserError, match=r"hold the one class id 1 besides 255, .*two classes.*--ignore"):
        class_names(one, found, names=None)
    with pytest.raises(UserError, match=r"hold no class id at all besides 1"):
        class_names(ignoring(replace(found, pixels={1: 5}), 1), found, names=None)
    binary = replace(found, pixels={0: 5, IGNORE: 3}, examples={IGNORE: "x.png"})
    for each in (binary, ignoring(binary, -1)):
        with pytest.raises(UserError, match=r"are black and white.* If white is a class, write 1 in place of 255"):
            class_names(each, found, names=None)
    high = replace(found, pixels={0: 5, 200: 3}, examples={200: "x.png"})
    with pytest.raises(UserError, match=r"only 2 of the ids from 0 to 200\. If 200 \(in 'x.png'\) .*--ignore 200"):
        class_names(high, found, names=None)
    strange = replace(found, pixels={0: 5, 7: 3}, examples={7: "x.png"})
    with pytest.raises(UserError, match=r"'x.png' in .* class id 7, but the highest of the training masks is 2"):
        class_names(found, strange, names=None)
    with pytest.raises(UserError, match=r"test masks .* hold only id 255"):
        class_names(found, replace(found, pixels={IGNORE: 4}), names=None)
    assert class_names(found, one, names=None) == ("0", "1", "2")  # a test without class 0 and 2


def test_names(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("sky\n  wall of stone \nroad\n\n")
    assert read_names(file) == ("sky", "wall of stone", "road")
    file.write_text("a\x0bb\nc")
    assert read_names(file) == ("a\x0bb", "c")
    for text, words in (("a\n\nb", "an empty line"), ("a\nb\na", "the name 'a' twice"), ("\n", "no names")):
        file.write_text(text)
        with pytest.raises(UserError, match=words):
            read_names(file)
    with pytest.raises(UserError, match=r"class names in .*missing.txt cannot be read.*one name per line"):
        read_names(tmp_path / "missing.txt")
