"""Curves of a change of precision: the settings that runs share, and the table."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("curves")


def test_all_runs_have_the_settings_of_the_first(curves: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--before", "HEAD", "--limit", "64", "--out", "here", "--seeds", "2", "--model.width-max", "64"]
    monkeypatch.setattr("sys.argv", ["curves.py", *words])
    started: list[Any] = []
    monkeypatch.setattr(curves.subprocess, "run", lambda command, **_: started.append(json.loads(command[-1])))
    arguments, flags = curves.parse()
    for arm in curves.ARMS:
        curves.train(arm, Path("there"), arguments, flags)
    (first, second), now, plain = started
    assert first[:7] == ["pretrain", "--out", "here/before 0", "--data", "digits/train", "--recipe", "demo"]
    assert first[-6:] == ["--model.width-max", "64", "--seed", "0", "--precision", "bf16"]
    assert [*second[:2], *second[3:-3], *second[-2:]] == [*first[:2], *first[3:-3], *first[-2:]]
    assert now[1][2:] == ["here/now 1", "--config", "here/before 0/config.yaml", "--seed", "1", "--precision", "bf16"]
    assert plain[0][-1] == "fp32"


def test_the_table_has_means_and_deviations_over_seeds(curves: Any) -> None:
    runs = [curves.Figures([5.0, 4.0, 3.0], {"32x2": 50.0}), curves.Figures([5.0, 4.0, 1.0], {"32x2": 54.0})]
    assert curves.table({"now": runs}).splitlines() == [
        " | seeds | first loss | middle | last | 32x2",
        "now | 2 | 5.00 ± 0.00 | 4.00 ± 0.00 | 2.00 ± 1.41 | 52.00 ± 2.83",
    ]
    assert "3.00 ± 0.00" in curves.table({"now": runs[:1]})
