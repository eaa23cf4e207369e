"""Forecast the time of all runs of a comparison by two steps of each kind of network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from poa.config.pretraining import Config
from poa.errors import counted
from poa.experiments.plan import Training
from poa.experiments.runs import steps_done
from poa.models.registry import family_of
from poa.plots.tables import plain_table
from poa.pretraining.dry_run import measure
from poa.pretraining.process import train
from poa.text import plain_console, tell


@dataclass(frozen=True)
class Forecast:
    """Of one run."""

    training: Training
    seconds: float
    """From beginning to end."""
    cpu_seconds: float
    """Of all threads of the processor together."""
    left: float
    """Share of the steps that are not done yet."""


def forecast(trainings: Mapping[Path, Training], console: Console) -> list[Forecast]:
    """Forecast each run by two steps of its method and size, which are measured once; nothing is written."""
    measured: dict[str, tuple[float, float]] = {}
    found = []
    for folder, training in trainings.items():
        kind = f"{training.config.method} {family_of(training.config).space.intact}"
        if kind not in measured:
            tell(console, f"── two steps of {kind}")
            measured[kind] = _seconds_per_step(training.config, trainings)
        wall, on_cpu = (training.num_steps * seconds for seconds in measured[kind])
        left = max(0.0, 1 - steps_done(folder) / training.num_steps)
        found.append(Forecast(training, wall, on_cpu, left))
    return found


def _seconds_per_step(config: Config, trainings: Mapping[Path, Training]) -> tuple[float, float]:
    """Wall and CPU time. The teacher of a distillation is one that was trained for a step."""
    quiet = plain_console(quiet=True)
    with TemporaryDirectory() as folder:
        teacher = Path(folder, "teacher")
        if config.method == "seed":
            alone = trainings[Path(config.distill.teacher)].config
            train(alone.model_copy(update={"out": str(teacher), "epochs": 1, "limit": alone.batch_size}), console=quiet)
            config = config.model_copy(update={"distill": config.distill.model_copy(update={"teacher": str(teacher)})})
        found = measure(config.model_copy(update={"out": ""}), console=quiet)
    return found.seconds_per_step, found.cpu_seconds_per_step


def forecast_table(found: Sequence[Forecast]) -> Table:
    """The runs of the first seed."""
    table = plain_table()
    table.add_column("run")
    for heading in ("epochs", "compute", "CPU hours", "hours"):
        table.add_column(heading, justify="right", no_wrap=True)
    seed, elastic = found[0].training.config.seed, found[0].training.flops
    for each in found:
        config = each.training.config
        if config.seed == seed:
            hours = (f"{seconds / 3600:.3f}" for seconds in (each.cpu_seconds, each.seconds))
            table.add_row(Path(config.out).name, str(config.epochs), f"{each.training.flops / elastic:.2f}", *hours)
    return table


def forecast_lines(found: Sequence[Forecast]) -> list[str]:
    """The sum over all seeds in words."""
    seeds = sorted({each.training.config.seed for each in found})
    on_cpu, wall = sum(each.cpu_seconds for each in found), sum(each.seconds for each in found)
    left = sum(each.left * each.cpu_seconds for each in found)
    return [
        *([f"The runs of each of the {counted(len(seeds), 'seed')} are the same."] if len(seeds) > 1 else []),
        f"In total {counted(len(found), 'run')}, {on_cpu / 3600:.2f} CPU hours ({wall / 3600:.2f} hours), of which "
        f"{left / 3600:.2f} CPU hours are left. Scoring is not included.",
    ]
