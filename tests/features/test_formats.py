"""How files of features are laid out; that they can be read back is in test_embed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poa.errors import UserError
from poa.features import formats
from poa.features.formats import Table


def table(**over: Any) -> Table:
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    content = {"names": ("a", "b", "c"), "labels": None, "classes": (), "indices": np.array([0, 2, 5])}
    return Table(**{**content, "features": rows, "patches": None, "about": {}, **over})


def test_safetensors_are_laid_out_as_the_format_asks(tmp_path: Path) -> None:
    formats.write_safetensors(table(labels=np.array([1, -1, 0])), tmp_path / "f.safetensors")
    content = (tmp_path / "f.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    assert header["labels"] == {"dtype": "I64", "shape": [3], "data_offsets": [0, 24]}
    assert header["features"] == {"dtype": "F32", "shape": [3, 4], "data_offsets": [48, 96]}
    assert len(content) == 8 + length + 96


def test_names_that_a_header_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_MOST_TEXT", 100)
    with pytest.raises(UserError, match="names of 3 images do not fit"):
        formats.write_safetensors(table(), tmp_path / "f.safetensors")
    assert not (tmp_path / "f.safetensors").exists()


def test_parts_are_not_copied_and_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "AT_ONCE", 40)
    assert [part.start for part in table().parts()] == [0, 2]
    assert [part.start for part in table(patches=np.zeros((3, 2, 4), np.float32)).parts()] == [0, 1, 2]
