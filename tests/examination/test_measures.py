import io

import numpy as np
import pytest
from PIL import Image

from poa.examination.measures import GOOD, TRUNCATED, UNREADABLE, measure


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def test_values_of_an_image() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    record, reason = measure(encoded(Image.fromarray(pixels)))
    values = pixels.reshape(-1, 3) / 255
    assert (record["width"], record["height"], record["mode"], record["state"], reason) == (7, 5, b"RGB", GOOD, "")
    np.testing.assert_allclose(record["mean"], values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(record["square"], (values**2).mean(0), rtol=1e-6)
    assert not record["grey"]


def test_an_image_that_lies_on_its_side_is_measured_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (9, 4)).save(file, "JPEG", exif=exif)
    record = measure(file.getvalue()).record
    assert (record["width"], record["height"]) == (4, 9)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "P", "RGBA", "1"])
def test_modes(mode: str) -> None:
    grey = Image.linear_gradient("L").resize((16, 16))
    record = measure(encoded(grey.convert(mode), "JPEG" if mode == "CMYK" else "PNG")).record
    assert record["mode"] == mode.encode()
    assert record["grey"]


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damage(kind: str) -> None:
    whole = encoded(Image.effect_noise((40, 40), 60), kind)
    cut = measure(whole[: len(whole) // 2])
    assert cut.record["state"] == TRUNCATED
    assert "truncated" in cut.reason
    assert cut.record["digest"] != measure(whole).record["digest"]
    assert measure(b"text").record["state"] == UNREADABLE
    empty = measure(b"")
    assert (empty.record["state"], empty.record["digest"], empty.reason) == (UNREADABLE, 0, "the file is empty")
