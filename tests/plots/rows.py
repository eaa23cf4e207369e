"""Rows of sizes to draw, and what is seen of a drawing."""

from pathlib import Path

import numpy as np
from matplotlib.image import imread

from poa.elastic.space import SearchSpace
from poa.plots.tables import SizeRow

SMALL = SearchSpace.grid((64, 128, 192), (3, 4, 5, 6))
PAPER = SearchSpace.grid(tuple(range(384, 1025, 64)), tuple(range(12, 25)))


def make_rows(space: SearchSpace, *, low: float = 60.0, score: str = "top1@20", half: float = 0.0) -> list[SizeRow]:
    """Scores that grow with the size, and a little noise; with intervals if these have some length."""
    generator = np.random.default_rng(0)
    rows = []
    for size in space.sizes:
        value = low + 3 * np.log2(size.width * size.depths[0] / 1000) + generator.normal() / 4
        ends = {score: (value - half, value + half)} if half else {}
        rows.append(SizeRow(size, 12 * size.width**2 * size.depths[0], scores={score: value}, intervals=ends))
    return rows


def colours(path: Path) -> int:
    """Number of different colours in a picture, none of them transparent."""
    pixels = imread(path)
    assert (pixels[..., 3] == 1).all()
    return len(np.unique(pixels.reshape(-1, 4), axis=0))
