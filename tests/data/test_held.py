"""Images that a program names or holds are the same images as those of a folder."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from poa.data.cache import cache_folder
from poa.data.held import Items, named, save
from poa.data.index import ImageIndex, open_index
from poa.errors import UserError


def quiet(_what: str, _done: int, _total: int | None) -> None:
    """No progress."""


class Set:
    """Like torchvision's: no sequence, so only what is promised is used."""

    def __init__(self, items: Sequence[Any], *classes: str) -> None:
        self.items, self.classes = items, classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> Any:
        return self.items[number]


class Unnamed(Set):
    """Without names of classes."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items


def pixels(index: ImageIndex) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(index.read(i)))) for i in range(len(index))]


def opened(data: Any) -> ImageIndex:
    return open_index(named(data, quiet))


@pytest.mark.parametrize("how", ["pil", "array", "tensor", "dict", "names"])
def test_a_data_set_is_as_its_folder(how: str, files: dict[str, bytes], tmp_path: Path) -> None:
    images = [Image.open(io.BytesIO(encoded)) for encoded in files.values()]
    labels = [["ant", "bee", "cat"].index(name.partition("/")[0]) for name in files]
    held: dict[str, Items] = {
        "pil": Set(list(zip(images, labels, strict=True)), "ant", "bee", "cat"),
        "array": Set(
            [(np.asarray(image), np.int64(label)) for image, label in zip(images, labels, strict=True)], *"abc"
        ),
        "tensor": Unnamed(
            [
                (torch.tensor(np.asarray(image)).permute(2, 0, 1), torch.tensor(label))
                for image, label in zip(images, labels, strict=True)
            ]
        ),
        "dict": Unnamed([{"img": image, "label": label} for image, label in zip(images, labels, strict=True)]),
        "names": [(image, name.partition("/")[0]) for image, name in zip(images, files, strict=True)],
    }
    index, folder = opened(held[how]), open_index(tmp_path / "set")
    assert all(map(np.array_equal, pixels(index), pixels(folder)))
    assert index.labels().tolist() == folder.labels().tolist()
    names = {"pil": ("ant", "bee", "cat"), "names": ("ant", "bee", "cat"), "array": ("a", "b", "c")}
    assert tuple(index.classes) == names.get(how, ("0", "1", "2"))


def test_paths_are_as_their_folder(files: dict[str, bytes], tmp_path: Path) -> None:
    paths = [tmp_path / "set" / name for name in files]
    index, folder = opened(paths), open_index(tmp_path / "set")
    assert [index.read(i) for i in range(20)] == [folder.read(i) for i in range(20)]
    labelled = opened([(str(path), path.parent.name) for path in paths])
    assert (labelled.classes, labelled.labels().tolist()) == (folder.classes, folder.labels().tolist())


def test_the_same_images_are_the_same_file(cache: Path) -> None:
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    first = named([image, image], quiet)
    assert first == named((image, image), quiet)
    assert Path(first).parent == cache
    assert first != named([image, image + 1], quiet)
    assert len(list(cache.iterdir())) == 2


def test_values_that_no_png_has_are_kept(cache: Path) -> None:
    deep = np.arange(4 * 5 * 8, dtype=np.uint16).reshape(4, 5, 8)
    index = opened([deep, torch.tensor(deep.astype(np.float32)).permute(2, 0, 1)])
    assert [np.load(io.BytesIO(index.read(i))).dtype for i in (0, 1)] == [np.uint16, np.float32]
    assert all(np.array_equal(np.load(io.BytesIO(index.read(i))), deep) for i in (0, 1))
    grey = Image.fromarray(deep[:, :, 0])
    (read,) = pixels(opened([grey]))
    assert np.array_equal(read, deep[:, :, 0])


def test_no_label(cache: Path) -> None:
    image = Image.new("RGB", (4, 4))
    index = opened(Set([(image, -1), (image, None), (image, 1)], "ant", "bee"))
    assert sorted(index.name(i) for i in range(3)) == ["000000000.png", "000000001.png", "bee/000000002.png"]


def test_paths_of_sources_stay_what_they_are(tmp_path: Path) -> None:
    assert named(tmp_path / "set", quiet) == str(tmp_path / "set")
    assert named([tmp_path / "one", "two.zip"], quiet) == [str(tmp_path / "one"), "two.zip"]


IMAGE = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (7, "got int. Make a list"),
        (iter([IMAGE]), "got list_iterator"),
        ([], "has no images"),
        ([IMAGE, np.zeros((4, 4, 5))], "8-bit images and others"),
        (["a.png", IMAGE], "two lists"),
        ([(IMAGE, 1.5)], "label 1.5"),
        ([(IMAGE, -2)], "label -2"),
        ([(IMAGE, "a/b")], "class 'a/b'"),
        ([(IMAGE, ".a")], "class '.a'"),
        ([("x", 3)], "labels for paths that are no images"),
        ([{"picture": IMAGE}], "keys picture has no image"),
        ([IMAGE, {1, 2}], "Image 1 of the data set cannot be used .*set; give PIL"),
    ],
)
def test_what_cannot_be_stored(data: Any, said: str, cache: Path) -> None:
    with pytest.raises(UserError, match=said):
        named(data, quiet)
    assert not cache.exists() or not list(cache.iterdir()), "something is left behind"


def test_saving_once(tmp_path: Path, cache: Path) -> None:
    done: list[tuple[str, int, int | None]] = []
    path = save([(IMAGE, "a")], tmp_path / "my.zip", lambda *what: done.append(what))
    assert done == [("images stored", 1, 1)]
    index = open_index(path)
    assert (index.name(0), index.classes) == ("a/000000000.png", ("a",))
    with pytest.raises(UserError, match="exists already"):
        save([IMAGE], path, quiet)
    with pytest.raises(UserError, match="give it that ending"):
        save([IMAGE], tmp_path / "my.tar", quiet)


def test_a_cache_that_cannot_be_written_is_replaced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("POA_CACHE", str(tmp_path / "file/cache"))
    paths = [Path(named([IMAGE + number], quiet)) for number in range(2)]
    assert paths[0].parent == paths[1].parent == cache_folder()
    assert all(path.is_file() for path in paths)
    assert caplog.text.count("is not stored for later runs") == 1
