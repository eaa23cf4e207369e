"""The runs of a comparison: checked before hours are spent, trained one after another, scored."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from rich.console import Console
from scipy.stats import t as student_t

from poa.config.pretraining import Config
from poa.config.resolve import as_begun, differences, of_run
from poa.config.values import written
from poa.data.index import matched_labels
from poa.data.sources import Data, check_out
from poa.elastic.space import Size
from poa.errors import UserError
from poa.evaluation import evaluate
from poa.evaluation.knn import Knn
from poa.evaluation.linear import Linear
from poa.evaluation.protocol import LEVEL, Protocol
from poa.evaluation.sweep import SweepOptions, overlap_of
from poa.experiments.plan import Training, elastic_run, stopped
from poa.features.images import open_images
from poa.models.opening import is_begun, reopen
from poa.models.registry import explicit
from poa.models.run import Paths
from poa.models.source import model_source
from poa.plots.tables import ScoreCell, score_cell
from poa.pretraining.process import train
from poa.text import note, tell
from poa.training.checkpoint import latest_checkpoint, step_of

PROTOCOLS: tuple[tuple[str, Protocol], ...] = (("top1@20", Knn()), ("top1", Linear()))
"""The scores compared, by their names, and their protocols."""
TITLES = {"knn": "k-NN top-1 in %, 20 neighbours", "linear": "linear probe top-1 in %"}


@dataclass(frozen=True)
class Labelled:
    """Labelled images on which all networks are scored.

    Attributes:
        train: For k-NN and linear classifiers.
        test: To be classified.
        limit: Class-balanced part of ``train``.
        workers: Processes that decode them.
    """

    train: Data
    test: Data
    limit: int | None = None
    workers: int = 0


class OverSeeds(NamedTuple):
    """Mean over seeds, with the standard deviation of a sample and the 95 % interval of the mean (Student's t)."""

    mean: float
    spread: float | None
    """None for one seed, as both ends."""
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "OverSeeds":
        """One value a seed."""
        mean, seeds = fmean(values), len(values)
        if seeds < 2:
            return cls(mean, None, None, None)
        spread = stdev(values)
        half = float(student_t.ppf((1 + LEVEL) / 2, seeds - 1)) * spread / sqrt(seeds)
        return cls(mean, spread, mean - half, mean + half)


def seeds_cell(mean: float, low: float | None, high: float | None, best: float) -> ScoreCell:
    """A mean over seeds in a table."""
    return score_cell(mean, best, ends=None if low is None or high is None else (low, high))


def check_settings(config: Config, seeds: Sequence[int]) -> None:
    """See that these settings can be those of the elastic runs.

    Raises:
        UserError: One cannot, or elastic runs were begun with other settings, from which all baselines follow.
    """
    if config.method != "poa":
        raise UserError(f"A comparison needs --method poa, got {config.method}; it trains the other methods itself.")
    if not config.out:
        raise UserError("--out FOLDER is required: the folder of all runs.")
    if not seeds or len(set(seeds)) < len(seeds):
        got = ", ".join(map(str, seeds)) or "none"
        raise UserError(f"A comparison needs one or more --seeds, all different, got {got}.")
    if config.init is not None:
        raise UserError("A comparison starts every network from scratch; leave --init out.")
    if config.distill.teacher:
        raise UserError(
            "A comparison does not count the cost of a further teacher; leave --distill.teacher out. SEED's teacher is "
            "trained by the comparison itself."
        )
    for seed in seeds:
        folder = Path(config.out, elastic_run(seed))
        if is_begun(folder):
            reopen(explicit(config.model_copy(update={"seed": seed, "out": str(folder)})))


def check_images(config: Config, labelled: Labelled) -> int:
    """See that there are images to train on and to score; returns how many there are to train on."""
    check_out(Path(config.out), config.data, labelled.train, labelled.test)
    train_index, test_index = open_images(labelled.train, limit=labelled.limit), open_images(labelled.test)
    matched_labels(train_index, test_index)
    overlap_of({"train": train_index.identity, "test": test_index.identity})
    return len(open_images(config.data, limit=config.limit))


def train_all(trainings: Mapping[Path, Training], console: Console) -> None:
    """Train one after another what is not trained yet; what was stopped is resumed."""
    done, total = 0.0, sum(training.flops for training in trainings.values())
    for number, (folder, training) in enumerate(trainings.items(), start=1):
        place = f"{number} of {len(trainings)}, {done / total:.0%} of the compute done"
        tell(console, f"── {folder} ({place})")
        begun = is_begun(folder)
        config = _as_begun(folder, training.config, console) if begun else training.config
        if steps_done(folder) < training.num_steps:
            train(config, resume=begun, console=console)
        if steps_done(folder) < training.num_steps:
            raise stopped(folder)
        done += training.flops


def _as_begun(folder: Path, config: Config, console: Console) -> Config:
    """The settings of a training to resume, with what an earlier commit fitted to it otherwise."""
    found = as_begun(config, of_run(Paths(folder).config))
    if changed := differences(found, config):
        listed = ", ".join(f"{name} {written(was)} (now {written(new)})" for name, (was, new) in changed.items())
        note(console, f"{folder} was begun with {listed} and keeps it.")
    return found


def steps_done(folder: Path) -> int:
    """At the newest checkpoint of a run; 0 where there is none."""
    newest = latest_checkpoint(Paths(folder).checkpoints)
    return 0 if newest is None else step_of(newest)


Scored = Mapping[tuple[Path, str], Mapping[str, float]]
"""Scores by folder and protocol, then by size."""


def score_all(wanted: Mapping[Path, Collection[Size]], labelled: Labelled, console: Console) -> Scored:
    """Scores of sizes of the runs in these folders; what was scored before is not scored again."""
    known: dict[tuple[Path, str], Mapping[str, float]] = {}
    for folder, sizes in wanted.items():
        options = SweepOptions(sorted(map(str, sizes)), workers=labelled.workers, console=console)
        for score, protocol in PROTOCOLS:
            found = evaluate.evaluate(
                model_source(str(folder)),
                protocol,
                train=labelled.train,
                test=labelled.test,
                limit=labelled.limit,
                options=options,
            ).scores
            known[folder, protocol.name] = {size: found[size][score] for size in map(str, sizes)}
    return known


def wanted_of(runs: Sequence[Mapping[Size, Path]]) -> dict[Path, set[Size]]:
    """Sizes by the folders that they are taken from."""
    wanted: dict[Path, set[Size]] = {}
    for each in runs:
        for size, folder in each.items():
            wanted.setdefault(folder, set()).add(size)
    return wanted
