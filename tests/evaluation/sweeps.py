"""Sweeps over four small networks and a few digits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import nn

from poa.data.images import Preprocessing
from poa.data.index import ImageIndex, open_index
from poa.elastic.space import SearchSpace, Size
from poa.evaluation import evaluate, sweep
from poa.evaluation.knn import Knn
from poa.evaluation.results import Results, Scores
from poa.evaluation.sweep import SweepOptions
from poa.families.vit import ViT
from poa.features.extract import Progress
from poa.models.source import ModelSource

SPACE = SearchSpace.grid((32, 48), (1, 2))
FAMILY = ViT(SPACE, image_size=8, patch_size=4, head_dim=16, layer_scale=0.0)
SIZES = tuple(map(str, SPACE.sizes))
KNN = Knn(ks=(5, 20))
PREPROCESSING = Preprocessing(8, 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def make_network(name: str) -> nn.Module:
    size = Size.parse(name)
    torch.manual_seed(size.width + size.depths[0])
    return FAMILY.build(size)


def digits(cache: Path, *, train: int = 80, test: int = 40) -> dict[str, ImageIndex]:
    return {
        "train_index": open_index("digits/train", limit=train, cache=cache),
        "test_index": open_index("digits/test", limit=test, cache=cache),
    }


class Told:
    """Stands in for the bars of a sweep."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress or (lambda *_: None)

    def __enter__(self) -> Progress:
        return self._progress

    def __exit__(self, *_: object) -> None:
        pass


def score_all(
    out: Path,
    names: Sequence[str] = SIZES,
    *,
    networks: Any = make_network,
    weights: str = "seed 0",
    protocol: Any = KNN,
    overwrite: bool = False,
    max_bad_share: float = 0.01,
    console: Console | None = None,
    progress: Progress | None = None,
    at_once: int = 3,
    batch: int = 16,
    **images: Any,
) -> Results:
    images = images or digits(out.parent / "cache")
    source = ModelSource("mine", SIZES, networks, networks, weights, PREPROCESSING, out.parent)
    options = SweepOptions(name=out.name, overwrite=overwrite, max_bad_share=max_bad_share, console=console)
    scorer = evaluate.FrozenFeatures.of(source, names, protocol, train=images["train_index"], test=images["test_index"])
    told = patch.object(sweep, "Bars", lambda _: Told(progress))
    with told, patch.multiple(evaluate, AT_ONCE=at_once, BATCH=batch):
        return sweep.sweep(source, scorer, names, options)


def score(out: Path, names: Sequence[str] = SIZES, **options: Any) -> Scores:
    return score_all(out, names, **options).scores


def folder(root: Path, *, classes: Sequence[str], seed: int, per_class: int = 4) -> ImageIndex:
    generator = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            Image.fromarray(generator.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(
                root / name / f"{seed}-{number}.png"
            )
    return open_index(str(root), cache=root.parent / "cache")


class Counting:
    """Builds networks, notes which, and fails when it has built enough."""

    def __init__(self, most: int = 100) -> None:
        self.built: list[str] = []
        self._most = most

    def __call__(self, name: str) -> nn.Module:
        if len(self.built) == self._most:
            raise KeyboardInterrupt
        self.built.append(name)
        return make_network(name)


class Diverged:
    """Builds networks, some of which have diverged."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __call__(self, name: str) -> nn.Module:
        network = make_network(name)
        if name in self.names:
            nn.init.constant_(network.model.norm.weight, torch.nan)
        return network
