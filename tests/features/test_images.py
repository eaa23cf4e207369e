"""What every command does first with its images."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import poa.features.images as images
from poa.data.index import open_index
from poa.features.images import note_darkness, open_images, with_named


def write(folder: Path, *brightest: int) -> str:
    for number, value in enumerate(brightest):
        path = folder / f"{number % 2}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.linspace(0, value, 64).astype(np.uint8).reshape(8, 8)).save(path)
    return str(folder)


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=500)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_dark_images_are_told_once(tmp_path: Path, console: Console) -> None:
    dark, darker = (open_index(write(tmp_path / str(value), value, value)) for value in (63, 15))
    bright = open_index(write(tmp_path / "bright", 15, 15, 128, 15))
    note_darkness(bright, console=console)
    assert not said(console)
    for _ in range(2):
        note_darkness(bright, dark, darker, console=console)
    assert said(console) == (
        f"Note: No pixel is brighter than 63 of 255 in 2 images tried in {tmp_path / '63'}. If their values fill only "
        "a part of their range, such as 14 bits stored in 16, multiply the values of all images by one number.\n"
    )


def test_images_that_cannot_be_read_are_not_dark(tmp_path: Path, console: Console) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    note_darkness(open_index(str(tmp_path)), console=console)
    assert not said(console)


@pytest.mark.parametrize("patience", [0.0, 60.0])
def test_indexing_shows_progress_where_it_takes_long(
    tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    monkeypatch.setattr(images, "PATIENCE_SECONDS", patience)
    assert len(open_images(write(tmp_path / "set", 1, 2, 3), limit=2, console=console)) == 2
    assert ("images indexed: 3/3 in 0:00" in said(console)) == (patience == 0)


def test_settings_with_images_in_place_of_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POA_CACHE", str(tmp_path))
    image = Image.new("RGB", (4, 4))
    given = with_named({"data": [image], "out": Path("run"), "monitor": {"data": [(image, 0)], "num_images": 1}})
    assert (given["out"], given["monitor"]["num_images"]) == ("run", 1)
    assert [open_index(data).name(0) for data in (given["data"], given["monitor"]["data"])] == [
        "000000000.png",
        "0/000000000.png",
    ]
    assert with_named({"epochs": 3, "monitor": {"every_epochs": 2.0}}) == {
        "epochs": 3,
        "monitor": {"every_epochs": 2.0},
    }
