"""Scores and costs of the sizes of a run."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from poa import build
from poa.data.index import open_index
from poa.elastic.space import Size
from poa.errors import UserError
from poa.evaluation.cost import costs
from poa.evaluation.sweep import PROTOCOLS, Scores, Scoring, score_sizes
from poa.families.base import Family
from poa.report.tables import SizeRow, score_names, size_rows
from poa.run import Run
from poa.training.progress import Bars

BRANCHES = ("teacher", "untrained")
"""What every run has. One that began with trained weights has them too, as ``initial``."""
UNNAMED = {"teacher": "knn", "initial": "initial", "untrained": "untrained"}
"""Names of evaluations that are given none."""
EVALUATIONS_SHOWN = 3
"""As many as fit into a terminal of 80 characters."""


def choose_sizes(run: Run, sizes: str | Sequence[str]) -> tuple[Size, ...]:
    """Sizes by name.

    Args:
        run: Whose sizes.
        sizes: ``all``, or names of sizes, also as one text with commas.

    Raises:
        UserError: The run has no such size.
    """
    names = [name for text in ([sizes] if isinstance(sizes, str) else sizes) for name in text.split(",") if name]
    if names == ["all"]:
        return run.space.sizes
    if not names:
        raise UserError("Say which sizes to score: --sizes all, or names such as --sizes 384x12,768x12.")
    return tuple(run.space.find(name.strip()) for name in names)


def evaluate_knn(
    run: Run,
    *,
    train: str,
    test: str,
    sizes: str | Sequence[str] = "all",
    branch: str = "teacher",
    name: str | None = None,
    ks: tuple[int, ...] | None = None,
    limit: int | None = None,
    workers: int = 0,
    overwrite: bool = False,
    console: Console | None = None,
) -> Scores:
    """Scores in percent of sizes by weighted k-NN on frozen features (POA, Sec. 4; DINO's protocol).

    Args:
        run: Whose sizes.
        train: Labelled images that vote.
        test: Labelled images that are classified.
        sizes: ``all``, or names of sizes.
        branch: ``teacher``; ``untrained`` for freshly initialised networks of the same sizes; or ``initial`` for sizes
            cut out of the trained weights that the run began with.
        name: Folder of the results in the run's ``eval``; ``knn``, ``untrained`` or ``initial`` by default.
        ks: Numbers of neighbours; 10, 20, 100 and 200 by default, as far as there are images.
        limit: Let only a class-balanced part of the training images vote.
        workers: Processes that decode images.
        overwrite: Forget results of that name.
        console: Where to show progress.

    Raises:
        UserError: Sizes, images or labels are not as they must be, or the name holds results of other settings.
    """
    if branch not in UNNAMED:
        raise UserError(f"There is no branch {branch!r} to score. Choose from {', '.join(UNNAMED)}.")
    chosen = choose_sizes(run, sizes)
    views = run.config.views
    scoring = Scoring(
        image_size=views.global_size,
        resize=build.scoring_resize(run.config),
        mean=views.mean,
        std=views.std,
        ks=ks,
        workers=workers,
    )
    networks, weights = _branch(run, branch)
    train_index, test_index = open_index(train, limit=limit), open_index(test)
    with Bars(console or Console(stderr=True)) as bars:
        return score_sizes(
            networks,
            chosen,
            train_index=train_index,
            test_index=test_index,
            out=_folder(run, name or UNNAMED[branch]),
            weights=weights,
            scoring=scoring,
            device=build.device_of(run.config.model_copy(update={"device": "auto"})),  # as trained elsewhere, perhaps
            overwrite=overwrite,
            progress=bars,
        )


def _branch(run: Run, branch: str) -> tuple[Callable[[Size], nn.Module], str]:
    """Where the networks come from, and what their weights are."""
    if branch == "teacher":
        return run.network, f"teacher at step {run.step}"
    if branch == "initial":
        run.initial(run.space.sizes[0])  # if there is none, it is told before images are read
        return run.initial, f"initial, from {run.config.init}"
    return run.untrained, f"untrained, seed {run.config.seed}"


def _folder(run: Run, name: str) -> Path:
    if Path(name).name != name:
        raise UserError(f"--name is the name of a folder in {run.paths.scores}, without slashes, got {name!r}.")
    return run.paths.scores / name


def rows(run: Run) -> list[SizeRow]:
    """All sizes with their costs and all scores so far.

    Scores under other names than ``knn`` carry the name, and those of an earlier checkpoint its step.

    Args:
        run: Whose sizes.

    Raises:
        UserError: A file of scores is damaged.
    """
    known: dict[str, dict[str, float]] = {}
    files = [path for protocol in PROTOCOLS for path in run.paths.scores.glob(f"*/{protocol}.json")]
    order = list(UNNAMED.values())
    for path in sorted(files, key=lambda path: (*(path.parent.name != name for name in order), path)):
        scores, weights = read_scores(path)
        teacher, _, step = weights.partition(" at step ")
        marks = [path.parent.name] if path.parent.name != path.stem else []
        marks += [f"step {step}"] if teacher == "teacher" and step != str(run.step) else []
        prefix = "".join(f"{mark} " for mark in marks)
        for size, values in scores.items():
            known.setdefault(size, {}).update({f"{prefix}{name}": value for name, value in values.items()})
    return with_scores(run, known)


def headline(rows: Sequence[SizeRow]) -> list[str] | None:
    """The scores to show where there are several evaluations: of the first three, the one with 20 neighbours each.

    Args:
        rows: Sizes with all scores.

    Returns:
        Names of scores; None where there is one evaluation, whose scores all fit.
    """
    evaluations: dict[str, list[str]] = {}
    for name in score_names(rows):
        evaluations.setdefault(name.rpartition(" ")[0], []).append(name)
    if len(evaluations) < 2:
        return None
    shown = [next((name for name in names if name.endswith("top1@20")), names[0]) for names in evaluations.values()]
    return shown[:EVALUATIONS_SHOWN]


def with_scores(run: Run, scores: Mapping[str, Mapping[str, float]]) -> list[SizeRow]:
    """All sizes with their costs and the given scores.

    Args:
        run: Whose sizes.
        scores: Scores by name of the size.
    """
    return rows_of(run.family, scores)


def rows_of(family: Family, scores: Mapping[str, Mapping[str, float]]) -> list[SizeRow]:
    """All sizes of a family with their costs, before any run.

    Args:
        family: Whose sizes.
        scores: Scores by name of the size.
    """
    counted = costs(family.build, family.space.sizes, image_size=family.image_size)
    return size_rows(family.space, costs=counted, scores=scores)


def read_scores(path: Path) -> tuple[Mapping[str, Mapping[str, float]], str]:
    """Scores in a file of results, and whose they are.

    Raises:
        UserError: The file is damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        return content["scores"], content["settings"]["weights"]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is not a file of scores, or damaged. Delete it, and score the sizes again.") from None
