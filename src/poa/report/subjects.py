"""What a page says of a subject, and what its scores depend on."""

from collections.abc import Mapping
from typing import Any

from poa.choice.subjects import Subject
from poa.evaluation import evaluate as scoring
from poa.text import one_line

_OF_NETWORK = {"weights", "image_size", "resize", "mean", "std"}
"""Settings of results that say what is scored, not how."""


def about(subject: Subject) -> str:
    """A sentence."""
    pixels, run = f"{subject.source.preprocessing.image_size} pixels", subject.run
    if run is None:
        return f"A timm model, {pixels}."
    return one_line(f"{subject.heading}: {run.config.model.name}, step {run.step:,}, {pixels}.")


def score_settings(subject: Subject) -> Mapping[str, Mapping[str, Any]]:
    """The images and settings of each score, by its name, without what is the network's own."""
    of_run = None if subject.run is None else scoring.evaluations_of_run(subject.run)
    evaluations = scoring.evaluations_of_network(subject.source) if of_run is None else of_run
    return {
        f"{prefix}{name}": {key: value for key, value in results.settings.items() if key not in _OF_NETWORK}
        for prefix, results in evaluations
        for name in dict.fromkeys(name for scores in results.scores.values() for name in scores)
    }
