from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread

from poa.elastic.space import SearchSpace, Size
from poa.errors import UserError
from poa.plots import sizes
from poa.plots.figure import printable, save
from poa.plots.sizes import accuracy_plot, gradient_plot, map_of_rows, size_map
from poa.plots.tables import SizeRow

SMALL = SearchSpace.grid((64, 128, 192), (3, 4, 5, 6))
PAPER = SearchSpace.grid(tuple(range(384, 1025, 64)), tuple(range(12, 25)))


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "save", partial(save, dpi=50))  # drawing takes most of the time


def make_rows(space: SearchSpace, *, low: float = 60.0, score: str = "top1@20") -> list[SizeRow]:
    generator = np.random.default_rng(0)
    return [
        SizeRow(
            size,
            parameters=12 * size.width**2 * size.depths[0],
            scores={score: low + 3 * np.log2(size.width * size.depths[0] / 1000) + generator.normal() / 4},
        )
        for size in space.sizes
    ]


def colours(path: Path) -> int:
    """Number of different colours in a picture, none of them transparent."""
    pixels = imread(path)
    assert (pixels[..., 3] == 1).all()
    return len(np.unique(pixels.reshape(-1, 4), axis=0))


@pytest.mark.parametrize("space", [SMALL, PAPER], ids=["12", "143"])
@pytest.mark.parametrize("untrained", [None, 10.0, 60.0], ids=["alone", "far", "near"])
def test_accuracy_plot(tmp_path: Path, space: SearchSpace, untrained: float | None) -> None:
    baseline = None if untrained is None else make_rows(space, low=untrained)
    out = tmp_path / "new" / "plot.png"
    accuracy_plot(make_rows(space), out=out, title="All sizes", baseline=baseline)
    assert imread(out).shape == (270, 400, 4)
    assert colours(out) > 100
    assert [path.name for path in out.parent.iterdir()] == ["plot.png"]


@pytest.mark.parametrize(
    "rows",
    [
        make_rows(SMALL)[:1],
        [SizeRow(Size(64, (2, 3)), 90_000, scores={"a": 5.0}), SizeRow(Size(64, (3, 3)), 100_000, scores={"a": 5.0})],
        [SizeRow(Size(64, (2,)), 1), *make_rows(SMALL)[:2]],
        [SizeRow(Size(64, (depth,)), depth * 10**6, scores={"a": 1.0}) for depth in range(1, 60)],
    ],
    ids=["one", "equal", "not all scored", "many depths"],
)
def test_accuracy_plot_of_odd_rows(tmp_path: Path, rows: list[SizeRow]) -> None:
    accuracy_plot(rows, out=tmp_path / "plot.png", title="", baseline=rows)
    assert colours(tmp_path / "plot.png") > 20


def test_more_is_drawn_with_a_baseline(tmp_path: Path) -> None:
    rows = make_rows(SMALL)
    accuracy_plot(rows, out=tmp_path / "a.png", title="")
    accuracy_plot(rows, out=tmp_path / "b.png", title="", baseline=make_rows(SMALL, low=20))
    accuracy_plot(rows, out=tmp_path / "c.png", title="", baseline=[])
    assert not np.array_equal(imread(tmp_path / "a.png"), imread(tmp_path / "b.png"))
    assert np.array_equal(imread(tmp_path / "a.png"), imread(tmp_path / "c.png"))


def test_front_leaves_out_beaten_sizes() -> None:
    values = [(1, 10.0), (2, 9.0), (3, 12.0), (4, 12.0), (5, 13.0)]
    rows = [SizeRow(Size(1, (number,)), number, scores={"a": value}) for number, value in values]
    assert [row.parameters for row in sizes._front(rows, "a")] == [1, 3, 5]


def test_which_score_is_drawn() -> None:
    both = [SizeRow(Size(1, (1,)), 1, scores={"top1@10": 1.0, "top1@20": 2.0})]
    assert sizes._pick_score(both, None) == "top1@20"
    assert sizes._pick_score(both, "top1@10") == "top1@10"
    assert sizes._pick_score([SizeRow(Size(1, (1,)), 1, scores={"miou": 1.0})], None) == "miou"
    assert sizes.score_label("top5@10") == "k-NN top-5 accuracy in % (k = 10)"
    assert sizes.score_label("miou") == "miou"
    assert sizes.score_label("map") == "mean average precision in %"


def test_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No size has been scored"):
        accuracy_plot([SizeRow(Size(1, (1,)), 1)], out=tmp_path / "a.png", title="")
    with pytest.raises(UserError, match=r"score 'top1@2'\. Did you mean 'top1@20'"):
        accuracy_plot(make_rows(SMALL), out=tmp_path / "a.png", title="", score="top1@2")
    with pytest.raises(UserError, match="no scores to draw"):
        size_map({}, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


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


def test_long_titles_are_broken_into_lines(tmp_path: Path) -> None:
    axes = Figure(figsize=(4, 3)).add_subplot()
    sizes._head(axes, "a name of many words " * 4)
    lines = axes.get_title(loc="left").splitlines()
    assert len(lines) == 3
    assert max(map(len, lines)) <= 32


def test_no_global_state(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    size_map({"64x2": 1.0}, tmp_path / "a.png")
    assert dict(mpl.rcParams) == before


def rows(*, with_values: bool) -> list[dict[str, Any]]:
    values = {"gradient_first": 4.0, "gradient_second": 1.0} if with_values else {}
    gradients = {"gradient/16x1": 2.0, "gradient/8x1": 4.0, "gradient_rest/8x1": 0.5}
    return [{"step": step, **gradients, **values} for step in (1, 2)]


@pytest.mark.parametrize("with_values", [True, False])
def test_what_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_values: bool) -> None:
    """Runs of older versions did not write singular values down; the rest is drawn all the same."""
    drawn: list[tuple[list[float], list[float]]] = []
    plot = Axes.plot

    def noted(self: Axes, x: list[float], y: list[float], **options: Any) -> Any:
        drawn.append((x, y))
        return plot(self, x, y, **options)

    monkeypatch.setattr(Axes, "plot", noted)
    gradient_plot(rows(with_values=with_values), out=tmp_path / "gradients.png")
    assert (tmp_path / "gradients.png").read_bytes().startswith(b"\x89PNG")
    turns = ([1, 2], [0.25, 0.25]) if with_values else ([], [])
    assert drawn == [([1, 2], [0.5, 0.5]), ([1, 2], [0.5, 0.5]), turns]


def test_a_run_without_gradients(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did not measure its gradients"):
        gradient_plot([{"step": 1}], out=tmp_path / "gradients.png")
