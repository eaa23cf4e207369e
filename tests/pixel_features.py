"""Networks that see digits without training, and images of squares on a background."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from poa.data.images import Preprocessing
from poa.elastic.space import SearchSpace, Size
from poa.evaluation.results import Scores
from poa.evaluation.sweep import SweepOptions
from poa.families.base import Features
from poa.families.vit import ViT
from poa.models.source import ModelSource
from poa.robustness import evaluate as robustness
from poa.robustness.conditions import Robustness

FAMILY = ViT(SearchSpace.grid((32, 48), (1,)), image_size=8, patch_size=4, head_dim=16, layer_scale=0.5)
SIZES = tuple(map(str, FAMILY.space.sizes))
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SETTINGS = Robustness(occlusion=(0.25, 0.5), shuffle=(2,), corruptions=("fog", "jpeg"), severities=(2, 5), k=5, seed=3)


class Seeing(nn.Module):
    """A network whose features also hold the pixels, so that digits can be told apart without training."""

    def __init__(self, network: nn.Module, *, scale: float = 1.0, only_dark: bool = False) -> None:
        super().__init__()
        self.network, self.scale, self.only_dark = network, scale, only_dark

    def forward(self, images: Tensor) -> Features:
        cls, patches = self.network(images)
        rows = torch.cat([cls, images.flatten(1)], dim=1) * self.scale
        if self.only_dark:  # NaN for bright images
            rows = torch.where(images.mean((1, 2, 3), keepdim=False)[:, None] > 1.0, math.nan, rows)
        return Features(rows, patches)


def make_network(name: str, **options: Any) -> nn.Module:
    size = Size.parse(name)
    torch.manual_seed(size.width)
    return Seeing(FAMILY.build(size), **options).requires_grad_(False).eval()


def source(out: Path, **over: Any) -> ModelSource:
    networks = {"name": "runs/mine", "names": SIZES, "network": make_network, "timm_model": make_network}
    prepared = {"weights": "w", "preprocessing": Preprocessing(8, 8, MEAN, STD), "out": out, "family": FAMILY}
    return ModelSource(**{**networks, **prepared, **over})


def evaluate(given: ModelSource, settings: Robustness = SETTINGS, **options: Any) -> Scores:
    images = {"train": "digits/train", "test": "digits/test", "limit": 60, "test_limit": 30, "masks": None}
    images |= {key: options.pop(key) for key in images if key in options}
    options = {"options": SweepOptions(**options, console=Console(quiet=True))}
    return robustness.evaluate(given, settings, **images, **options).scores


def pictures(root: Path, *, seed: int = 0, side: int = 12) -> str:
    """Two classes: a red or blue square on a background of the same kind of green."""
    generator = np.random.default_rng(seed)
    for name, channel in (("red", 0), ("blue", 2)):
        for folder in (root / "images" / name, root / "masks" / name):
            folder.mkdir(parents=True)
        for number in range(4):
            pixels = np.zeros((side, side, 3), np.uint8)
            pixels[..., 1] = generator.integers(100, 200)
            mask = np.zeros((side, side), np.uint8)
            top, left = generator.integers(0, side - 5, size=2)
            pixels[top : top + 5, left : left + 5, channel] = 255
            mask[top : top + 5, left : left + 5] = 1 + number
            Image.fromarray(pixels).save(root / "images" / name / f"{number}.png")
            Image.fromarray(mask).save(root / "masks" / name / f"{number}.png")
    return str(root / "images")
