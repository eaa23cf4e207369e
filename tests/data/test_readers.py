"""Files that hold more than Pillow gives."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from poa.config.channels import Values
from poa.data import readers
from poa.data.channels import pixels_of
from poa.data.images import BadImage
from poa.data.readers import arranged, reader_of

EIGHT = (np.arange(5 * 6 * 8) * 270).astype(np.uint16).reshape(5, 6, 8)
COLOURS = (np.arange(5 * 6 * 3) * 700).astype(np.uint16).reshape(5, 6, 3)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def tiff(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, photometric="minisblack", **options)  # type: ignore[arg-type]
    return file.getvalue()


def deep_png(array: np.ndarray) -> bytes:
    """torchvision and Pillow write no 16 bits of colour: the chunks by hand."""
    import struct
    import zlib

    height, width, channels = array.shape
    colour = {2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    chunks = [*parts, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def dicom(array: np.ndarray, *, kind: str = "MONOCHROME2", slope: float = 1, intercept: float = 0) -> bytes:
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = CTImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = "1.2.3"
    file.Rows, file.Columns, file.SamplesPerPixel, file.PhotometricInterpretation = *array.shape, 1, kind
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 12, 11
    file.PixelRepresentation, file.RescaleSlope, file.RescaleIntercept = 0, slope, intercept
    file.PixelData = array.astype("<u2").tobytes()
    written = io.BytesIO()
    file.save_as(written, enforce_file_format=True)
    return written.getvalue()


def values(encoded: bytes, channels: int, limits: tuple[float, float] | None = None) -> np.ndarray:
    return pixels_of(encoded, Values(channels, limits))[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    "encoded",
    [
        npy(EIGHT),
        npy(np.moveaxis(EIGHT, 2, 0)),
        npy(np.asfortranarray(EIGHT.astype(">u2"))),
        tiff(EIGHT, planarconfig="contig"),
        tiff(np.moveaxis(EIGHT, 2, 0), planarconfig="separate"),
        tiff(np.moveaxis(EIGHT, 2, 0)),  # a page for each
    ],
)
def test_eight_channels_of_16_bits_are_read_exactly(encoded: bytes) -> None:
    np.testing.assert_array_equal(values(encoded, 8), EIGHT / np.float32(65535))


def test_bands_that_pillow_drops_are_read() -> None:
    five = np.arange(5 * 6 * 5, dtype=np.uint8).reshape(5, 6, 5)
    np.testing.assert_array_equal(values(tiff(five, planarconfig="contig"), 5), five)


def test_colours_of_16_bits_are_read_exactly_and_laid_on_white() -> None:
    np.testing.assert_array_equal(values(deep_png(COLOURS), 3), COLOURS / np.float32(65535))
    half = np.dstack([COLOURS[:, :, :1], np.full((5, 6, 1), 32768, np.uint16)])
    expected = np.rint(COLOURS[:, :, :1] * (32768 / 65535) + 65535 * (1 - 32768 / 65535)) / 65535
    np.testing.assert_allclose(values(deep_png(half), 1), expected, atol=1.1 / 65535)
    np.testing.assert_array_equal(values(deep_png(half), 2), half / np.float32(65535))


def test_dicom_is_rescaled_and_white_is_bright() -> None:
    stored = np.array([[0, 1024], [2048, 4095]])
    hounsfield = dicom(stored, slope=1, intercept=-1024)
    expected = [[0.0, 0.5], [1.0, 1.0]]  # air, water, and all above 1024
    np.testing.assert_allclose(values(hounsfield, 1, (-1024, 1024))[:, :, 0], expected)
    inverted = values(dicom(stored, kind="MONOCHROME1"), 1)[:, :, 0]
    np.testing.assert_array_equal(inverted, (4095 - stored).astype(np.float32) / np.float32(65535))
    with pytest.raises(BadImage, match="pixels are PALETTE COLOR; save values or RGB"):
        values(dicom(stored, kind="PALETTE COLOR"), 1)


def test_channels_are_last_or_first() -> None:
    assert arranged(np.zeros((4, 5)), 1).shape == (4, 5, 1)
    assert arranged(np.zeros((8, 8, 3)), 8).shape == (8, 3, 8)
    assert arranged(np.zeros((8, 4, 8)), 8).shape == (8, 4, 8)
    assert arranged(np.zeros((2, 40, 50)), 3).shape == (40, 50, 2)  # which is then refused as it is
    assert arranged(np.zeros((1, 1, 4, 5)), 1).shape == (4, 5, 1)
    with pytest.raises(BadImage, match="1 axes instead of height, width and channels"):
        arranged(np.zeros(4), 1)


@pytest.mark.parametrize(
    ("encoded", "said"),
    [
        (lambda: npy(np.array([[{}]])), "an array of Python objects; save numbers"),
        (lambda: npy(np.zeros((0, 4))), "too large or empty: 0 x 4 values"),
        (lambda: npy(np.zeros((2, 3)))[:90], "damaged: "),
        (lambda: tiff(EIGHT, planarconfig="contig", extratags=[(274, 3, 1, 6, True)]), "a TIFF .* that is not upright"),
    ],
)
def test_what_cannot_be_read_is_refused(encoded: Callable[[], bytes], said: str) -> None:
    with pytest.raises(BadImage, match=said):
        values(encoded(), 1)


def test_a_reader_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "find_spec", lambda _: None)
    with pytest.raises(BadImage, match=r"a TIFF of several bands, whose reader is not installed.*poa-ssl\[channels\]"):
        reader_of(tiff(EIGHT, planarconfig="contig"))
    grey = io.BytesIO()
    Image.fromarray(EIGHT[:, :, 0]).save(grey, "TIFF")
    assert reader_of(grey.getvalue()) is None  # Pillow reads it
