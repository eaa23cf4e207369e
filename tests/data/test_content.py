"""Images are known by what they hold, sets of them by their labels as well."""

import os
from pathlib import Path

import numpy as np
import pytest

from data.image_files import content, pack
from poa.data import content as contents
from poa.data.content import PART_BYTES, UNREADABLE, Identity, LeftOut, content_digest
from poa.data.index import open_index


def digest(encoded: bytes) -> int:
    return content_digest(len(encoded), lambda offset, length: encoded[offset : offset + length])


@pytest.mark.parametrize("size", [1, 8 * PART_BYTES, 8 * PART_BYTES + 1, 1_000_000])
def test_a_digest_sees_both_ends_and_parts_between(size: int) -> None:
    whole = np.random.default_rng(0).bytes(size)
    places = [0, size - 1, *((n * (size - PART_BYTES) // 7 + 5) for n in range(8) if size > 1)]
    changed = {digest(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]) for place in places}
    assert digest(whole) not in changed
    assert digest(whole) == digest(bytes(bytearray(whole)))
    assert digest(whole + b"x") != digest(whole)


def test_a_digest_reads_little_of_a_large_file() -> None:
    asked: list[int] = []

    def read(_: int, length: int) -> bytes:
        asked.append(length)
        return bytes(length)

    content_digest(10**12, read)
    assert sum(asked) == 8 * PART_BYTES
    assert content_digest(0, read) == UNREADABLE


def pictures(root: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content(number))
    return root


NAMES = ["ant/0.png", "ant/1.png", "bee/2.png"]


def test_a_copy_is_the_same_set_and_equal_names_and_sizes_are_not(tmp_path: Path, cache: Path) -> None:
    first = pictures(tmp_path / "first", NAMES)
    known = open_index(str(first)).identity.text
    assert known.startswith("3 images ")
    assert open_index(str(pictures(tmp_path / "copy", NAMES))).identity.text == known
    assert open_index(str(pack(first, tmp_path / "deflated.zip")) + "/top").identity.text == known
    other = pictures(tmp_path / "other", NAMES)
    encoded = (other / NAMES[0]).read_bytes()
    (other / NAMES[0]).write_bytes(encoded[:-20] + bytes(20))
    assert open_index(str(other)).listed == open_index(str(first)).listed
    assert open_index(str(other)).fingerprint != open_index(str(first)).fingerprint


@pytest.mark.parametrize("same_time", [False, True])
def test_files_written_in_place_are_noticed_and_others_not_read_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, same_time: bool
) -> None:
    root = pictures(tmp_path / "set", NAMES)
    before = open_index(str(root))
    file = root / NAMES[1]
    status = file.stat()
    file.write_bytes(file.read_bytes()[:-20] + bytes(20))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + (0 if same_time else 10**9)))
    looked: list[int] = []
    monkeypatch.setattr(contents, "content_digest", lambda size, read: looked.append(size) or 1)
    after = open_index(str(root))
    assert looked == [status.st_size]
    assert (after.digests != before.digests).tolist() == [False, True, False]
    assert open_index(str(root)).folder == after.folder
    assert len(looked) == 1


def test_few_files_wait_for_a_thread() -> None:
    given: list[int] = []
    ahead: list[int] = []
    found = contents.contents(
        lambda number: contents.Content(0, 0, number),
        (given.append(number) or number for number in range(60_000)),
        60_000,
        lambda _, done, __: ahead.append(len(given) - done),
    )
    assert found["digest"].tolist() == given
    assert max(ahead) < 20_000


def test_labels_belong_to_the_identity_but_not_to_the_images(tmp_path: Path, cache: Path) -> None:
    root, file = pictures(tmp_path, NAMES), tmp_path / "list.csv"
    found = []
    for labels in ("aab", "aba", "aac", "aab"):
        file.write_text("".join(f"{name},{label}\n" for name, label in zip(NAMES, labels, strict=True)))
        found.append(open_index(str(file)))
    assert len({each.fingerprint for each in found}) == 1
    texts = [each.identity.text for each in found]
    assert len(set(texts)) == 3
    assert texts[0] == texts[3]
    assert open_index(str(root)).identity.source != open_index(str(root), limit=2).identity.source


def test_images_that_two_sets_share_are_counted() -> None:
    train = Identity("a", "", np.array([1, 2, 3, UNREADABLE], np.uint64))
    test = Identity("b", "", np.array([3, 3, UNREADABLE, 5], np.uint64))
    assert (test.num_among(train), train.num_among(test)) == (2, 1)


def test_what_is_left_out_is_told(tmp_path: Path, cache: Path) -> None:
    index = open_index(str(pictures(tmp_path, NAMES)))
    assert index.left_out(range(3)) == LeftOut(0, 3)
    found = index.left_out([0, 1])
    assert found == LeftOut(1, 3, ("bee/2.png",), ("bee",))
    assert found.describe("test") == (
        "1 of 3 test images could not be read, such as 'bee/2.png'. No test image is left of class 'bee'."
    )
    assert found.joined(LeftOut(1, 2, ("x",), ("ant",))).describe("train") == (
        "2 of 3 training images could not be read, such as 'bee/2.png'. No training image is left of classes "
        "'bee', 'ant'."
    )
