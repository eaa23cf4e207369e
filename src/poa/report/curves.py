"""Curves of a training: losses with the value at which they stay after a collapse, scores, and what else was logged."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from poa.config.pretraining import SELF_DISTILLED, Config
from poa.report.content import Curve, Line, Mark

MOST = 200
"""Values of a line; of more, as many neighbours are averaged as make no more than these."""
SHARED = {
    "loss": "Loss, all terms",
    "knn": "k-NN accuracy in %",
    "rankme": "RankMe",
    "cosine": "Mean cosine of features",
    "grad_norm": "Gradient norm",
    "lr": "Learning rate",
}
"""Titles of what is no term of a loss, by the part before the slash, in their order."""


def curves(metrics: Sequence[Mapping[str, Any]], config: Config) -> list[Curve]:
    """A chart for each term of the loss, with a line for each branch, then one for each other thing that was logged."""
    grouped: dict[str, list[Line]] = {}
    for name in dict.fromkeys(name for row in metrics for name in row):
        rows = [row for row in metrics if isinstance(row.get(name), int | float)]
        if name == "step" or not rows:
            continue
        first, _, rest = name.partition("/")
        title, label = (SHARED[first], rest or first) if first in SHARED else (f"Loss: {rest or first}", first)
        steps, values = ([float(row[key]) for row in rows] for key in ("step", name))
        grouped.setdefault(title, []).append(line(label, steps, values))
    places = {title: number for number, title in enumerate(SHARED.values(), start=1)}
    order = sorted(grouped, key=lambda title: places.get(title, 0))  # terms of the loss first
    return [Curve(title, grouped[title], _mark(config) if title == "Loss: global" else None) for title in order]


def line(name: str, steps: Sequence[float], values: Sequence[float]) -> Line:
    """A line of at most ``MOST`` values."""
    of_one = -(-len(steps) // MOST)
    parts = [slice(start, start + of_one) for start in range(0, len(steps), of_one)]
    means = [[math.fsum(each[part]) / len(each[part]) for part in parts] for each in (steps, values)]
    return Line(name, [round(step) for step in means[0]], [float(f"{value:.5g}") for value in means[1]])


def _mark(config: Config) -> Mark | None:
    """Where the loss between views stays once a student gives the same for all images (``Method.log_prototypes``)."""
    if config.method not in SELF_DISTILLED or config.losses.kind != "prototypes":
        return None
    numbers = config.heads.prototypes
    return Mark("collapse: ln(prototypes)", sum(map(math.log, numbers)) / len(numbers))
