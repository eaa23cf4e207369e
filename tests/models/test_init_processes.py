"""Processes start from the same weights; with few imports, since each process waits for them."""

from pathlib import Path

from processes import run_processes
from trained import State, assert_same, features_of, made, started, written


def of_process(file: str) -> tuple[State, State, State, list[str]]:
    parts = started(init=file)
    assert parts.wrapped is not parts.method
    method = parts.method
    backbones = (method.student.backbone.state_dict(), method.teacher.backbone.state_dict())
    assert parts.report is not None
    return *backbones, method.student.heads.state_dict(), parts.report.lines()


def test_two_processes_start_equal(tmp_path: Path) -> None:
    model = made()
    file = written(model.state_dict(), tmp_path / "a.pth")
    first, second = run_processes(of_process, 2, file)
    for ours, theirs in zip(first[:3], second[:3], strict=True):
        assert_same(ours, theirs)
    assert first[3] == second[3]
    for state in first[:2]:
        del state["mask_token"]
        assert_same(state, {f"model.{name}": value for name, value in features_of(model).items()})
