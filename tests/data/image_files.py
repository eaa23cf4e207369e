"""Small images in folders, archives and lists, and what is found there."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from poa.data.archives import list_tar, list_zip
from poa.data.index import ImageIndex
from poa.data.lists import list_paths
from poa.data.sources import Listing, Progress, list_folder, resolve
from poa.errors import UserError


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


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return path


def tarred(path: Path, *names: str, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))
    return path


def listing(path: Path | str, progress: Progress = lambda _: None) -> Listing:
    source = resolve(str(path))
    lister = {"folder": list_folder, "list": list_paths, "zip": list_zip, "tar": list_tar}[source.kind]
    return lister(source, progress)


def names(path: Path | str) -> list[str]:
    return [entry.name for entry in listing(path).entries]


def refused(path: Path | str) -> str:
    with pytest.raises(UserError) as error:
        listing(path)
    return str(error.value)
