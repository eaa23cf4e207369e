"""Curves of a change of precision: the settings that runs share, and the table."""

import importlib
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("curves")


def test_all_runs_have_the_settings_of_the_first(curves: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--before", "HEAD", "--limit", "64", "--out", str(tmp_path), "--model.width-max", "64"]
    monkeypatch.setattr("sys.argv", ["curves.py", *words])
    arguments, flags = curves.parse()
    first = curves.settings(arguments, flags)
    assert first[:8] == ["--data", "digits/train", "--recipe", "demo", "--epochs", "6", "--limit", "64"]
    assert first[-2:] == ["--model.width-max", "64"]
    (tmp_path / "before 0").mkdir()
    (tmp_path / "before 0/config.yaml").touch()
    assert curves.settings(arguments, flags) == ["--config", f"{tmp_path}/before 0/config.yaml"]


def test_the_table_has_means_and_deviations_over_seeds(curves: Any) -> None:
    runs = [curves.Figures([5.0, 4.0, 3.0], {"32x2": 50.0}), curves.Figures([5.0, 4.0, 1.0], {"32x2": 54.0})]
    assert curves.table({"now": runs}).splitlines() == [
        " | seeds | first loss | middle | last | 32x2",
        "now | 2 | 5.00 ± 0.00 | 4.00 ± 0.00 | 2.00 ± 1.41 | 52.00 ± 2.83",
    ]
    assert "3.00 ± 0.00" in curves.table({"now": runs[:1]})
