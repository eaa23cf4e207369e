"""Small images in folders and archives, for the tests of the index."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from poa.data.index import ImageIndex


def content(number: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (4 + number % 5, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pack(folder: Path, path: Path) -> Path:
    """Pack a folder; the ending of the path says how."""
    members = sorted(folder.rglob("*"), reverse=True)
    if path.suffix == ".tar":
        with tarfile.open(path, "w") as archive:
            for member in members:
                archive.add(member, f"./top/{member.relative_to(folder)}", recursive=False)
        return path
    compression = zipfile.ZIP_DEFLATED if "deflated" in path.name else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", compression) as zipped:
        for member in members:
            zipped.write(member, f"top/{member.relative_to(folder)}")
    return path


def same(index: ImageIndex, images: dict[str, bytes]) -> bool:
    """Compare in shuffled order: random access must not depend on what was read before."""
    order = np.random.default_rng(0).permutation(len(index))
    return {index.name(i): index.read(i) for i in order.tolist()} == images
