import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from poa.elastic.space import SearchSpace, Size
from poa.errors import UserError
from poa.plots.tables import (
    SizeRow,
    fitting,
    in_parts,
    records,
    score_names,
    score_table,
    size_rows,
    size_table,
    to_csv,
    to_json,
    write,
)

SPACE = SearchSpace.grid((384, 512, 1024), (12, 24))
COSTS = {size: (size.width**2 * 12 * size.depths[0], size.width**2 * 4000 * size.depths[0]) for size in SPACE.sizes}
SCORES = {
    "384x12": {"top1@10": 70.0, "top5@10": 90.04},
    "512x24": {"top1@10": 75.04, "top5@10": 89.0},
    "1024x24": {"top1@10": 74.0, "top5@10": 88.0, "top1@20": 71.0},
}


def make_rows(**options: Any) -> list[SizeRow]:
    return size_rows(SPACE, **{"costs": COSTS, "scores": SCORES, **options})


def render(rows: list[SizeRow], **options: Any) -> str:
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(size_table(rows, **options))
    return capture.get()


def test_rows_hold_everything_about_a_size() -> None:
    rows = make_rows()
    assert [row.size for row in rows] == sorted(SPACE.sizes)
    assert rows[0] == SizeRow(Size(384, (12,)), *COSTS[SPACE.sizes[0]], weight=9, intact=False, scores=SCORES["384x12"])
    assert [row.intact for row in rows] == [False] * 5 + [True]
    assert rows[1].scores == {}
    assert score_names(rows) == ["top1@10", "top5@10", "top1@20"]


def test_intervals_stay_in_line_where_the_console_has_ascii_alone() -> None:
    written = io.TextIOWrapper(io.BytesIO(), "ascii")
    intervals = {"a": {"top1": (1.0, 2.0)}, "b": {"top1": (1.0, 24.0)}}
    table = score_table({"a": {"top1": 1.5}, "b": {"top1": 12.5}}, {"top1": "top1"}, intervals=intervals)
    Console(file=written, width=80, color_system=None).print(table)
    written.seek(0)
    heading, _, *rows = written.read().splitlines()
    assert [row.split("|")[1].rstrip() for row in rows] == ["  1.5 +-0.5", "12.5 +-11.5"]
    assert {len(row) for row in rows} == {len(heading)}


def test_narrow_terminals_get_fewer_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows()
    monkeypatch.setenv("COLUMNS", "60")
    assert fitting(rows, score_names(rows)) == (["top1@10", "top5@10"], [])


def test_names_are_no_markup() -> None:
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(score_table({"a[/b]c": {"top1": 1.0}, "d\n:car:": {"top1": 2.0}}, {"top1": "top1"}))
        console.print(size_table([SizeRow("a[/b]c", 1)], title="[/x]"))
    assert capture.get().count("a[/b]c") == 2
    assert r"d\n:car:" in capture.get()
    assert "[/x]" in capture.get()


def test_records_have_the_same_keys() -> None:
    found = records(make_rows())
    assert {tuple(record) for record in found} == {tuple(found[0])}
    assert found[0] == {
        "size": "384x12",
        "width": 384,
        "depth": "12",
        "parameters": COSTS[SPACE.sizes[0]][0],
        "flops": COSTS[SPACE.sizes[0]][1],
        "weight": 9,
        "intact": False,
        "top1@10": 70.0,
        "top5@10": 90.04,
        "top1@20": None,
    }
    assert records([SizeRow(Size(64, (4, 6)), 1)])[0]["depth"] == "4-6"


def test_csv_and_json_hold_the_records(tmp_path: Path) -> None:
    rows = make_rows()
    lines = list(csv.DictReader(to_csv(rows).splitlines()))
    assert [line["size"] for line in lines] == [str(row.size) for row in rows]
    assert float(lines[3]["top1@10"]) == 75.04
    assert lines[0]["top1@20"] == ""
    assert json.loads(to_json(rows)) == records(rows)
    assert to_csv([]) == "size\n"
    for name, text in (("a.csv", to_csv(rows)), ("b.json", to_json(rows))):
        write(rows, tmp_path / "new" / name)
        assert (tmp_path / "new" / name).read_text() == text
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_other_file_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"table\.xlsx.*Choose from \.csv, \.json"):
        write(make_rows(), tmp_path / "table.xlsx")


def test_table_shows_each_size_on_a_line() -> None:
    text = render(make_rows(), title="All sizes")
    lines = [line.split() for line in text.splitlines()]
    assert text.startswith("All sizes")
    assert ["size", "params", "M", "GFLOPs", "weight", "top1@10", "top1@20", "top5@10"] in lines
    assert ["384x12", "21.2", "7.1", "9", "70.0", "-", "90.0"] in lines
    assert ["384x24", "42.5", "14.2", "3", "-", "-", "-"] in lines
    assert ["1024x24", "*", "302.0", "100.7", "1", "74.0", "71.0", "88.0"] in lines
    captions = [
        "* intact network, from which the others are cut",
        "weight: how often training draws a size",
    ]
    assert [line.rstrip() for line in text.splitlines()[-2:]] == captions
    without = render(make_rows(), hidden=["weight"]).splitlines()
    assert without[-1].rstrip() == captions[0]
    assert lines[[line[:1] for line in lines].index(["384x24"]) + 1] == [], "widths are not set apart"


def test_best_scores_stand_out() -> None:
    table = size_table(make_rows(), scores=["top1@10"])
    (column,) = [column for column in table.columns if column.header == "top1@10"]
    assert [str(cell) for cell in column.cells if "bold" in str(cell.style)] == ["75.0"]


def test_table_without_scores_or_sampling() -> None:
    text = render([SizeRow(Size(64, (3,)), 160_000, flops=23_000_000), SizeRow(Size(64, (4,)), 210_000)])
    assert ["64x3", "0.16", "0.023"] in [line.split() for line in text.splitlines()]
    assert ["64x4", "0.21", "-"] in [line.split() for line in text.splitlines()]
    assert "intact" not in text


def test_paper_sized_table_fits_80_columns() -> None:
    space = SearchSpace.grid(tuple(range(384, 1025, 64)), tuple(range(12, 25)))
    names = [f"top{top}@{k}" for k in (10, 20, 100, 200) for top in (1, 5)]
    scores = {str(size): dict.fromkeys(names, 100.0) for size in space.sizes}
    rows = size_rows(space, costs=dict.fromkeys(space.sizes, (303_350_784, 123_107_377_152)), scores=scores)
    text = render(rows)
    assert sum("x" in line and "303.4" in line for line in text.splitlines()) == 143
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "top1@200" in text
    assert "top5" not in text


def test_chosen_scores() -> None:
    assert "top5@10" not in render(make_rows(), scores=["top1@20"])
    with pytest.raises(UserError, match=r"No size has a score 'top1@1'\. Did you mean"):
        size_table(make_rows(), scores=["top1@1"])
    with pytest.raises(UserError, match="None is scored"):
        size_table(make_rows(scores=None), scores=["top1@1"])


def test_intervals_stand_beside_their_scores() -> None:
    rows = make_rows(intervals={"384x12": {"top1@10": (68.0, 73.0), "top5@10": (1.0, 2.0)}, "512x24": {}})
    assert rows[0].intervals == {"top1@10": (68.0, 73.0), "top5@10": (1.0, 2.0)}
    lines = [line.split() for line in render(rows).splitlines()]
    assert ["384x12", "21.2", "7.1", "9", "70.0", "±2.5", "-", "90.0", "±0.5"] in lines
    assert ["512x24", "75.5", "25.2", "2", "75.0", "-", "89.0"] in lines
    found = records(rows)
    assert list(found[0])[7:] == [
        "top1@10",
        "top1@10_low",
        "top1@10_high",
        "top5@10",
        "top5@10_low",
        "top5@10_high",
        "top1@20",
    ]
    assert (found[0]["top1@10_low"], found[0]["top1@10_high"], found[3]["top1@10_low"]) == (68.0, 73.0, None)


def test_networks_that_are_no_sizes() -> None:
    rows = [SizeRow("resnet18", 11_200_000, 74_000_000, scores={"map": 12.0}), SizeRow("b", 5, scores={"map": 1.0})]
    lines = [line.split() for line in render(rows).splitlines()]
    assert ["resnet18", "11.200", "0.074", "12.0"] in lines
    assert (records(rows)[0]["size"], records(rows)[0]["width"], records(rows)[0]["depth"]) == ("resnet18", None, None)
    assert to_csv(rows).splitlines()[1] == "resnet18,,,11200000,74000000,,False,12.0"


def test_as_many_scores_as_fit_are_kept() -> None:
    names = [f"evaluation-{number} top1" for number in range(9)]
    rows = make_rows(scores={"384x12": dict.fromkeys(names, 100.0)})
    shown, hidden = fitting(rows, names)
    assert (shown, hidden) == (names[: len(shown)], [])

    def widest(number: int) -> int:
        console = Console(width=200, color_system=None)
        with console.capture() as capture:
            console.print(size_table(rows, scores=names[:number]))
        return max(map(len, capture.get().splitlines()))

    assert widest(len(shown)) <= 80 < widest(len(shown) + 1)
    assert fitting(rows, names[:2]) == (names[:2], [])
    assert fitting(rows, []) == ([], [])


MEASURED = [
    replace(row, megabytes=row.parameters / 2.5e5, milliseconds=row.parameters / 1e7)
    for row in make_rows(
        scores={str(size): {"top1@20": 71.5, "top5@20": 91.5} for size in SPACE.sizes},
        intervals={str(size): {"top1@20": (60.0, 83.0), "top5@20": (89.0, 94.0)} for size in SPACE.sizes},
    )
]


@pytest.mark.parametrize("room", [40, 60, 80, 120])
def test_no_number_is_cut(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores go first, then what is said of sizes; the best-known score stays, with its interval."""
    monkeypatch.setenv("COLUMNS", str(room))
    shown, hidden = fitting(MEASURED, ["top1@20", "top5@20"])
    console = Console(width=room, color_system=None)
    with console.capture() as capture:
        console.print(size_table(MEASURED, scores=shown, hidden=hidden))
    text = capture.get()
    assert "…" not in text
    assert text.count("71.5 ±11.5") == 6
    assert ("91.5 ±2.5" in text, hidden) == {
        40: (False, ["weight", "MB", "GFLOPs"]), 60: (False, ["weight"]), 80: (True, []), 120: (True, [])
    }[room]  # fmt: skip


def test_what_is_known_has_a_column() -> None:
    rows = [replace(make_rows()[0], megabytes=42.0), make_rows()[1]]
    lines = [line.split() for line in render(rows, scores=["top1@10"]).splitlines()]
    assert lines[0] == ["size", "params", "M", "GFLOPs", "MB", "weight", "top1@10"]
    assert (lines[2][3], lines[3][3]) == ("42.0", "-")
    assert [record["megabytes"] for record in records(rows)] == [42.0, None]
    assert "milliseconds" not in records(rows)[0]


def test_subjects_stand_together() -> None:
    small = [SizeRow(Size(64, (depth,)), 10**6, scores={"a": 50.0 + depth}, subject="first") for depth in (2, 3)]
    rows = [
        *small,
        replace(small[0], subject="second"),
        SizeRow(Size(32, (2,)), 10**6, subject="second"),
        SizeRow("resnet18", 10**7, subject="resnet18"),
    ]
    lines = [line.split() for line in render(rows).splitlines()]
    assert lines[0] == ["of", "size", "params", "M", "a"]
    assert lines[2:] == [
        ["first", "64x2", "1.0", "52.0"],
        ["64x3", "1.0", "53.0"],
        [],
        ["second", "64x2", "1.0", "52.0"],
        ["32x2", "1.0", "-"],
        [],
        ["resnet18", "-", "10.0", "-"],
    ]
    assert [record["subject"] for record in records(rows)] == ["first", "first", "second", "second", "resnet18"]
    assert records(rows)[4]["size"] == "resnet18"


@pytest.mark.parametrize("room", [20, 34, 60])
def test_wide_tables_are_shown_in_parts(room: int) -> None:
    names = [f"measure{number}" for number in range(4)]
    table = score_table({"64x3": dict.fromkeys(names, 1.0), "64x4": dict.fromkeys(names, 2.5)}, {n: n for n in names})
    table.title, table.caption = "title", "caption"
    console = Console(width=room, color_system=None)
    with console.capture() as capture:
        console.print(*in_parts(table, room))
    lines = capture.get().splitlines()
    number = {20: 4, 34: 2, 60: 1}[room]
    assert max(map(len, lines)) <= room
    assert (lines[0].strip(), lines[-1].strip()) == ("title", "caption")
    assert sum(line.startswith("64x4") for line in lines) == number
    assert capture.get().count("2.5") == 4
    assert all(name in capture.get() for name in names)
