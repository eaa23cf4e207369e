"""A sheet of one image under all conditions, and a table of their strengths."""

from pathlib import Path

import torch
from jaxtyping import UInt8
from rich.table import Table
from torch import Tensor

from poa.data.augment import normalise
from poa.data.images import centre_crop
from poa.data.index import open_index
from poa.data.loader import read_or_none
from poa.errors import UserError
from poa.plots.figure import Cell, Row, sheet
from poa.plots.robustness import strengths_table
from poa.robustness.conditions import Condition, Robustness, corrupted, occluded, shuffled
from poa.robustness.corruptions import CORRUPTIONS, SEVERITIES

_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, whose mean colour hidden cells have here; those of a network may differ."""


def show(images: str, *, out: Path, image_size: int = 224, number: int = 0, seed: int = 0) -> Table:
    """Draw image ``number`` of some images under all conditions, a row a kind; the strengths of the corruptions.

    Raises:
        UserError: There is no such image, or it is no image.
    """
    if out.suffix != ".png":
        raise UserError(f"The picture is written as .png, got {out}. Give --out such as disturbances.png.")
    if image_size < 2:
        raise UserError(f"--image-size must be at least 2, got {image_size}.")
    index = open_index(images)
    if not 0 <= number < len(index):
        raise UserError(f"--number goes from 0 to {len(index) - 1}, got {number}: {index.source} has no more images.")
    image = read_or_none(index, number)
    if image is None:
        raise UserError(f"{index.name(number)!r} cannot be read. Choose another --number.")
    crop = centre_crop(image, size=image_size, resize_to=image_size)
    settings = Robustness(seed=seed).resolved(image_size)
    assert settings.grid is not None
    kinds: dict[str, list[Condition]] = {
        "occlusion": [occluded(share, settings.grid, seed) for share in _SHARES],
        "shuffle": [shuffled(grid, seed) for grid in settings.shuffle or ()],
        **{name: [corrupted(name, severity, seed) for severity in SEVERITIES] for name in CORRUPTIONS},
    }
    rows = []
    for kind, conditions in ((kind, conditions) for kind, conditions in kinds.items() if conditions):
        shown = [
            ("clean", crop),
            *((each.name.rpartition(" ")[2], _changed(crop, each, number)) for each in conditions),
        ]
        cells = [Cell(pixels[0].permute(1, 2, 0).numpy(), caption) for caption, pixels in shown]
        rows.append(Row(kind.replace("-", "\n"), cells))
    sheet(rows, out=out)
    return strengths_table({name: (each.what, each.strengths) for name, each in CORRUPTIONS.items()})


def _changed(crop: UInt8[Tensor, "1 3 side side"], condition: Condition, number: int) -> UInt8[Tensor, "1 3 side side"]:
    images = normalise(condition.pixels(crop, numbers=[number]), mean=_MEAN, std=_STD)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (_MEAN, _STD))
    changed = condition.normalised(images, numbers=[number])
    return ((changed * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
