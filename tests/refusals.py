"""What the command tells a user who got something wrong, and images that are wrong."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command import poa

TRAIN = "pretrain --config tiny.yaml --out new"


def picture(path: Path, *, number: int = 0, side: int = 24) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.Generator(np.random.Philox(key=number)).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def truncate(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def complaint(errors: str) -> str:
    """The one sentence or two that the user is left with."""
    assert "Traceback" not in errors
    *earlier, last = errors.splitlines()
    assert last.startswith("poa: ")
    assert not any(line.startswith("poa: ") for line in earlier)
    assert last.endswith((".", "?"))
    assert len(last) < 500, "too long to be read"
    return last.removeprefix("poa: ")


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert poa(*words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return complaint(captured.err)
