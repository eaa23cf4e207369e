import io
import random
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from poa.data import images
from poa.data.images import BadImage, PlugIn, begins_as_image, check_bytes, decode, decode_reduced, reads, upright_sides
from poa.errors import UserError

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def plain(mode: str, colour: object, size: tuple[int, int] = (16, 8)) -> Image.Image:
    return Image.new(mode, size, colour)  # type: ignore[arg-type]


def deep(values: object, dtype: str, size: tuple[int, int] = (16, 8)) -> Image.Image:
    return Image.fromarray(np.full(size[::-1], values, dtype))


def with_gap(value: float) -> Image.Image:
    values = np.full((8, 16), value, "float32")
    values[4, 4] = np.nan
    return Image.fromarray(values)


def tiff(bits: int, bands: int, kind: int) -> bytes:
    """A TIFF of one pixel, whose values are unsigned (kind 1), signed (2) or floats (3)."""
    tags = {256: [1], 257: [1], 258: [bits] * bands, 259: [1], 262: [2 if bands > 1 else 1], 277: [bands]}
    tags |= {273: [8], 278: [1], 279: [bits * bands // 8], 339: [kind] * bands}
    pixels = bytes(bits * bands // 8)
    directory, further = 8 + len(pixels), b""
    place = directory + 2 + 12 * len(tags) + 4
    entries = b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}H", *values)
        if len(packed) > 4:
            packed, further, place = struct.pack("<I", place), further + packed, place + len(packed)
        entries += struct.pack("<HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    head = b"II*\0" + struct.pack("<I", directory) + pixels + struct.pack("<H", len(tags))
    return head + entries + bytes(4) + further


def palette(*, transparency: int | bytes | None) -> bytes:
    image = plain("P", 1)
    image.putpalette([0, 0, 255, 255, 0, 0])
    return encoded(image, "PNG", **({} if transparency is None else {"transparency": transparency}))


def deep_ppm(value: int, largest: int) -> bytes:
    return b"P5 16 8 %d\n" % largest + struct.pack(">H", value) * 128


def animation(file_format: str) -> bytes:
    frames = [plain("RGB", RED), plain("RGB", (0, 255, 0))]
    return encoded(frames[0], file_format, save_all=True, append_images=frames[1:])


def exif(orientation: int) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags.tobytes()


CASES: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "rgb jpeg": (encoded(plain("RGB", RED), "JPEG"), RED),
    "rgb png": (encoded(plain("RGB", RED), "PNG"), RED),
    "rgb webp": (encoded(plain("RGB", RED), "WEBP", lossless=True), RED),
    "rgb bmp": (encoded(plain("RGB", RED), "BMP"), RED),
    "rgb tif": (encoded(plain("RGB", RED), "TIFF"), RED),
    "rgb tif lzw": (encoded(plain("RGB", RED), "TIFF", compression="tiff_lzw"), RED),
    "rgb gif": (encoded(plain("RGB", RED), "GIF"), RED),
    "rgb ppm": (encoded(plain("RGB", RED), "PPM"), RED),
    "progressive jpeg": (encoded(plain("RGB", RED), "JPEG", progressive=True), RED),
    "grey jpeg": (encoded(plain("L", 100), "JPEG"), (100, 100, 100)),
    "grey png": (encoded(plain("L", 100), "PNG"), (100, 100, 100)),
    "grey pgm": (encoded(plain("L", 100), "PPM"), (100, 100, 100)),
    "one bit png": (encoded(plain("1", 1), "PNG"), WHITE),
    "one bit tif": (encoded(plain("1", 0), "TIFF"), BLACK),
    "cmyk jpeg": (encoded(plain("CMYK", (0, 255, 255, 0)), "JPEG", quality=100), RED),
    "cmyk tif": (encoded(plain("CMYK", (0, 255, 255, 0)), "TIFF"), RED),
    "lab tif": (encoded(plain("LAB", (0, 128, 128)), "TIFF"), BLACK),
    "ycbcr tif": (encoded(plain("YCbCr", (76, 85, 255)), "TIFF"), RED),
    "palette png": (palette(transparency=None), RED),
    "palette png, colour transparent": (palette(transparency=1), WHITE),
    "palette png, other colour transparent": (palette(transparency=0), RED),
    "palette png, half transparent": (palette(transparency=bytes([255, 51])), (255, 204, 204)),
    "grey png, colour transparent": (encoded(plain("L", 100), "PNG", transparency=100), WHITE),
    "rgb png, colour transparent": (encoded(plain("RGB", RED), "PNG", transparency=RED), WHITE),
    "rgba png, opaque": (encoded(plain("RGBA", (*RED, 255)), "PNG"), RED),
    "rgba png, transparent": (encoded(plain("RGBA", (0, 0, 0, 0)), "PNG"), WHITE),
    "rgba png, half": (encoded(plain("RGBA", (255, 0, 0, 51)), "PNG"), (255, 204, 204)),
    "rgba webp": (encoded(plain("RGBA", (0, 0, 0, 0)), "WEBP", lossless=True), WHITE),
    "rgba tif": (encoded(plain("RGBA", (0, 0, 0, 0)), "TIFF"), WHITE),
    "grey alpha png": (encoded(plain("LA", (100, 0)), "PNG"), WHITE),
    "transparent gif": (encoded(plain("P", 0), "GIF", transparency=0), WHITE),
    "16 bit png": (encoded(deep(257 * 100, "uint16"), "PNG"), (100, 100, 100)),
    "16 bit png, full": (encoded(deep(65535, "uint16"), "PNG"), WHITE),
    "16 bit png, dark stays dark": (encoded(deep(8192, "uint16"), "PNG"), (32, 32, 32)),
    "16 bit tif": (encoded(deep(257 * 100, "uint16"), "TIFF"), (100, 100, 100)),
    "16 bit pgm": (deep_ppm(257 * 100, 65535), (100, 100, 100)),
    "12 bit pgm": (deep_ppm(4095, 4095), WHITE),
    "32 bit tif": (encoded(deep(257 * 100, "int32"), "TIFF"), (100, 100, 100)),
    "float tif": (encoded(deep(257 * 100, "float32"), "TIFF"), (100, 100, 100)),
    "float tif, black": (encoded(deep(0, "float32"), "TIFF"), BLACK),
    "float tif, in part not a number": (encoded(with_gap(257 * 100), "TIFF"), (100, 100, 100)),
    "rgb avif": (encoded(plain("RGB", (120, 120, 120)), "AVIF"), (120, 120, 120)),
    "rgb jpeg 2000": (encoded(plain("RGB", RED), "JPEG2000"), RED),
    "one bit pbm": (encoded(plain("1", 1), "PPM"), WHITE),
    "animated gif": (animation("GIF"), RED),
    "animated png": (animation("PNG"), RED),
    "several pages tif": (animation("TIFF"), RED),
    "broken exif": (encoded(plain("RGB", RED), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0rubbish"), RED),
}


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_image_becomes_rgb(case: str) -> None:
    content, colour = CASES[case]
    image = decode(content)
    assert (image.mode, image.size) == ("RGB", (16, 8))
    assert image.getpixel((0, 0)) == pytest.approx(colour, abs=1)
    assert image.getpixel((15, 7)) == pytest.approx(colour, abs=1)


def test_the_first_bytes_tell_an_image() -> None:
    told = {case for case, (content, _) in CASES.items() if begins_as_image(content[:16])}
    assert set(CASES) - told == {case for case in CASES if case.endswith(("pgm", "ppm", "pbm"))}
    assert not any(begins_as_image(start) for start in (b"", b"BM is short for", b"Python", b"RIFF....WAVE", b"%PDF"))


def test_formats_are_read_where_their_plug_in_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in = PlugIn("FAKE", (".fake",), (b"fake",), "reader_of_fakes", "")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    assert not reads(plug_in)
    (tmp_path / "reader_of_fakes.py").write_text("raise ImportError('a library is missing')")
    assert not reads(plug_in)
    (tmp_path / "reader_of_fakes.py").write_text("from PIL import Image\nImage.register_open('FAKE', open)")
    sys.path_importer_cache.clear()
    assert reads(plug_in)
    monkeypatch.delitem(sys.modules, "reader_of_fakes")


def test_images_without_a_reader_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_MISSING", (images._HEIF,))
    monkeypatch.setattr(images, "_READABLE", (images._AVIF,))
    photo = b"\0\0\0\x18ftypheic" + bytes(40)  # as phones write it, also into files that end in .jpg
    with pytest.raises(BadImage, match=r"not supported: HEIF, whose reader is not installed\. Install it with: pip"):
        decode(photo)
    assert not begins_as_image(photo[:16])
    monkeypatch.setattr(images, "_READABLE", (images._AVIF, images._HEIF))
    assert begins_as_image(photo[:16])


def test_heic_is_decoded() -> None:
    plug_in = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    plug_in.from_pillow(plain("RGB", RED, (64, 32))).save(file)
    image = decode(file.getvalue())
    assert (image.mode, image.size) == ("RGB", (64, 32))
    assert image.getpixel((5, 5)) == pytest.approx(RED, abs=4)


def test_one_pixel_is_an_image() -> None:
    assert decode(encoded(plain("RGB", RED, (1, 1)), "PNG")).size == (1, 1)


def test_pixels_are_those_of_pillow() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(pixels), "JPEG")
    np.testing.assert_array_equal(np.asarray(decode(content)), np.asarray(Image.open(io.BytesIO(content))))
    np.testing.assert_array_equal(np.asarray(decode(encoded(Image.fromarray(pixels), "PNG"))), pixels)


def test_plain_rgb_is_not_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[str] = []
    for method in ("convert", "transpose", "copy"):
        monkeypatch.setattr(Image.Image, method, lambda *args, method=method: copies.append(method))
    decode(CASES["rgb jpeg"][0])
    assert copies == []


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(file_format: str, orientation: int) -> None:
    # The corners of the scene, as it should be seen, from the left above clockwise: 40, 80, 120, 160.
    scene = np.repeat(np.repeat(np.array([[40, 80], [160, 120]], np.uint8), 16, axis=0), 24, axis=1)
    undo: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].T,
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](scene)))
    content = encoded(stored, file_format, exif=exif(orientation))
    assert upright_sides(content) == (32, 48)
    upright = decode(content)
    assert upright.size == (48, 32)
    corners = [np.asarray(upright)[y, x, 0] for x, y in ((2, 2), (45, 2), (45, 29), (2, 29))]
    assert corners == pytest.approx([40, 80, 120, 160], abs=3)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("divisor", [1, 2, 4, 8])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_is_decoded_at_a_fraction_of_its_sides(mode: str, divisor: int, orientation: int) -> None:
    asked: list[tuple[int, int]] = []
    image = plain(mode, "red" if mode != "L" else 76, (65, 130))
    content = encoded(image, "JPEG", quality=95, exif=exif(orientation))
    reduced = decode_reduced(content, lambda height, width: asked.append((height, width)) or divisor)
    assert asked == [(130, 65)]
    sides = -(-65 // divisor), -(-130 // divisor)
    assert (reduced.mode, reduced.size) == ("RGB", sides if orientation == 1 else sides[::-1])
    assert np.abs(np.asarray(reduced).astype(int) - np.asarray(decode(content))[0, 0]).max() <= 1
    if divisor == 1:
        assert reduced.tobytes() == decode(content).tobytes()


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF", "BMP"])
def test_other_formats_are_decoded_whole(file_format: str) -> None:
    content = encoded(plain("RGB", RED, (64, 64)), file_format)
    assert decode_reduced(content, lambda *_: 4).tobytes() == decode(content).tobytes()


def test_the_first_frame_of_several_jpegs_is_reduced() -> None:
    frames = [plain("RGB", colour, (64, 32)) for colour in (RED, WHITE)]
    content = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    reduced = decode_reduced(content, lambda *_: 2)
    assert (reduced.size, reduced.getpixel((0, 0))) == ((32, 16), decode(content).getpixel((0, 0)))


def test_damage_is_found_in_a_reduced_image_too() -> None:
    content = encoded(Image.effect_noise((64, 64), 60), "JPEG")
    for damaged in (content[: len(content) // 2], b"", b"no image"):
        with pytest.raises(BadImage) as error:
            decode_reduced(damaged, lambda *_: 2)
        with pytest.raises(BadImage) as whole:
            decode(damaged)
        assert str(error.value).split(":")[0] == str(whole.value).split(":")[0]


def png_of_zeros(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + zlib.compress(bytes(100_000)), b"IEND"]
    parts = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"path,label\na.jpg,3\n" * 20, "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        (encoded(NOISE, "JPEG")[:-2000], "truncated"),
        (encoded(NOISE, "PNG")[:-2000], "truncated"),
        (encoded(NOISE, "JPEG")[:20], "damaged"),
        (b"P6 0 0 255\n", "without pixels"),
        (png_of_zeros(0, 0), "without pixels"),
        (png_of_zeros(40_000, 40_000), r"too large: more than 178,956,970 pixels; .* set POA_MAX_PIXELS"),
        (encoded(deep(0.5, "float32"), "TIFF"), "multiply the values of all images by the same number, 65,535"),
        (encoded(deep(255, "float32"), "TIFF"), "brightest value is 255 of 65,535, .* nearly black"),
        (encoded(deep(4095, "uint16"), "PNG"), "brightest value is 4,095 .* 16 for example"),
        (encoded(deep(4095, "int32"), "TIFF"), "brightest value is 4,095"),
        (encoded(deep(70000, "int32"), "TIFF"), "from 70,000 to 70,000, and 0 to 65,535 are read"),
        (encoded(deep(-5, "int32"), "TIFF"), "from -5 to -5"),
        (encoded(deep(np.inf, "float32"), "TIFF"), "none of its values is a finite number"),
        (encoded(deep(np.nan, "float32"), "TIFF"), "none of its values is a finite number"),
        (tiff(8, 1, 2), "not supported: signed values of 8 bits"),
        (tiff(16, 1, 3), "not supported: a TIFF of 1 band of float 16-bit values"),
        (tiff(32, 3, 3), "not supported: a TIFF of 3 bands of float 32-bit values; save it as"),
        (tiff(8, 13, 1), "not supported: a TIFF of 13 bands of 8-bit values"),
        (tiff(8, 3, 1)[:14], "damaged at its start"),
    ],
)
def test_bad_images_have_a_reason(content: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason) as error:
        decode(content)
    assert "\n" not in str(error.value)
    assert "BytesIO" not in str(error.value)


def test_texts_and_profiles_of_any_length_are_skipped() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", " " * 1_100_000, zip=True)
    for options in ({"pnginfo": texts}, {"icc_profile": bytes(1_100_000)}):
        content = encoded(NOISE, "PNG", **options)
        assert upright_sides(content) == (64, 64)
        np.testing.assert_array_equal(np.asarray(decode(content)), np.asarray(NOISE))
        damaged = content[: content.index(b"IDAT")] + b"\0" * 50
        with pytest.raises(BadImage, match="damaged"):
            decode(damaged)


def test_the_largest_image_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    content = encoded(NOISE, "PNG")
    monkeypatch.setenv("POA_MAX_PIXELS", "4094")
    with pytest.raises(BadImage, match="too large: more than 4,094 pixels"):
        decode(content)
    with pytest.raises(BadImage, match=r"more than 16,376 bytes; .* set POA_MAX_PIXELS=5001"):
        check_bytes(20_000)
    monkeypatch.setenv("POA_MAX_PIXELS", "5001")
    assert decode(content).size == (64, 64)
    check_bytes(20_000)
    for wrong in ("many", "0", "-5", ""):
        monkeypatch.setenv("POA_MAX_PIXELS", wrong)
        with pytest.raises(UserError, match="POA_MAX_PIXELS must be a number of pixels"):
            decode(content)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000"])
def test_damage_gives_an_image_or_a_bad_image_and_nothing_else(file_format: str) -> None:
    image = NOISE.resize((12, 12))
    options = {"exif": exif(6)} if file_format in {"JPEG", "PNG", "WEBP", "TIFF"} else {}
    whole = encoded(image, file_format, **options)
    chance = random.Random(0)
    bad = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(4):
            damaged[chance.randrange(min(len(damaged), 200))] = chance.randrange(256)
        try:
            assert decode(bytes(damaged)).mode == "RGB"
        except BadImage:
            bad += 1
    assert bad > 0
