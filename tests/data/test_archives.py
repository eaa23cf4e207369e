import io
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.image_files import listing, names, pack, refused, tarred, touch, zipped
from poa.data.images import BadImage
from poa.data.reading import Members, Zipped
from poa.data.sources import SPECIAL


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
        info = tarfile.TarInfo("3.jpg")
        info.type, info.linkname = tarfile.LNKTYPE, "./2.jpg"
        archive.addfile(info)
    first, *others = listing(tmp_path / "set.tar").entries
    assert others == [first._replace(name=name) for name in ("2.jpg", "3.jpg")]


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_of_a_tar_say_what_tarfile_says(tmp_path: Path, kind: int) -> None:
    long = {tarfile.USTAR_FORMAT: 90}.get(kind, 200)
    with tarfile.open(tmp_path / "s.tar", "w", format=kind, pax_headers={"comment": "of all"}) as archive:
        for number, name in enumerate(("b", "ä/\udce9", f"{'f' * 99}/{'n' * long}", "n" * 96)):
            info = tarfile.TarInfo(f"{name}.jpg")
            info.size = 500 * number
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    with tarfile.open(tmp_path / "s.tar") as archive:
        expected = sorted((info.name, info.size, info.offset_data) for info in archive)
    assert [(entry.name, entry.size, entry.offset) for entry in listing(tmp_path / "s.tar").entries] == expected


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


# ---- hostile archives ------------------------------------------------------------------------------------------------

BOMB = 2_000_000
"""Zeros that a small entry inflates to."""
SIZE, STORED, OFFSET = 24, 20, 42
"""Places of numbers in the central directory of a zip."""


def zip_saying(path: Path, numbers: dict[int, int], *, inflated: bytes = bytes(1000), extra: bytes = b"") -> Path:
    """A zip of one deflated image whose directory says other numbers."""
    info = zipfile.ZipInfo("a.jpg")
    info.compress_type, info.extra = zipfile.ZIP_DEFLATED, extra
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, inflated)
    whole = bytearray(path.read_bytes())
    directory = whole.rindex(b"PK\x01\x02")
    for place, number in numbers.items():
        whole[directory + place : directory + place + 4] = struct.pack("<I", number)
    path.write_bytes(whole)
    return path


def tar_saying(path: Path, size: bytes, *, kind: bytes = tarfile.REGTYPE, after: bytes = b"") -> Path:
    """A tar of one image whose header says another size, in twelve bytes."""
    info = tarfile.TarInfo("a.jpg")
    info.type = kind
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = size
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(header)[0]
    path.write_bytes(header + bytes(512) + after + bytes(1024))
    return path


@pytest.mark.parametrize("size", [0, 999, 1001])
def test_no_more_is_inflated_than_is_stated(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (entry,) = listing(zip_saying(tmp_path / "s.zip", {SIZE: size}, inflated=bytes(BOMB))).entries
    made: list[int] = []

    class Watched:
        def __init__(self, bits: int) -> None:
            self.real = decompressobj(bits)

        def decompress(self, stored: bytes, most: int) -> bytes:
            made.append(most)
            return self.real.decompress(stored, most)

    decompressobj = zlib.decompressobj
    monkeypatch.setattr(zlib, "decompressobj", Watched)
    with pytest.raises(BadImage, match=f"damaged in .*: not of the stated {size:,} bytes"):
        Zipped(str(tmp_path / "s.zip")).read(entry)
    assert made == [size + 1]


@pytest.mark.parametrize(
    "numbers",
    [
        {SIZE: 2_000_000_000},
        {SIZE: 2_000_000_000, STORED: 2_000_000_000},
        {STORED: 5000},
        {OFFSET: 5000},
        {SIZE: 0xFFFFFFFF, STORED: 0xFFFFFFFF, OFFSET: 0xFFFFFFFF},
    ],
)
@pytest.mark.parametrize("long", [2**40, 2**63, 2**64 - 1])
def test_impossible_sizes_in_a_zip_are_refused(tmp_path: Path, numbers: dict[int, int], long: int) -> None:
    extra = struct.pack("<HHQQQ", 1, 24, long, long, long)
    assert "s.zip is damaged or not a zip file: " in refused(zip_saying(tmp_path / "s.zip", numbers, extra=extra))


def test_parts_are_those_of_the_whole(tmp_path: Path) -> None:
    """Of a tar, a stored and a deflated entry; the last is inflated in pieces."""
    encoded = np.random.default_rng(0).integers(0, 4, 300_000, dtype=np.uint8).tobytes()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.jpg").write_bytes(encoded)
    for name in ("s.tar", "stored.zip", "deflated.zip"):
        path = pack(tmp_path / "set", tmp_path / name)
        (entry,) = listing(path).entries
        read = (Members([str(path)]) if name == "s.tar" else Zipped(str(path))).parts(entry)
        for start, length in ((0, 10), (10, 70_000), (200_000, 5), (299_990, 10)):
            assert read(start, length) == encoded[start : start + length]
    with pytest.raises(BadImage, match="shorter than stated"):
        read(300_000, 1)


@pytest.mark.parametrize("long", [2**40, 2**63, 2**64 - 1])
def test_impossible_sizes_of_an_entry_without_ending_are_refused(tmp_path: Path, long: int) -> None:
    numbers = dict.fromkeys((SIZE, STORED, OFFSET), 0xFFFFFFFF)
    path = zip_saying(tmp_path / "s.zip", numbers, extra=struct.pack("<HHQQQ", 1, 24, long, long, long))
    path.write_bytes(path.read_bytes().replace(b"a.jpg", b"a_jpg"))
    assert "s.zip is damaged or not a zip file: " in refused(path)


def test_a_method_that_is_not_deflate_cannot_enlarge(tmp_path: Path) -> None:
    path = zipped(tmp_path / "s.zip", "a.jpg")
    whole = bytearray(path.read_bytes())
    whole[whole.rindex(b"PK\x01\x02") + SIZE] = 200
    path.write_bytes(whole)
    assert "the size or place of 'a.jpg' is impossible" in refused(path)


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    """As in bombs whose entries share one long stream."""
    path = zipped(tmp_path / "s.zip", "a.jpg", "b.jpg")
    whole = bytearray(path.read_bytes())
    first = whole.index(b"PK\x01\x02")
    for place in (STORED, SIZE):
        whole[first + place : first + place + 4] = struct.pack("<I", 40)
    path.write_bytes(whole)
    assert "its entries overlap" in refused(path)


def test_an_entry_larger_than_an_image_may_be_is_a_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    (entry,) = listing(zip_saying(tmp_path / "s.zip", {})).entries
    (packed,) = listing(tarred(tmp_path / "s.tar", "a" * 90 + ".jpg")).entries
    monkeypatch.setenv("POA_MAX_PIXELS", "20")
    for reader, each in ((Zipped(str(tmp_path / "s.zip")), entry), (Members([str(tmp_path / "s.tar")]), packed)):
        with pytest.raises(BadImage, match="too large: more than 80 bytes"):
            reader.read(each)


def test_archives_in_archives_are_not_opened(tmp_path: Path) -> None:
    zipped(tmp_path / "s.zip", "a.jpg", "lib 0.zip", "lib 1.zip")
    assert listing(tmp_path / "s.zip").ignored == {".zip": 2}


NEGATIVE = [b"\xff" * 4 + (-size).to_bytes(8, signed=True) for size in (1, 512, 1024, 2**40)]
HUGE = [b"\x80" + bytes(3) + size.to_bytes(8) for size in (2**40, 2**62)] + [b"77777777777\0", b"00000010000\0"]


@pytest.mark.parametrize("size", NEGATIVE + HUGE)
@pytest.mark.parametrize(
    "kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.CONTTYPE]
)
def test_impossible_sizes_in_a_tar_are_refused(tmp_path: Path, size: bytes, kind: bytes) -> None:
    assert "s.tar is damaged or not a tar file: " in refused(tar_saying(tmp_path / "s.tar", size, kind=kind))


@pytest.mark.parametrize("said", ["-512", "-1", "99999999999", str(2**70)])
def test_impossible_sizes_in_further_headers_of_a_tar_are_refused(tmp_path: Path, said: str) -> None:
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.jpg")
        info.pax_headers = {"size": said}
        archive.addfile(info)
        archive.addfile(tarfile.TarInfo("b.jpg"))
    assert "s.tar is damaged or not a tar file: " in refused(path)


def test_only_regular_files_of_a_tar_are_images(tmp_path: Path) -> None:
    path = tarred(tmp_path / "s.tar", "a.jpg")
    kinds = [tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.LNKTYPE]
    with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as archive:
        for number, kind in enumerate(kinds):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        sparse = tarfile.TarInfo("sparse.jpg")
        sparse.pax_headers = {"GNU.sparse.size": str(2**40), "GNU.sparse.numblocks": "1", "GNU.sparse.map": "0,0"}
        archive.addfile(sparse)
    found = listing(path)
    assert [entry.name for entry in found.entries] == ["a.jpg"]
    assert found.ignored == {SPECIAL: len(kinds) + 1}


def test_a_chain_of_headers_ends(tmp_path: Path) -> None:
    path = tar_saying(tmp_path / "s.tar", b"00000000000\0", kind=tarfile.GNUTYPE_LONGNAME)
    path.write_bytes(path.read_bytes()[:512] * 3000)
    assert "s.tar is damaged or not a tar file: " in refused(path)
