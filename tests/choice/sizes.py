"""Sizes of a run that is not there: networks are drawn freshly."""

from pathlib import Path
from typing import Any

from torch import nn

import tiny
from poa.data.images import Preprocessing
from poa.models.registry import family_of
from poa.models.source import ModelSource

WEIGHTS = "teacher at step 8, sha256 0123456789abcdef"
RGB = (0.5, 0.5, 0.5)
PREPROCESSING = Preprocessing(16, 16, RGB, RGB)


def sizes_of(folder: Path, **over: Any) -> ModelSource:
    """Those of the tiny ViT, with other settings."""
    family = family_of(tiny.config(**over))
    return ModelSource(
        str(folder),
        tuple(map(str, family.space.sizes)),
        lambda name: family.build(family.space.find(name)).requires_grad_(False).eval(),
        nn.Module,
        WEIGHTS,
        PREPROCESSING,
        folder / "eval",
        family=family,
    )
