"""Twenty images and a cache that nobody else uses."""

from pathlib import Path

import pytest

from data.image_files import content


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def files(tmp_path: Path, cache: Path) -> dict[str, bytes]:
    """Three classes of 2, 5 and 13 images in the folder ``set``."""
    names = [f"{name}/{i:02d}.png" for name, size in (("ant", 2), ("bee", 5), ("cat", 13)) for i in range(size)]
    images = {name: content(number) for number, name in enumerate(names)}
    for name, encoded in images.items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(encoded)
    return images
