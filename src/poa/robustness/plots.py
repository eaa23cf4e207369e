"""Accuracy under conditions as curves and tables, and a sheet of one image under all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table
from torch import Tensor

from poa.config.values import check_seed
from poa.data.augment import normalise
from poa.data.loader import read_or_none
from poa.data.resize import centre_crop
from poa.data.sources import Data, check_out
from poa.errors import UserError
from poa.features.images import open_images
from poa.plots.figure import INK, SHEET_DPI, Cell, Row, legend, printable, save, sheet, style
from poa.plots.tables import plain_table, score_table
from poa.robustness.conditions import Condition, Robustness, corrupted, occluded, shuffled
from poa.robustness.corruptions import CORRUPTIONS, SEVERITIES
from poa.text import shortened

_NAMED = 12
"""Networks that a legend can name."""
_COLUMNS = 3
COLUMNS = ("clean", "corruptions", "noise", "blur", "weather", "digital", "occlusion", "shuffle")
"""Scores that the table shows, as far as they are there."""
BACKGROUNDS = ("background own", "background swapped")
"""Those that take the place of the groups of corruptions, for which no room is left then."""
_GROUPS = ("noise", "blur", "weather", "digital")
_SHORT = {"corruptions": "corrupt", "occlusion": "hidden", "background own": "own bg", "background swapped": "swapped"}


@dataclass(frozen=True)
class Panel:
    """Accuracy in percent by the strength of one kind of condition: at each tick, by name of the network."""

    title: str
    axis: str
    ticks: tuple[str, ...]
    values: Mapping[str, tuple[float, ...]]


def curves(panels: Sequence[Panel], *, out: Path, title: str) -> None:
    """Draw a panel for each kind of condition, a line for each network, small ones first.

    Raises:
        UserError: There is nothing to draw.
    """
    if not panels or not any(panel.values for panel in panels):
        raise UserError("There are no scores to draw. Score some sizes first, with `poa evaluate robustness`.")
    columns = min(_COLUMNS, len(panels))
    rows = ceil(len(panels) / columns)
    figure = Figure(figsize=(0.6 + 3.3 * max(columns, 2), 1.3 + 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    names = list(dict.fromkeys(name for panel in panels for name in panel.values))
    colours = dict(zip(names, colormaps["viridis_r"](np.linspace(0.1, 1.0, len(names))), strict=True))
    for each, panel in zip(axes, panels, strict=False):
        for name, values in panel.values.items():
            each.plot(range(len(values)), values, color=colours[name], linewidth=1.4, marker="o", markersize=3)
        _style(each, panel)
    for place, each in enumerate(axes):
        if place >= len(panels):
            each.set_visible(False)
        elif place % columns == 0:
            each.set_ylabel("accuracy in %", color=INK)
    axes[0].set_ylim(bottom=0)
    figure.suptitle(printable(title), x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK, parse_math=False)
    _legend(figure, axes[0], colours)
    save(figure, out, dpi=SHEET_DPI)


def _legend(figure: Figure, axes: Axes, colours: Mapping[str, npt.NDArray[np.float64]]) -> None:
    """Name the networks; of many the first, the last and some between."""
    names = list(colours)
    if len(names) > _NAMED:
        names = [names[round(place)] for place in np.linspace(0, len(names) - 1, _NAMED)]
    handles = [axes.plot([], [], color=colours[name], marker="o", markersize=3)[0] for name in names]
    labels = [shortened(name, 24) for name in names]
    legend(figure, columns=min(6, len(names)), handles=handles, labels=labels)


def _style(axes: Axes, panel: Panel) -> None:
    style(axes, title=panel.title, x=panel.axis)
    axes.set_xticks(range(len(panel.ticks)), panel.ticks)
    axes.yaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10]))
    axes.tick_params(labelsize=8)


def robustness_table(
    scores: Mapping[str, Mapping[str, float]], intervals: Mapping[str, Mapping[str, tuple[float, float]]]
) -> Table:
    """Accuracy by name of the network, then of the group of conditions; the first two with their intervals."""
    known = {name for row in scores.values() for name in row}
    names = [name for name in (*COLUMNS, *BACKGROUNDS) if name in known]
    if known & {*BACKGROUNDS}:
        names = [name for name in names if name not in _GROUPS]
    bounded = {
        network: {name: ends[name] for name in ("clean", "corruptions") if name in ends}
        for network, ends in intervals.items()
    }
    return score_table(scores, {name: _SHORT.get(name, name) for name in names}, intervals=bounded)


def strengths_table(strengths: Mapping[str, tuple[str, Sequence[float]]]) -> Table:
    """What the strengths of corruptions are in words, and one a severity, by name of the corruption."""
    table = plain_table()
    table.add_column("corruption", no_wrap=True)
    for severity in range(1, 6):
        table.add_column(str(severity), justify="right", no_wrap=True)
    table.add_column("strength is", no_wrap=True)
    for name, (what, values) in strengths.items():
        table.add_row(name, *(f"{value:g}" for value in values), what)
    return table


_SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, whose mean colour hidden cells have here; those of a network may differ."""


def show(images: Data, *, out: Path, image_size: int = 224, number: int = 0, seed: int = 0) -> Table:
    """Draw image ``number`` of some images under all conditions, a row a kind; the strengths of the corruptions.

    Raises:
        UserError: There is no such image, or it cannot be read.
    """
    if out.suffix != ".png":
        raise UserError(f"--out must end in .png, got {out}. Give a name such as disturbances.png.")
    if image_size < 2:
        raise UserError(f"--image-size must be at least 2, got {image_size}.")
    check_seed(seed)
    check_out(out, images)
    index = open_images(images)
    if not 0 <= number < len(index):
        raise UserError(
            f"--number must be from 0 to {len(index) - 1}, got {number}: there are no more images in {index.source}."
        )
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
