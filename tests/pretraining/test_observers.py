from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import poa
import tiny
from poa import distributed
from poa.errors import UserError
from poa.pretraining import observers
from poa.pretraining.observers import NO_CALLBACKS, Callbacks, Observers
from poa.training.metrics import read_metrics
from poa.training.trackers import Started


def test_trackers_are_named_once_and_the_older_flag_stays() -> None:
    assert tiny.config().trackers == ()
    assert tiny.config(log="wandb").trackers == ("wandb",)
    assert tiny.config(log=["mlflow", "tensorboard"], monitor={"tensorboard": True}).trackers == (
        "tensorboard",
        "mlflow",
    )
    with pytest.raises(UserError, match=r"log\.0 cannot be 'tensorbord'\. Did you mean 'tensorboard'"):
        poa.pretrain(**tiny.settings(log=["tensorbord"], out="nowhere"))


def test_steps_and_scores_are_told_as_they_are_written() -> None:
    told: list[object] = []
    seeing = Observers((), Callbacks(lambda *given: told.append(given), lambda *given: told.append(given)))
    assert seeing.tell(1, {"size": "32x2", "loss": 2.0}, {}) is None
    assert seeing.tell(2, {"size": "32x2", "loss": 1.0, "knn": 9.0}, {"knn": 9.0}) is None
    assert told == [
        (1, {"step": 1, "size": "32x2", "loss": 2.0}),
        (2, {"step": 2, "size": "32x2", "loss": 1.0, "knn": 9.0}),
        (2, {"knn": 9.0}),
    ]


class Failing:
    """A tracker of a server that is gone."""

    closed = 0

    def __init__(self, _: Started) -> None:
        pass

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        raise ConnectionError(f"no answer at {step} with {dict(numbers)}")

    def close(self) -> None:
        Failing.closed += 1


def test_a_tracker_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(observers, "tracker_of", lambda _: Failing)
    Failing.closed = 0
    watching = Observers(("wandb",), NO_CALLBACKS)
    with watching.opened(Started(tmp_path, 0, {})):
        failure = watching.tell(3, {"size": "32x2", "loss": 1.5}, {})
    assert str(failure) == (
        "--log wandb failed at step 3, which is saved: ConnectionError: no answer at 3 with {'loss': 1.5}. "
        "Fix that, or leave it out, and resume with --resume (from Python: resume=True)."
    )
    assert Failing.closed == 1


def test_a_tracker_that_cannot_start_is_named_and_others_are_closed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(_: Started) -> Failing:
        raise PermissionError("no key")

    monkeypatch.setattr(observers, "tracker_of", lambda name: refuse if name == "wandb" else Failing)
    Failing.closed = 0
    watching = Observers(("mlflow", "wandb"), NO_CALLBACKS)
    with pytest.raises(UserError, match=r"^--log wandb cannot start: PermissionError: no key\. Fix that, or leave"):
        watching.opened(Started(tmp_path, 0, {})).__enter__()
    assert Failing.closed == 1


def test_callbacks_do_not_reach_processes_that_are_started(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="on_step and on_score cannot reach this program from the 2 processes"):
        poa.pretrain(**tiny.settings(devices=2, out=str(tmp_path / "run")), on_step=print)
    assert not (tmp_path / "run").exists()


def test_a_callback_that_fails_ends_a_run_that_can_be_resumed(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    scored: dict[int, dict[str, Any]] = {}

    def fail(step: int, values: dict[str, Any]) -> None:
        seen.append(values)
        if step == 3:
            raise ZeroDivisionError("no reason")

    told = r"^on_step failed at step 3, which is saved: ZeroDivisionError: no reason\. Fix that, .* --resume"
    with pytest.raises(UserError, match=told) as raised:
        poa.pretrain(**tiny.settings(out=str(tmp_path / "run")), on_step=fail)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    assert poa.load(tmp_path / "run").step == 3
    more = Callbacks(on_step=lambda _, values: seen.append(values), on_score=scored.__setitem__)
    poa.pretrain(out=tmp_path / "run", resume=True, **more._asdict())
    assert [values["step"] for values in seen] == list(range(1, 9))
    assert seen == read_metrics(tmp_path / "run/metrics.jsonl")
    assert list(scored) == [4, 8]
    assert all(scores.items() <= seen[step - 1].items() for step, scores in scored.items())


def test_a_callback_that_fails_among_processes_ends_all_with_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They learn of it there; a process that stopped before would wait for them for ever."""

    def fail(step: int, _: dict[str, Any]) -> None:
        if step == 2:
            raise ZeroDivisionError("no reason")

    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match="on_step failed at step 2, which is saved"):
        poa.pretrain(**tiny.settings(out=str(tmp_path / "run"), devices=1), on_step=fail)
    assert poa.load(tmp_path / "run").step == 3
