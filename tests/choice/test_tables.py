"""Tables of measurements and of the sizes to choose from."""

import pytest

from poa.choice.budget import Candidate
from poa.choice.measured import Measurement
from poa.choice.tables import Row, choice_table, interrupted, measurement_table
from poa.text import plain_console

ONE = Measurement(0.884, 1.5, 90, 1131.2, 670_000, 620_000, 154_000, 2_700_000, "2026-01-02", interrupted=2)
OTHER = Measurement(12.5, 15.0, 90, 80.0, None, 4_800_000, 1_200_000, None, "2026-01-02")


def printed(monkeypatch: pytest.MonkeyPatch, table: object, *, columns: int) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    console = plain_console()
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


@pytest.mark.parametrize(("columns", "last"), [(120, "params M"), (80, "params M"), (60, "memory MB"), (40, "p95 ms")])
def test_columns_are_left_out_where_there_is_no_room(monkeypatch: pytest.MonkeyPatch, columns: int, last: str) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    table = measurement_table([Row("run", "64x3", ONE), Row("run", "128x6", OTHER)])
    lines = printed(monkeypatch, table, columns=columns)
    assert lines[0].endswith(last)
    assert max(map(len, lines)) <= columns
    assert lines[2].split()[:4] == ["64x3", "0.88", "0.62", "0.0027"]
    assert lines[3].split()[:4] == ["128x6", "12.50", "4.80", "-"]


def test_several_subjects_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    table = measurement_table([Row("runs/mine", "64x3", ONE), Row("resnet18", "resnet18", OTHER)])
    lines = printed(monkeypatch, table, columns=80)
    assert [line.split("  ")[0] for line in lines[2:]] == ["runs/mine 64x3", "resnet18"]


def test_the_chosen_size_has_a_star_and_estimates_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    best = Candidate("64x3", 39.2, ONE, (33.2, 45.2))
    guess = Candidate("128x6", 40.0, OTHER, is_estimate=True)
    lines = printed(monkeypatch, choice_table([best, guess], best, score="top1@20"), columns=80)
    assert lines[0].split()[:2] == ["size", "top1@20"]
    assert lines[2].split()[:5] == ["64x3", "*", "39.2", "±6.0", "0.88"]
    assert lines[3].split()[:2] == ["128x6", "~40.0"]


def test_a_busy_machine_is_told() -> None:
    assert interrupted([ONE, OTHER]) == []
    busy = Measurement(1, 2, 90, 1, 1, 1, 1, 1, "", interrupted=45)
    assert interrupted([busy, OTHER]) == [
        "The machine was busy: other processes interrupted 25% of the passes, which count for p95 but not for the "
        "median."
    ]
