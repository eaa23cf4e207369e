"""Loggers of other packages that the numbers of a run go to as well: TensorBoard, Weights & Biases, MLflow."""

import os
import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from poa.errors import lacking


class Started(NamedTuple):
    """What a tracker is told of a run when it starts, anew or resumed.

    Attributes:
        folder: Of the run.
        after: Number of steps that were done before.
        settings: Of the run, nested.
    """

    folder: Path
    after: int
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of the run, and from which step on where it was resumed."""
        name = self.folder.resolve().name
        return f"{name}-from-{self.after}" if self.after else name


class Tracker(Protocol):
    """Takes the numbers of one step after another."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take the numbers of a step."""

    def close(self) -> None:
        """Write what is not written yet."""


class TensorBoard:
    """Event files in ``tb``; numbers that a resumed run writes again replace those before."""

    def __init__(self, module: ModuleType, started: Started) -> None:
        purge = started.after + 1 if started.after else None
        self._writer = module.SummaryWriter(started.folder / "tb", purge_step=purge)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add them as scalars."""
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WeightsAndBiases:
    """A run in ``wandb`` for each start, all in one group; offline unless WANDB_MODE says otherwise."""

    def __init__(self, module: ModuleType, started: Started) -> None:
        self._run = module.init(
            project=os.environ.get("WANDB_PROJECT", "poa"),
            dir=str(started.folder),
            name=started.name,
            group=started.folder.resolve().name,
            config=dict(started.settings),
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings={"console": "off"},  # it would take over what this process prints
        )

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log them at the step."""
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


class MLflow:
    """A run for each start, in the folder ``mlruns`` unless MLFLOW_TRACKING_URI says otherwise."""

    def __init__(self, module: ModuleType, started: Started) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # later versions ask for it; databases need more
            uri = (started.folder / "mlruns").resolve().as_uri()
        self._client = module.MlflowClient(tracking_uri=uri)
        self._entities = module.entities
        experiment = self._client.get_experiment_by_name("poa")
        id = self._client.create_experiment("poa") if experiment is None else experiment.experiment_id
        self._run = self._client.create_run(id, run_name=started.name).info.run_id

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Log them at the step; characters that MLflow does not take in names become underscores."""
        now, named = round(1000 * time.time()), {re.sub(r"[^\w\-. :/]", "_", name): x for name, x in numbers.items()}
        metrics = [self._entities.Metric(name, number, now, step) for name, number in named.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self._run)


class _Kind(NamedTuple):
    module: str
    package: str
    extra: str
    start: Callable[[ModuleType, Started], Tracker]


TRACKERS: Mapping[str, _Kind] = {
    "tensorboard": _Kind("torch.utils.tensorboard", "tensorboard", "track", TensorBoard),
    "wandb": _Kind("wandb", "wandb", "wandb", WeightsAndBiases),
    "mlflow": _Kind("mlflow", "mlflow-skinny", "mlflow", MLflow),
}


def tracker_of(name: str) -> Callable[[Started], Tracker]:
    """How a tracker is started; a UserError where its package is not installed."""
    kind = TRACKERS[name]
    try:
        return partial(kind.start, import_module(kind.module))
    except ImportError as error:
        raise lacking(f"--log {name}", kind.package, extra=kind.extra) from error
