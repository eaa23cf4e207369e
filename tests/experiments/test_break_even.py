"""Scores by the number of sizes, and the number from which the elastic run is ahead."""

import csv
import io
import json
from pathlib import Path

import pytest

from poa.experiments.break_even import BreakEven, NumSizesResult, Report
from poa.text import plain_console

SHOWN = ("32x2", "64x2", "64x3")
ELASTIC = (50.0, 52.0)


def results(*, seeds: int = 2) -> list[NumSizesResult]:
    """Alone the smallest size falls behind the elastic run from 12 sizes on, the others from 6; SEED never does."""
    alone = {1: (8, 8, 8), 3: (3, 1, -1), 6: (1, -4, -3), 12: (-1, -4, -3)}
    of_seed = dict.fromkeys(alone, (2, 2, 2))
    return [
        NumSizesResult(
            way, number, size, protocol, tuple(value + over[number][place] for value in ELASTIC[:seeds]), 1.0
        )
        for way, over in (("poa", dict.fromkeys(alone, (0, 0, 0))), ("single", alone), ("seed", of_seed))
        for number in alone
        for place, size in enumerate(SHOWN)
        for protocol in ("knn", "linear")
    ]


def test_break_even_is_where_it_stays_ahead() -> None:
    found = Report(results(seeds=1), SHOWN).break_even()
    assert found == [
        BreakEven(protocol, way, where, surely=False, num_sizes=number)
        for protocol in ("knn", "linear")
        for way, where, number in (
            ("single", "every size", 12),
            ("single", "mean", 6),
            ("seed", "every size", None),
            ("seed", "mean", None),
        )
    ]
    worse_again = [
        each._replace(values=(60.0,)) if (each.way, each.num_sizes) == ("single", 12) else each
        for each in results(seeds=1)
    ]
    assert {each.num_sizes for each in Report(worse_again, SHOWN).break_even()} == {None}


def test_surely_is_by_more_than_the_interval() -> None:
    """Differences of the same seed count: here they are the same for both seeds, though the seeds differ."""
    surely = {each[1:3]: each.num_sizes for each in Report(results(), SHOWN).break_even() if each.surely}
    assert surely == {
        ("single", "every size"): 12,
        ("single", "mean"): 6,
        ("seed", "every size"): None,
        ("seed", "mean"): None,
    }
    unsure = [
        each._replace(values=(each.values[0] - 1, each.values[1])) if each.way == "single" else each
        for each in results()
    ]
    found = {
        (each.where, each.surely): each.num_sizes for each in Report(unsure, SHOWN).break_even() if each.way == "single"
    }
    assert found == {("every size", False): 12, ("mean", False): 6, ("every size", True): None, ("mean", True): None}


def test_the_mean_over_sizes_is_taken_before_that_over_seeds() -> None:
    (mean,) = (
        each
        for each in Report(results(), SHOWN).scores()
        if (each.way, each.num_sizes, each.size, each.protocol) == ("single", 6, "mean", "knn")
    )
    assert mean.mean == pytest.approx(51 - 2)
    assert (mean.spread, mean.gain, mean.gain_low, mean.gain_high) == pytest.approx((2**0.5, 2, 2, 2))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_tables_fit_a_console(width: int) -> None:
    console = plain_console(width=width)
    with console.capture() as captured:
        for table in Report(results(), SHOWN).tables():
            console.print(table)
    lines = captured.get().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in captured.get()
    assert sum("elastic" in line for line in lines) == 2 * 4 + 1
    assert sum("none" in line for line in lines) == 2


def test_a_size_may_be_missing(tmp_path: Path) -> None:
    """The middle size is not among two."""
    few = [each for each in results() if each.num_sizes != 3] + [
        each._replace(num_sizes=2) for each in results() if each.num_sizes == 3 and each.size != "64x2"
    ]
    report = Report(few, SHOWN)
    assert "-" in [str(cell) for cell in report.tables()[0].columns[4].cells]
    report.write(tmp_path)
    content = json.loads((tmp_path / "compare-num-sizes.json").read_text())
    assert [NumSizesResult(**{**each, "values": tuple(each["values"])}) for each in content["results"]] == few
    assert len(content["break_even"]) == 2 * 2 * 2 * 2
    rows = list(csv.DictReader(io.StringIO((tmp_path / "compare-num-sizes.csv").read_text())))
    assert len(rows) == len(few) + 3 * 4 * 2
    assert (tmp_path / "compare-num-sizes.png").read_bytes().startswith(b"\x89PNG")
