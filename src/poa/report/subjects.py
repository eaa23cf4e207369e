"""Runs, folders and timm models by name, with all that is known of their networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poa.choice.measured import Measured, load
from poa.choice.subjects import labels
from poa.errors import UserError
from poa.evaluation import evaluate as scoring
from poa.evaluation.headings import heading_of_run
from poa.models import registry
from poa.models.run import Run, is_run
from poa.models.run import load as load_run
from poa.models.source import ModelSource, model_source, run_source
from poa.plots.tables import SizeRow
from poa.text import one_line

_OF_NETWORK = {"weights", "image_size", "resize", "mean", "std"}
"""Settings of results that say what is scored, not how."""


@dataclass(frozen=True)
class Subject:
    """What is known of one subject.

    Attributes:
        source: Its networks.
        name: Short.
        about: A sentence on it.
        rows: One for each network, with costs and scores.
        taken: What each score depends on besides the network: images and settings.
        measured: Times; those on this machine first.
        run: The run, if it is one.
    """

    source: ModelSource
    name: str
    about: str
    rows: Sequence[SizeRow]
    taken: Mapping[str, Mapping[str, Any]]
    measured: Sequence[Measured]
    run: Run | None = None


def subjects_of(names: Sequence[str], *, checkpoint: int | None = None) -> list[Subject]:
    """All subjects, each under a name that no other has.

    Args:
        names: Folders of runs, folders that timm loads, or timm names.
        checkpoint: The step of the runs' checkpoint to use; the newest by default.

    Raises:
        UserError: There is no such network, its scores are damaged, or one is named twice.
    """
    if not names:
        raise UserError("No network is named. Give the folder of a run, an extracted size, or a timm name.")
    if len(set(names)) < len(names):
        raise UserError("A run or network is named twice. Name each once.")
    return [_subject(name, label, checkpoint) for name, label in zip(names, labels(names), strict=True)]


def _subject(name: str, label: str, checkpoint: int | None) -> Subject:
    folder = registry.folder_of(name)
    if not is_run(folder):
        source = model_source(name, checkpoint=checkpoint)
        about = f"A timm model, {source.preprocessing.image_size} pixels."
        taken = _taken(scoring.evaluations_of_network(source))
        return Subject(source, one_line(label), about, scoring.network_rows(source), taken, load(source))
    run = load_run(folder, checkpoint=checkpoint)
    source = run_source(run)
    about = (
        f"{heading_of_run(run)}: {run.config.model.name}, step {run.step:,}, {source.preprocessing.image_size} pixels."
    )
    taken = _taken(scoring.evaluations_of_run(run))
    return Subject(source, one_line(label), one_line(about), scoring.rows(run), taken, load(source), run)


def _taken(evaluations: Sequence[scoring.Evaluation]) -> dict[str, dict[str, Any]]:
    """What scores depend on, by their names, without what is the network's own."""
    return {
        f"{prefix}{name}": {key: value for key, value in results.settings.items() if key not in _OF_NETWORK}
        for prefix, results in evaluations
        for name in dict.fromkeys(name for scores in results.scores.values() for name in scores)
    }
