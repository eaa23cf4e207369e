"""Settings of ``poa doctor``: at once flags and arguments. Imports no torch."""

from typing import Annotated, Literal

from cyclopts import Parameter
from pydantic import Field

from poa.config.values import Count, Settings

Kind = Literal[
    "unreadable",
    "truncated",
    "duplicate",
    "near-duplicate",
    "constant",
    "tiny",
    "elongated",
    "grey",
    "other-mode",
]
"""Of findings, in the order in which they are shown."""


class Examination(Settings):
    """What counts as a finding, and which images are left out of the list."""

    min_side: Count = 32
    """Images whose shorter side has fewer pixels are tiny."""
    max_ratio: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = 4.0
    """Images whose longer side is more than so many times the shorter one are elongated."""
    similarity: Annotated[float, Field(gt=0.0, le=1.0)] = 0.98
    """With --model, images whose features have at least this cosine similarity are near-duplicates."""
    drop: Annotated[tuple[Kind, ...], Parameter(consume_multiple=True, negative_iterable=(), show_default=False)] = (
        "unreadable",
        "truncated",
        "duplicate",
        "constant",
    )
    """Findings of images that --write-list leaves out; by default unreadable, truncated, duplicate and constant."""
