"""What is found out about images and machine."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from poa.config.channels import Values
from poa.data.index import open_index
from poa.errors import UserError
from poa.planning.facts import images_of, machine_of


def test_images(tmp_path: Path) -> None:
    for number, size in enumerate([(40, 20), (30, 50), (24, 24)]):
        grey = np.full((size[1], size[0]), 51, np.uint8)
        Image.fromarray(grey).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    found = images_of(open_index(tmp_path))
    assert (found.number, found.tried, found.side, found.pixels, found.is_grey) == (4, 3, 24, 800, True)
    assert found.mean == (0.2, 0.2, 0.2)
    assert found.std == (0.01, 0.01, 0.01), "of constant images it is not 0, by which values are divided"
    assert found.line() == "4, grey, shorter side 24 pixels (median of 3 tried)"
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(tmp_path / "colour.png")
    assert not images_of(open_index(tmp_path)).is_grey


def test_no_image_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"No image tried in .* can be read .*Fix them, or give another --data"):
        images_of(open_index(tmp_path))


def test_machine() -> None:
    found = machine_of(torch.device("cpu"), local=1, processes=2)
    assert (found.device, found.processes) == ("cpu", 2)
    assert found.cores >= 1
    assert found.line().startswith("no GPU, ")


def test_images_with_channels_of_their_own(tmp_path: Path) -> None:
    for number, side in enumerate((10, 20)):
        image = np.zeros((side, 30, 4), np.uint16)
        image[:, :, 1] = 13107 * (1 + number)
        np.save(tmp_path / f"{number}.npy", image)
    found = images_of(open_index(tmp_path), Values(4))
    assert (found.number, found.tried, found.side, found.pixels) == (2, 2, 15, 450)
    assert found.mean == (0.0, 0.3, 0.0, 0.0)
    assert found.std == (1.0, 0.1, 1.0, 1.0), "a channel without any change is left as it is"
    assert found.line().startswith("2, 4 channels, shorter")
