"""Scores and costs of the sizes of a run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from poa import build
from poa.data.index import open_index
from poa.elastic.space import Size
from poa.errors import UserError
from poa.evaluation.cost import costs
from poa.evaluation.sweep import Scores, Scoring, score_sizes
from poa.report.tables import SizeRow, size_rows
from poa.run import Run
from poa.training.progress import Bars

BRANCHES = ("teacher", "untrained")


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
        branch: ``teacher``, or ``untrained`` for freshly initialised networks of the same sizes.
        name: Folder of the results in the run's ``eval``; ``knn`` or ``untrained`` by default.
        ks: Numbers of neighbours; 10, 20, 100 and 200 by default, as far as there are images.
        limit: Let only a class-balanced part of the training images vote.
        workers: Processes that decode images.
        overwrite: Forget results of that name.
        console: Where to show progress.

    Raises:
        UserError: Sizes, images or labels are not as they must be, or the name holds results of other settings.
    """
    if branch not in BRANCHES:
        raise UserError(f"There is no branch {branch!r} to score. Choose from {', '.join(BRANCHES)}.")
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
    trained = branch == "teacher"
    train_index, test_index = open_index(train, limit=limit), open_index(test)
    with Bars(console or Console(stderr=True)) as bars:
        return score_sizes(
            run.network if trained else run.untrained,
            chosen,
            train_index=train_index,
            test_index=test_index,
            out=run.paths.scores / (name or ("knn" if trained else "untrained")),
            weights=f"teacher at step {run.step}" if trained else f"untrained, seed {run.config.seed}",
            scoring=scoring,
            device=build.device_of(run.config),
            overwrite=overwrite,
            progress=bars,
        )


def rows(run: Run) -> list[SizeRow]:
    """All sizes with their costs and all scores so far; scores under other names than ``knn`` carry the name.

    Args:
        run: Whose sizes.
    """
    known: dict[str, dict[str, float]] = {}
    for path in sorted(run.paths.scores.glob("*/*.json")):
        prefix = "" if path.parent.name == path.stem else f"{path.parent.name} "
        for size, scores in read_scores(path).items():
            known.setdefault(size, {}).update({f"{prefix}{name}": value for name, value in scores.items()})
    return with_scores(run, known)


def with_scores(run: Run, scores: Mapping[str, Mapping[str, float]]) -> list[SizeRow]:
    """All sizes with their costs and the given scores.

    Args:
        run: Whose sizes.
        scores: Scores by name of the size.
    """
    family = run.family
    counted = costs(family.build, run.space.sizes, image_size=family.image_size)
    return size_rows(run.space, costs=counted, scores=scores)


def read_scores(path: Path) -> Mapping[str, Mapping[str, float]]:
    """Scores in a file of results."""
    content: Mapping[str, Mapping[str, float]] = json.loads(path.read_text())["scores"]
    return content
