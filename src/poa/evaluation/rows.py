"""Rows of tables: networks with their costs, and all scores that are known of them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from poa.evaluation.cost import costs_of, known_flops, parameters
from poa.evaluation.evaluate import PROTOCOLS
from poa.evaluation.knn import Knn
from poa.evaluation.results import Intervals, Results, Scores, size_of
from poa.families.base import Family
from poa.models.run import Run
from poa.models.source import ModelSource
from poa.plots.tables import SizeRow, score_names, size_rows
from poa.training.checkpoint import digest_of

SHOWN = (*PROTOCOLS, "finetune", "segmentation", "detection")
"""Kinds of results that ``poa sizes`` shows."""
FIRST = ("knn", "initial", "untrained")
"""Names of k-NN evaluations that are given none, which come first in tables, in this order."""


class Evaluation(NamedTuple):
    """Results in a folder, and what its scores are called before their own names."""

    prefix: str
    results: Results


def run_rows(run: Run) -> list[SizeRow]:
    """All sizes with their costs, and all scores so far with their intervals.

    Scores carry the name of their evaluation, unless it is ``knn``, those of an earlier checkpoint its step,
    and those of another run or of a run that was trained again that they are of other weights.
    """
    scores, intervals = named_scores(evaluations_of_run(run))
    return rows_of(run.family, scores, intervals=intervals)


def network_rows(source: ModelSource) -> list[SizeRow]:
    """The same of single networks: a folder that timm loads, or a timm model."""
    scores, intervals = named_scores(evaluations_of_network(source))
    return [_row_of_network(source, name, scores.get(name, {}), intervals.get(name, {})) for name in source.names]


def evaluations_of_run(run: Run) -> list[Evaluation]:
    """All evaluations of a run, in the order of ``poa sizes``."""
    return _evaluations(run.paths.scores, partial(_marks_of_run, run))


def evaluations_of_network(source: ModelSource) -> list[Evaluation]:
    """All evaluations of a single network."""

    def marks(weights: str) -> list[str]:
        is_known = weights == source.weights or weights.startswith("untrained ")
        return [] if is_known or source.branch == "untrained" else ["other weights"]  # untrained: none to compare with

    return _evaluations(source.out, marks)


def named_scores(evaluations: Sequence[Evaluation]) -> tuple[Scores, Intervals]:
    """All scores and intervals of each network."""
    scores: Scores = {}
    intervals: Intervals = {}
    for prefix, results in evaluations:
        for size, values in results.scores.items():
            scores.setdefault(size, {}).update({f"{prefix}{name}": value for name, value in values.items()})
        for size, pairs in results.intervals.items():
            intervals.setdefault(size, {}).update({f"{prefix}{name}": pair for name, pair in pairs.items()})
    return scores, intervals


def _evaluations(folder: Path, marks_of: Callable[[str], list[str]]) -> list[Evaluation]:
    """Those in a folder; ``marks_of`` says in how far their weights are others than those at hand."""
    found = []
    files = [(path, protocol) for protocol in SHOWN for path in folder.glob(f"*/{protocol}.json")]
    for path, protocol in sorted(files, key=lambda file: _place(*file)):
        results = Results.read(path)
        evaluation = path.parent.name
        marks = [] if evaluation == Knn.name else [evaluation]
        marks += [] if protocol == Knn.name or evaluation.startswith(protocol) else [protocol]
        marks += marks_of(results.settings["weights"])
        found.append(Evaluation("".join(f"{mark} " for mark in marks), results))
    return found


def _marks_of_run(run: Run, weights_and_digest: str) -> list[str]:
    weights, _, digest = weights_and_digest.partition(", sha256 ")
    teacher, _, step = weights.partition(" at step ")
    if teacher == "teacher" and step != str(run.step):
        return [f"step {step}"]
    return ["other weights"] if teacher == "teacher" and digest and digest != digest_of(run.checkpoint) else []


def _place(path: Path, protocol: str) -> tuple[Any, ...]:
    """Sorts evaluations: k-NN of all branches, the other protocols in their order, then what has a name of its own."""
    evaluation, number = path.parent.name, SHOWN.index(protocol)
    if protocol == Knn.name and evaluation in FIRST:
        return 0, FIRST.index(evaluation), path
    return 1 if evaluation == protocol else 2, number, path


def headline(rows: Sequence[SizeRow]) -> list[str]:
    """Names of the scores to show: of several evaluations the chief one each, of a single one all, that one first."""
    evaluations: dict[str, list[str]] = {}
    for name in score_names(rows):
        evaluations.setdefault(name.rpartition(" ")[0], []).append(name)
    wanted = {protocol.headline for protocol in PROTOCOLS.values()}
    ordered = [
        sorted(names, key=lambda name: (name.rpartition(" ")[2] not in wanted, "top1" not in name))
        for names in evaluations.values()
    ]
    return ordered[0] if len(ordered) == 1 else [names[0] for names in ordered]


def scored_rows(
    source: ModelSource, scores: Mapping[str, Mapping[str, float]], *, intervals: Intervals | None = None
) -> list[SizeRow]:
    """The networks that have scores, with their costs."""
    if source.family is not None:
        found = rows_of(source.family, scores, intervals=intervals, image_size=source.preprocessing.image_size)
        return [row for row in found if row.scores]
    return [_row_of_network(source, name, scores[name], (intervals or {}).get(name, {})) for name in scores]


def _row_of_network(
    source: ModelSource, name: str, scores: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]
) -> SizeRow:
    network = source.network(name)
    own = source.preprocessing
    operations = known_flops(network, own.image_size, channels=own.values.number)
    return SizeRow(size_of(name) or name, parameters(network), operations, scores=scores, intervals=intervals)


def rows_of(
    family: Family,
    scores: Mapping[str, Mapping[str, float]],
    *,
    intervals: Intervals | None = None,
    image_size: int | None = None,
) -> list[SizeRow]:
    """All sizes of a family with their costs, for images of ``image_size`` pixels, and the given scores."""
    counted = costs_of(family, image_size or family.image_size)
    return size_rows(family.space, costs=counted, scores=scores, intervals=intervals)
