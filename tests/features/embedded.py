"""A source of small networks, what its features are, and what files of them hold."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

from poa.data.augment import normalise
from poa.data.images import Preprocessing
from poa.data.index import open_index
from poa.data.loader import images_for_scoring
from poa.elastic.space import SearchSpace, Size
from poa.families.base import Features
from poa.families.vit import ViT
from poa.features import embed
from poa.models.source import ModelSource

FAMILY = ViT(SearchSpace.grid((32, 48), (1, 2)), image_size=8, patch_size=4, head_dim=16, layer_scale=0.5)
SIZES = tuple(map(str, FAMILY.space.sizes))
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PATCHES = 4


def make_network(name: str) -> nn.Module:
    size = Size.parse(name)
    torch.manual_seed(size.width + size.depths[0])
    return FAMILY.build(size).requires_grad_(False).eval()


def source(**over: Any) -> ModelSource:
    defaults = {
        "name": "runs/mine",
        "names": SIZES,
        "network": make_network,
        "timm_model": make_network,
        "weights": "seed 0",
    }
    prepared = {"preprocessing": Preprocessing(8, 8, MEAN, STD), "out": Path("eval"), "family": FAMILY}
    return ModelSource(**{**defaults, **prepared, **over})


def write(out: Path, data: str = "digits/test", *, sizes: Any = ("32x1",), **options: Any) -> embed.Embedded:
    return embed.embed(options.pop("source", source()), data, out=out, sizes=sizes, **options)


def folder(root: Path, classes: tuple[str, ...] = ("ant", "bee"), *, per_class: int = 4) -> str:
    generator = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            pixels = generator.integers(256, size=(8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return str(root)


def expected(data: str, size: str, *, limit: int | None = None) -> Features:
    (batch,) = images_for_scoring(open_index(data, limit=limit), size=8, resize=8, batch_size=1000)
    features: Features = make_network(size)(normalise(batch.images, mean=MEAN, std=STD))
    return features


def parquet_content(path: Path) -> dict[str, Any]:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(path)
    found: dict[str, Any] = {"names": table["name"].to_pylist()}
    found["features"] = np.array(table["feature"].to_pylist(), np.float32)
    if "label" in table.column_names:
        found["labels"] = table["label"].to_pylist()
    if "patches" in table.column_names:
        found["patches"] = np.array(table["patches"].to_pylist(), np.float32)
    assert table.schema.field("feature").type.list_size == found["features"].shape[1]
    return found | {"about": json.loads(table.schema.metadata[b"poa"])}


def npy_content(path: Path) -> dict[str, Any]:
    about = json.loads(path.with_suffix(".json").read_text())
    found = {"names": about.pop("names"), "features": np.load(path), "about": about}
    if (labels := about.pop("labels")) is not None:
        found["labels"] = [None if label < 0 else about["classes"][label] for label in labels]
    patches = path.with_name(f"{path.stem}-patches.npy")
    return found | ({"patches": np.load(patches)} if patches.exists() else {})


def safetensors_content(path: Path) -> dict[str, Any]:
    with safe_open(path, "np") as file:
        about = {key: json.loads(text) for key, text in file.metadata().items()}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no dictionary
    assert tensors["indices"].dtype == np.int64
    found: dict[str, Any] = {"names": about.pop("names"), "features": tensors["features"], "about": about}
    if "labels" in tensors:
        found["labels"] = [None if label < 0 else about["classes"][label] for label in tensors["labels"]]
    return found | ({"patches": tensors["patches"]} if "patches" in tensors else {})


READERS = {".parquet": parquet_content, ".npy": npy_content, ".safetensors": safetensors_content}
