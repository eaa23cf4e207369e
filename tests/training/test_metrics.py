import json
import math
from pathlib import Path

import pytest

from poa.errors import UserError
from poa.training.metrics import MetricsLog, read_metrics


def test_each_write_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write(1, {"loss/intact": 0.5, "size": "64x2"})
    assert path.read_text() == '{"step": 1, "loss/intact": 0.5, "size": "64x2"}\n'
    log.write(2, {"num_images": 32})
    assert read_metrics(path) == [
        {"step": 1, "loss/intact": 0.5, "size": "64x2"},
        {"step": 2, "num_images": 32},
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_has_no_word_for_become_null(tmp_path: Path, value: float) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write(1, {"loss": value})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {"step": 1, "loss": None}


def test_a_killed_and_resumed_run_leaves_the_file_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    log = MetricsLog(whole)
    for step in range(10):
        log.write(step, {"loss": step / 3})
    resumed.write_bytes(whole.read_bytes()[:-20])
    log = MetricsLog(resumed)
    log.truncate_after(6)
    assert [row["step"] for row in read_metrics(resumed)] == [0, 1, 2, 3, 4, 5]
    for step in range(6, 10):
        log.write(step, {"loss": step / 3})
    assert resumed.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resumed.jsonl", "whole.jsonl"]


def test_truncating_drops_a_half_written_line_alone_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    log = MetricsLog(path)
    log.truncate_after(2)
    assert path.read_text() == '{"step": 1}\n'


def test_truncating_before_the_first_line_is_no_error(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.truncate_after(0)
    assert not list(tmp_path.iterdir())


def test_reading_skips_a_line_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]


@pytest.mark.parametrize("line", ["{loss", "[1, 2]", '{"loss": 1}'])
def test_a_line_that_is_no_metric_is_shown(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{line}\n{{"step": 2}}\n')
    with pytest.raises(UserError) as error:
        read_metrics(path)
    assert repr(line) in str(error.value)
    assert str(path) in str(error.value)


def test_missing_metrics_are_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There are no metrics at"):
        read_metrics(tmp_path / "metrics.jsonl")
