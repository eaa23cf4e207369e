import json
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from poa.data.augment import normalise
from poa.data.images import Preprocessing
from poa.data.loader import ScoringImages
from poa.elastic.space import SearchSpace, Size
from poa.errors import UserError
from poa.families.base import Features
from poa.families.vit import ViT
from poa.features.extract import Extracted, extract_features

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
NUM_IMAGES, BATCH = 50, 8
BAD = {3, 16, 17, 18, 19, 20, 21, 22, 23, 49}  # among them a whole batch, and the last image
PIXELS = torch.randint(256, (NUM_IMAGES, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class StoppedError(Exception):
    pass


def source(
    *, bad: set[int] = BAD, stop_at: int | None = None, starts: list[int] | None = None
) -> Callable[[int], Iterator[ScoringImages]]:
    def batches(start: int) -> Iterator[ScoringImages]:
        if starts is not None:
            starts.append(start)
        for first in range(start, NUM_IMAGES, BATCH):
            if stop_at is not None and first >= stop_at:
                raise StoppedError
            wanted = range(first, min(first + BATCH, NUM_IMAGES))
            good = tuple(image for image in wanted if image not in bad)
            yield ScoringImages(good, PIXELS[list(good)], tuple(image for image in wanted if image in bad))

    return batches


def make_networks(*names: str) -> dict[str, nn.Module]:
    family = ViT(SearchSpace.grid((32, 48), (1, 2)), image_size=8, patch_size=4, head_dim=16)
    torch.manual_seed(0)
    networks: dict[str, nn.Module] = {str(size): family.build(size, drop_path=0.5) for size in family.space.sizes}
    return {name: networks[name] for name in names or networks}


def extract(folder: Path, networks: dict[str, nn.Module], batches: Any, **options: Any) -> Extracted:
    defaults = {"num_images": NUM_IMAGES, "settings": {"weights": "a"}, "save_every": 2}
    fixed = {"device": torch.device("cpu"), "preprocessing": Preprocessing(8, 8, MEAN, STD)}
    return extract_features(networks, batches, folder=folder, **{**defaults, **fixed, **options})


def assert_same(found: Extracted, expected: Extracted) -> None:
    assert torch.equal(found.indices, expected.indices)
    assert found.features.keys() == expected.features.keys()
    assert all(torch.equal(found.features[name], expected.features[name]) for name in found.features)


def test_rows_are_class_features_of_the_good_images(tmp_path: Path) -> None:
    networks = make_networks()
    found = extract(tmp_path / "work", networks, source())
    good = [image for image in range(NUM_IMAGES) if image not in BAD]
    assert found.indices.tolist() == good
    for name, network in networks.items():
        expected = network.eval()(normalise(PIXELS[good], mean=MEAN, std=STD)).cls
        assert found.features[name].shape == (len(good), Size.parse(name).width)
        torch.testing.assert_close(found.features[name], expected)


def test_each_batch_is_decoded_once_for_all_networks(tmp_path: Path) -> None:
    starts: list[int] = []
    extract(tmp_path / "work", make_networks(), source(starts=starts))
    assert starts == [0]


@pytest.mark.parametrize("stop_at", [0, 8, 16, 24, 40, 48])
def test_resumed_equals_uninterrupted(tmp_path: Path, stop_at: int) -> None:
    networks, starts = make_networks(), list[int]()
    expected = extract(tmp_path / "whole", networks, source())
    with pytest.raises(StoppedError):
        extract(tmp_path / "work", networks, source(stop_at=stop_at))
    assert_same(extract(tmp_path / "work", networks, source(starts=starts)), expected)
    assert starts == [stop_at // (2 * BATCH) * 2 * BATCH]


def test_finished_features_are_not_made_again(tmp_path: Path) -> None:
    networks, starts = make_networks(), list[int]()
    expected = extract(tmp_path / "work", networks, source())
    found = extract(tmp_path / "work", networks, source(starts=starts))
    assert starts == []
    assert_same(found, expected)


def test_resumes_with_some_of_the_networks(tmp_path: Path) -> None:
    expected = extract(tmp_path / "whole", make_networks("48x1"), source())
    with pytest.raises(StoppedError):
        extract(tmp_path / "work", make_networks(), source(stop_at=32))
    starts = list[int]()
    assert_same(extract(tmp_path / "work", make_networks("48x1"), source(starts=starts)), expected)
    assert starts == [32]


@pytest.mark.parametrize(
    "other", [{"settings": {"weights": "b"}}, {"networks": ("32x1", "48x2")}, {"num_images": NUM_IMAGES - 1}]
)
def test_starts_again_when_something_else_is_asked_for(tmp_path: Path, other: dict[str, Any]) -> None:
    with pytest.raises(StoppedError):
        extract(tmp_path / "work", make_networks("32x1"), source(stop_at=32))
    starts = list[int]()
    networks = make_networks(*other.pop("networks", ["32x1"]))
    extract(tmp_path / "work", networks, source(starts=starts), **other)
    assert starts == [0]


def test_starts_again_from_a_damaged_state(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "progress.json").write_text('{"networks":')
    found = extract(tmp_path / "work", make_networks("32x1"), source())
    assert len(found.indices) == NUM_IMAGES - len(BAD)


def test_files_are_float32_arrays_whatever_the_networks_give(tmp_path: Path) -> None:
    networks = make_networks("32x1")
    exact = extract(tmp_path / "a", networks, source()).features["32x1"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = extract(tmp_path / "b", networks, source()).features["32x1"]
    stored = np.load(tmp_path / "b" / "32x1.npy")
    assert stored.dtype == np.float32
    assert stored.shape == (NUM_IMAGES, 32)
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.1)


def test_reports_progress(tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    extract(tmp_path, make_networks("32x1"), source(), progress=lambda *call: calls.append(call))
    assert calls == [("images", min(done, 50), 50) for done in range(8, 64, 8)]


def test_no_room_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(NUM_IMAGES * (32 * 4 + 8) - 1))
    with pytest.raises(UserError, match=r"features of 1 network need 0.0 GB"):
        extract(tmp_path, make_networks("32x1"), source())


def test_no_image_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Of 50 images, none could be read"):
        extract(tmp_path, make_networks("32x1"), source(bad=set(range(NUM_IMAGES))))


def test_state_is_small_and_readable(tmp_path: Path) -> None:
    extract(tmp_path, make_networks("32x1"), source())
    state = json.loads((tmp_path / "progress.json").read_text())
    assert state == {
        "settings": {"weights": "a"},
        "networks": ["32x1"],
        "num_images": 50,
        "next_image": 50,
        "num_rows": 40,
    }


def test_networks_need_only_give_class_features(tmp_path: Path) -> None:
    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Features:
            return Features(images.mean((2, 3)), images[:, :, :1, 0])

    found = extract(tmp_path, {"mean": Mean()}, source())
    expected = normalise(PIXELS, mean=MEAN, std=STD)[found.indices].mean((2, 3))
    torch.testing.assert_close(found.features["mean"], expected)
