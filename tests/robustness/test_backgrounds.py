"""Objects on backgrounds of other classes, and the masks that say where they are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from poa.data.images import Preprocessing
from poa.data.index import open_index
from poa.errors import UserError
from poa.robustness.conditions import Robustness
from poa.robustness.occlusion import MaskedImages
from seeing import SIZES, evaluate, pictures, source


def test_swapped_backgrounds(tmp_path: Path) -> None:
    train, test = pictures(tmp_path / "train", seed=1), pictures(tmp_path / "test")
    Image.new("L", (12, 12)).save(tmp_path / "test" / "masks" / "red" / "3.png")  # shows no object
    settings = Robustness(occlusion=(), shuffle=(), corruptions=(), k=3)
    found = evaluate(
        source(tmp_path), settings, train=train, test=test, masks=tmp_path / "test/masks", limit=None, test_limit=None
    )[SIZES[0]]
    assert list(found) == ["clean", "background own", "background swapped"]
    written = json.loads((tmp_path / "robustness" / "robustness.json").read_text())
    assert written["details"][SIZES[0]] == {"background own": 7, "background swapped": 7}
    Image.new("L", (12, 12), 1).save(tmp_path / "test" / "masks" / "red" / "3.png")
    with pytest.raises(UserError, match=r"masks \(\w+ there, \w+ now\)"):
        evaluate(
            source(tmp_path),
            settings,
            train=train,
            test=test,
            masks=tmp_path / "test/masks",
            limit=None,
            test_limit=None,
        )


def masked(root: Path, **over: Any) -> MaskedImages:
    index = open_index(pictures(root))
    seen = Preprocessing(12, 12, (0.5,) * 3, (0.5,) * 3)
    given = {"index": index, "labels": index.labels(), "folder": root / "masks", "preprocessing": seen}
    return MaskedImages(**{**given, **over})


def test_backgrounds_are_of_another_class_and_always_the_same(tmp_path: Path) -> None:
    images = masked(tmp_path)
    for number in range(8):
        background, mask = images.background(number)
        own = images.mask(number)
        assert int(own.sum()) == 25
        assert torch.equal(background, images.background(number)[0])
        channel = 0 if images.labels[number] == 0 else 2  # blue comes first by name: the other class is red
        assert bool((background[channel] == 255).eq(mask).all())


@pytest.mark.parametrize("kind", ["palette", "alpha", "rgb"])
def test_kinds_of_masks(tmp_path: Path, kind: str) -> None:
    images = masked(tmp_path)
    values = np.zeros((12, 12), np.uint8)
    values[2:4, 5] = 1
    if kind == "palette":
        mask = Image.fromarray(values)
        mask.putpalette([255, 255, 255, 0, 0, 0])
    elif kind == "alpha":
        mask = Image.fromarray(np.dstack([values, np.full_like(values, 255)]), "LA")
    else:
        mask = Image.fromarray(np.dstack([values * 0, values, values * 0]))
    mask.save(images.path(0))
    assert images.mask(0).nonzero().tolist() == [[2, 5], [3, 5]]


def test_bad_masks(tmp_path: Path) -> None:
    images = masked(tmp_path)
    images.check()
    with pytest.raises(UserError, match=r"no folder .*nowhere of masks"):
        masked(tmp_path / "a", folder=tmp_path / "nowhere").check()
    with pytest.raises(UserError, match="of another class, but all"):
        masked(tmp_path / "b", labels=np.zeros(8, np.int64)).check()
    images.path(2).write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"2\.png cannot be read"):
        images.mask(2)
    Image.new("L", (12, 10)).save(images.path(2))
    with pytest.raises(UserError, match=r"2\.png has 12 x 10 pixels, its image 12 x 12"):
        images.mask(2)
    images.path(3).unlink()
    with pytest.raises(UserError, match=r"1 of 8 test images have no mask in .*blue/3\.png"):
        images.check()
    for number in range(4, 8):
        Image.new("L", (12, 12), 1).save(images.path(number))
    with pytest.raises(UserError, match=r"No background was found for 'blue/0\.png'"):
        images.background(0)
