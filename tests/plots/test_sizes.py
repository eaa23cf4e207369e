from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.image import imread

from plots.rows import PAPER, SMALL, colours, make_rows
from poa.elastic.space import SearchSpace, Size
from poa.errors import UserError
from poa.plots import sizes
from poa.plots.figure import save
from poa.plots.sizes import accuracy_plot, front, points
from poa.plots.tables import SizeRow


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "save", partial(save, dpi=50))  # drawing takes most of the time


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


def test_front_leaves_out_beaten_sizes_and_what_may_be_chance() -> None:
    values = [(1, 10.0), (2, 9.0), (3, 12.0), (4, 12.0), (5, 13.0), (6, 15.0)]

    def found(half: float) -> list[float]:
        ends = {value: {"a": (value - half, value + half)} if half else {} for _, value in values}
        rows = [SizeRow(Size(1, (n,)), n, scores={"a": value}, intervals=ends[value]) for n, value in values]
        return [each.cost for each in front(points(rows, "a", "parameters"))]

    assert found(0.0) == [1, 3, 5, 6]
    assert found(1.0) == [1, 3, 6]  # 2 points are more than the root of 1 + 1, one is not
    assert found(2.0) == [1, 5]
    assert found(9.0) == [1]


def drawn_by(monkeypatch: pytest.MonkeyPatch, name: str) -> list[dict[str, Any]]:
    """The further arguments of each call of a method of axes."""
    calls: list[dict[str, Any]] = []
    method = getattr(Axes, name)

    def noted(self: Axes, *args: Any, **options: Any) -> Any:
        calls.append(options | {"args": args})
        return method(self, *args, **options)

    monkeypatch.setattr(Axes, name, noted)
    return calls


def test_intervals_are_drawn_and_no_line_through_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars, lines = drawn_by(monkeypatch, "errorbar"), drawn_by(monkeypatch, "plot")
    accuracy_plot(make_rows(SMALL, half=30.0), out=tmp_path / "a.png", title="")
    assert [call["yerr"] for call in bars] == [pytest.approx([30.0] * 12)]
    assert not [call for call in lines if call.get("drawstyle")]
    accuracy_plot(make_rows(PAPER, half=0.5), out=tmp_path / "b.png", title="")
    assert bars[1]["yerr"] == pytest.approx([0.5])  # one for all
    (line,) = (call for call in lines if call.get("drawstyle"))
    assert 2 < len(line["args"][0]) < 20


def test_subjects_beside_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, legends = drawn_by(monkeypatch, "annotate"), list[Any]()
    monkeypatch.setattr(sizes, "legend", lambda *_, **given: legends.append(given["labels"]))
    several = [replace(row, subject=name) for name in ("_a", "$b$") for row in make_rows(SMALL, half=1.0)]
    network = SizeRow("resnet18", 10**7, scores={"top1@20": 70.0}, subject="resnet18", milliseconds=3.0)
    accuracy_plot([*several, network], out=tmp_path / "a.png", title="")
    assert [call["args"][0].split()[0] for call in named] == ["192x6", "192x6", "resnet18"]
    assert {" _a", " $b$", " resnet18"} < set(legends[0])
    accuracy_plot([*several, network], out=tmp_path / "b.png", title="", cost="ms")  # where only it was measured
    assert named[-1]["args"][:2] == ("resnet18  70.0", (3.0, 70.0))
    assert named[0]["args"][1][1] == pytest.approx(several[-1].scores["top1@20"] + 1.0)  # above the bar


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
    with pytest.raises(UserError, match=r"score 'top1@20' has milliseconds a batch, so .* `poa measure`"):
        accuracy_plot(make_rows(SMALL), out=tmp_path / "a.png", title="", cost="ms")
    with pytest.raises(UserError, match=r"written as \.png, got \S+a\.jpg\. Give the file another ending"):
        accuracy_plot(make_rows(SMALL), out=tmp_path / "a.jpg", title="")
    assert list(tmp_path.iterdir()) == []
