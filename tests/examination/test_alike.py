from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from poa.examination import alike
from poa.examination.alike import FIRST
from poa.examination.measures import RECORD, SIDE

CPU = torch.device("cpu")


def quiet(*_: object) -> None:
    pass


def records_of(thumbnails: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    records = np.zeros(len(thumbnails), RECORD)
    records["thumbnail"] = np.stack(thumbnails)
    return records


def noise(seed: int) -> npt.NDArray[Any]:
    """A smooth picture."""
    coarse = np.random.default_rng(seed).integers(30, 220, (5, 5), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def near(records: npt.NDArray[Any]) -> list[int]:
    rows = np.arange(len(records))
    return alike.near(rows, alike.by_hash(records), num_images=len(records), progress=quiet).tolist()


def test_equal_files() -> None:
    digests = np.array([7, 0, 5, 7, 0, 7, 5], np.uint64)
    assert alike.exact(digests).tolist() == [FIRST, FIRST, FIRST, 0, FIRST, 0, 2]


def test_nearly_equal_pixels() -> None:
    first, second = noise(1), noise(2)
    brighter = np.clip(first.astype(int) + 5, 0, 255).astype(np.uint8)
    grain = np.random.default_rng(0).integers(-3, 4, first.shape)
    grainy = np.clip(second.astype(int) + grain, 0, 255).astype(np.uint8)
    records = records_of([first, second, brighter, first[:, ::-1], grainy, second])
    assert near(records) == [FIRST, FIRST, 0, FIRST, 1, 1]
    records["mean"][2, 0] = 0.2  # red
    assert near(records)[2] == FIRST


def test_hashes_are_compared_as_by_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    hashes = np.repeat(generator.integers(0, 2**63, 6, np.uint64), 12)
    for i in range(len(hashes)):  # up to seven bits are changed
        for bit in generator.choice(63, generator.integers(0, 8), replace=False):
            hashes[i] ^= np.uint64(1) << np.uint64(bit)
    monkeypatch.setattr(alike, "_hashes", lambda records: hashes)
    monkeypatch.setattr(alike, "_look_alike", lambda records, first, second: np.ones(len(first), np.bool_))
    for name, value in ("_BLOCK", 20), ("_MOST_AT_ONCE", 30), ("_TILE", 7):
        monkeypatch.setattr(alike, name, value)
    expected: list[int] = []
    for i, value in enumerate(hashes.tolist()):
        close = [j for j in range(i) if expected[j] == FIRST and (value ^ int(hashes[j])).bit_count() <= 4]
        expected.append(close[0] if close else FIRST)
    assert near(np.zeros(len(hashes), RECORD)) == expected
    assert 10 < expected.count(FIRST) < 60


def test_features_are_compared_as_by_loops_and_chains_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    angles = torch.tensor([0.0, 0.1, 0.2, 0.3, 2.0, 0.05, 2.05])  # each like the one before it
    features = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.arange(1.0, 8.0)[:, None]
    rows = np.array([1, 2, 4, 5, 6, 8, 9])
    monkeypatch.setattr(alike, "_BLOCK", 3)
    monkeypatch.setattr(alike, "_TILE", 2)
    find = alike.by_features(rows, features, float(np.cos(0.12)), CPU)
    some = rows[rows != 9]
    found = alike.near(some, find, num_images=10, progress=quiet).tolist()
    assert found == [FIRST, FIRST, 1, FIRST, FIRST, 4, FIRST, FIRST, 1, FIRST]
