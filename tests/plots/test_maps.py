from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.image import imread

from plots.rows import PAPER, SMALL, colours, make_rows
from poa.plots import maps
from poa.plots.figure import printable, save
from poa.plots.maps import bands, map_of_rows, size_map
from poa.plots.tables import SizeRow


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "save", partial(save, dpi=50))  # drawing takes most of the time


@pytest.mark.parametrize(
    "scores",
    [
        {str(row.size): row.scores["top1@20"] for row in make_rows(PAPER)},
        {str(row.size): row.scores["top1@20"] for row in make_rows(SMALL)[:-3]},
        {"64x2-3": 10.0},
    ],
    ids=["143", "incomplete", "one"],
)
def test_size_map(tmp_path: Path, scores: dict[str, float]) -> None:
    size_map(scores, tmp_path / "new" / "map.png", title="k-NN")
    assert colours(tmp_path / "new" / "map.png") > 100
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["map.png"]


def test_a_map_needs_several_widths_and_depths(tmp_path: Path) -> None:
    rows = make_rows(SMALL)
    assert map_of_rows(rows, "top1@20", out=tmp_path / "a.png", title="k-NN")
    size_map(
        {str(row.size): row.scores["top1@20"] for row in rows},
        tmp_path / "b.png",
        title="k-NN",
        label="k-NN top-1 accuracy in % (k = 20)",
    )
    assert np.array_equal(imread(tmp_path / "a.png"), imread(tmp_path / "b.png"))
    one_width = [row for row in rows if row.width == 64]
    one_depth = [row for row in rows if row.depths == (3,)]
    names = [SizeRow("resnet18", 1, scores={"top1@20": 1.0}), SizeRow("b", 1, scores={"top1@20": 1.0})]
    for few in ([], one_width, one_depth, [*one_width, *names]):
        assert not map_of_rows(few, "top1@20", out=tmp_path / "c.png")
    assert not map_of_rows(rows, "map", out=tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()


def test_titles_that_the_font_or_its_formulas_would_choke_on(tmp_path: Path) -> None:
    size_map({"64x2": 1.0}, tmp_path / "a.png", title="runs/中文_$x$ $ é")
    assert printable("runs/中 é") == "runs/? é"


@pytest.mark.parametrize(("half", "most"), [(1.0, 6), (50.0, 1)], ids=["some", "nothing differs for certain"])
def test_colours_are_no_finer_than_the_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: float, most: int
) -> None:
    drawn: list[QuadMesh] = []
    mesh = Axes.pcolormesh

    def noted(self: Axes, *args: Any, **options: Any) -> QuadMesh:
        drawn.append(mesh(self, *args, **options))
        return drawn[-1]

    monkeypatch.setattr(Axes, "pcolormesh", noted)
    rows = make_rows(SMALL, half=half)
    assert map_of_rows(rows, "top1@20", out=tmp_path / "a.png")
    image, *_ = drawn  # the colour bar is drawn likewise
    by_colour: dict[Any, list[float]] = {}
    for score in (row.scores["top1@20"] for row in rows):
        by_colour.setdefault(image.cmap(image.norm(score)), []).append(score)
    assert min(most, 2) <= len(by_colour) <= most
    assert max(max(scores) - min(scores) for scores in by_colour.values()) <= 2 * half


@pytest.mark.parametrize(("values", "step", "ends"), [([1.0, 4.0], 2.0, [0.5, 2.5, 4.5]), ([3.0], 2.0, [2.0, 4.0])])
def test_bands(values: list[float], step: float, ends: list[float]) -> None:
    assert bands(values, step) == ends


def test_no_global_state(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    size_map({"64x2": 1.0}, tmp_path / "a.png")
    assert dict(mpl.rcParams) == before
