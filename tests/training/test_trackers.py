"""Trackers hold the numbers of metrics.jsonl: those of packages that are installed, and stand-ins for the others."""

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

from poa.errors import UserError
from poa.training.metrics import MetricsLog, read_metrics
from poa.training.trackers import TRACKERS, Started, tracker_of

Numbers = dict[int, dict[str, float]]
ROWS: list[dict[str, Any]] = [
    {"size": "32x2", "lr": 0.25, "loss": 3.5, "intact/global": 1.5},
    {"size": "64x3", "lr": 0.125, "loss": 3.25, "intact/global": 1.0, "rankme": 12.5},
    {"size": "32x2", "lr": 0.0625, "loss": 3.0, "intact/global": 0.5},
]


def numbers_in(rows: list[dict[str, Any]]) -> Numbers:
    kept = {row["step"]: {name: x for name, x in row.items() if not isinstance(x, str)} for row in rows}
    return {step: {name: x for name, x in row.items() if name != "step"} for step, row in kept.items()}


# ---- Weights & Biases ------------------------------------------------------------------------------------------------


def init(*, dir: str, mode: str, group: str, name: str, **_: Any) -> Any:
    """Of the stand-in: a run that appends to a file."""
    assert mode == "offline"
    file = Path(dir, f"wandb/offline-{name}/run.wandb")
    file.parent.mkdir(parents=True)

    def log(numbers: dict[str, float], *, step: int) -> None:
        with file.open("a") as lines:
            lines.write(json.dumps({"step": step, **numbers}) + "\n")

    return SimpleNamespace(log=log, finish=lambda: None)


def records(content: bytes) -> Iterator[bytes]:
    """Of a file in LevelDB's format of logs, with a header of 7 bytes and blocks of 32 KiB."""
    place, whole = 7, b""
    while place + 7 < len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""


def in_wandb(folder: Path) -> Numbers:
    (file,) = folder.glob("wandb/offline-*/*.wandb")
    if not hasattr(sys.modules["wandb"], "proto"):
        return numbers_in([json.loads(line) for line in file.read_text().splitlines()])
    from wandb.proto.wandb_internal_pb2 import Record

    read = [Record.FromString(each) for each in records(file.read_bytes())]
    rows = [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in each.history.item}
        for each in read
        if each.HasField("history")
    ]
    own = [{name: x for name, x in row.items() if not name.startswith("_")} for row in rows]
    return {row["_step"]: numbers for row, numbers in zip(rows, own, strict=True)}


# ---- MLflow ----------------------------------------------------------------------------------------------------------


class Client:
    """Stands in for the client of MLflow; what it is told is kept by the address."""

    stores: ClassVar[dict[str, dict[str, Any]]] = defaultdict(lambda: defaultdict(list))

    def __init__(self, tracking_uri: str) -> None:
        self._store = self.stores[tracking_uri]

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=name) if name in self._store else None

    def create_experiment(self, name: str) -> str:
        self._store[name] = []
        return name

    def create_run(self, experiment: str, *, run_name: str) -> Any:
        run = SimpleNamespace(info=SimpleNamespace(run_id=run_name))
        self._store[experiment].append(run)
        return run

    def log_batch(self, run: str, *, metrics: list[Any]) -> None:
        for each in metrics:
            self._store[f"{run}/{each.key}"].append(each)

    def set_terminated(self, run: str) -> None:
        pass

    def search_runs(self, experiments: list[str]) -> list[Any]:
        return [run for each in experiments for run in self._store[each]]

    def get_metric_history(self, run: str, name: str) -> list[Any]:
        return list(self._store[f"{run}/{name}"])


def metric(key: str, value: float, timestamp: int, step: int) -> Any:
    return SimpleNamespace(key=key, value=value, step=step)


def in_mlflow(folder: Path) -> Numbers:
    client = sys.modules["mlflow"].MlflowClient(tracking_uri=(folder / "mlruns").resolve().as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("poa").experiment_id])
    found: Numbers = defaultdict(dict)
    for name in {name for row in ROWS for name in row}:
        for each in client.get_metric_history(run.info.run_id, name):
            found[each.step][name] = each.value
    return found


# ---- TensorBoard -----------------------------------------------------------------------------------------------------


def in_tensorboard(folder: Path) -> Numbers:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events, found = EventAccumulator(str(folder / "tb")).Reload(), defaultdict(dict)
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            found[event.step][name] = event.value
    return found


READERS: dict[str, Callable[[Path], Numbers]] = {
    "tensorboard": in_tensorboard,
    "wandb": in_wandb,
    "mlflow": in_mlflow,
}
STAND_INS: dict[str, dict[str, Any]] = {
    "wandb": {"init": init},
    "mlflow": {"MlflowClient": Client, "entities": SimpleNamespace(Metric=metric)},
}


@pytest.fixture(autouse=True)
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    for name, content in STAND_INS.items():
        if find_spec(name) is None:
            module = ModuleType(name)
            vars(module).update(content)
            monkeypatch.setitem(sys.modules, name, module)


def write(name: str, folder: Path, *, after: int = 0) -> None:
    log, tracker = MetricsLog(folder / "metrics.jsonl"), tracker_of(name)(Started(folder, after, {"epochs": 2}))
    for step, row in enumerate(ROWS[after:], after + 1):
        log.write(step, row)
        tracker.write(step, {key: x for key, x in row.items() if not isinstance(x, str)})
    tracker.close()


@pytest.mark.parametrize("name", TRACKERS)
def test_trackers_hold_the_numbers_of_the_metrics(name: str, tmp_path: Path) -> None:
    if name == "tensorboard":
        pytest.importorskip("tensorboard")
    write(name, tmp_path)
    assert READERS[name](tmp_path) == numbers_in(read_metrics(tmp_path / "metrics.jsonl"))


def test_tensorboard_shows_the_numbers_of_a_resumed_run_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    write("tensorboard", tmp_path)
    tracker = tracker_of("tensorboard")(Started(tmp_path, 1, {}))
    tracker.write(2, {"loss": 7.0})
    tracker.close()
    assert {step: row["loss"] for step, row in in_tensorboard(tmp_path).items()} == {1: 3.5, 2: 7.0}


def test_a_resumed_run_has_a_name_of_its_own(tmp_path: Path) -> None:
    assert Started(tmp_path / "mine", 0, {}).name == "mine"
    assert Started(tmp_path / "mine", 40, {}).name == "mine-from-40"


def test_names_are_those_that_mlflow_takes(tmp_path: Path) -> None:
    tracker = tracker_of("mlflow")(Started(tmp_path, 0, {}))
    tracker.write(1, {"knn/32x2 top1@20": 50.0})
    tracker.close()
    client = sys.modules["mlflow"].MlflowClient(tracking_uri=(tmp_path / "mlruns").resolve().as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("poa").experiment_id])
    assert [each.value for each in client.get_metric_history(run.info.run_id, "knn/32x2 top1_20")] == [50.0]


@pytest.mark.parametrize(("name", "extra"), [("tensorboard", "track"), ("wandb", "wandb"), ("mlflow", "mlflow")])
def test_a_package_that_is_not_installed_is_named(name: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, TRACKERS[name].module, None)
    with pytest.raises(UserError, match=rf"--log {name} needs the package .* pip install 'poa-ssl\[{extra}\]'"):
        tracker_of(name)
