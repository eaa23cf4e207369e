import os
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from poa.plots.overlays import ImageWithMasks, ImageWithObjects, Objects, mask_sheet, object_sheet

NOTHING = Objects(np.zeros((0, 4), dtype=np.float32), (), None)


def test_truth_on_the_left_and_what_was_found_on_the_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, written = list[np.ndarray](), list[tuple[str, float, float]]()
    imshow, text = Axes.imshow, Axes.text
    monkeypatch.setattr(Axes, "imshow", lambda self, image, **o: (shown.append(image), imshow(self, image, **o))[1])
    monkeypatch.setattr(
        Axes, "text", lambda self, x, y, s, **o: (written.append((s, x, y)), text(self, x, y, s, **o))[1]
    )
    image = np.full((20, 30, 3), 100, dtype=np.uint8)
    masks = np.zeros((1, 20, 30), dtype=np.bool_)
    masks[0, 5:10, 4:8] = True
    truth = Objects(np.array([[4, 5, 8, 10]], dtype=np.float32), ("cat",), masks)
    found = Objects(np.array([[3, 5, 8, 11], [20, 1, 29, 9]], dtype=np.float32), ("cat", "dog"), None)
    out = tmp_path / "sheet.png"
    object_sheet(
        [ImageWithObjects("a.jpg", image, truth, found), ImageWithObjects("b.jpg", image, NOTHING, NOTHING)],
        found="found",
        title="t",
        out=out,
    )
    left, right, *empty = shown
    changed = (left != image / 255).any(axis=2)
    assert np.array_equal(changed, masks[0])
    assert len(np.unique(left[masks[0]], axis=0)) == 1
    assert all(np.array_equal(each, image / 255) for each in (right, *empty))
    assert written == [("cat", 4, 5), ("cat", 3, 5), ("dog", 20, 1)]
    assert np.all(image == 100)
    with Image.open(out) as picture:
        assert min(picture.size) > 400
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


ODD = ("$\\x{$", "_hidden", "a[/b]c", os.fsdecode(b"caf\xe9"), "猫\n", "long " * 40)


def test_names_of_all_kinds_are_drawn(tmp_path: Path) -> None:
    mask = np.arange(64).reshape(8, 8) % len(ODD)
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    objects = Objects(np.array([[1, 1, 5, 5]] * len(ODD), dtype=np.float32), ODD, None)
    masks = [ImageWithMasks(name, image, mask, mask) for name in ODD[:2]]
    mask_sheet(masks, classes=ODD, title="".join(ODD), out=tmp_path / "masks.png")
    rows = [ImageWithObjects("".join(ODD), image, objects, NOTHING)]
    object_sheet(rows, found="found", title="".join(ODD), out=tmp_path / "objects.png")
    assert len(list(tmp_path.iterdir())) == 2


def test_images_without_objects_alone(tmp_path: Path) -> None:
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    object_sheet(
        [ImageWithObjects("a.jpg", image, NOTHING, NOTHING)], found="found", title="t", out=tmp_path / "sheet.png"
    )
    assert (tmp_path / "sheet.png").is_file()
