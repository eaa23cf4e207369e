"""Scores of the sizes of a run: those that are on disk, and further ones where images are given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from poa.choice.measured import Measurement
from poa.config.choice import Limits
from poa.data.sources import Data
from poa.errors import UserError
from poa.evaluation.evaluate import PROTOCOLS, evaluate, protocol_of
from poa.evaluation.results import NotScored, Results
from poa.evaluation.rows import SHOWN
from poa.evaluation.sweep import SweepOptions
from poa.models.source import ModelSource
from poa.text import note, shell_word

BY_SIZE = "parameters"
"""What stands for a score without labels: no measure without labels has ordered sizes better (docs/results.md)."""


@dataclass(frozen=True)
class Known:
    """Scores on disk.

    Attributes:
        name: Of the score, such as ``top1@20``.
        scores: In percent or that unit, by name of the network.
        intervals: Of those that have one.
        unit: Of the scores.
    """

    name: str
    scores: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    unit: str = "%"


@dataclass(frozen=True)
class Labelled:
    """Images to score on, as ``poa evaluate`` takes them."""

    test: Data
    train: Data | None = None
    limit: int | None = None
    workers: int = 0


def labelled(train: Data | None, test: Data | None, limit: int | None, workers: int) -> Labelled | None:
    """The images that are given, if any.

    Raises:
        UserError: Images to learn from are given, and none to test on.
    """
    if test is not None:
        return Labelled(test, train, limit, workers)
    if train is not None or limit is not None:
        raise UserError(
            "--train and --limit are for scoring sizes, which needs labelled images to test on. Add --test."
        )
    return None


def known_scores(source: ModelSource, score: str) -> Known | None:
    """The scores in the folder of an evaluation, by the headline of its protocol; None if there is no such folder.

    Raises:
        UserError: They are those of other weights, or the file is damaged.
    """
    folder = source.out / score
    path = next((file for kind in SHOWN if (file := folder / f"{kind}.json").is_file()), None)
    if path is None:
        return None
    results = Results.read(path)
    if not results.scores:
        return None
    weights = results.settings.get("weights")
    if weights != source.weights:
        raise UserError(
            f"{path} holds scores of other weights ({weights}; now {source.weights}). Score again with the same "
            "`poa evaluate` command and --overwrite."
        )
    names = list(next(iter(results.scores.values())))
    wanted = PROTOCOLS[path.stem].headline if path.stem in PROTOCOLS else names[0]
    name = wanted if wanted in names else names[0]
    return Known(
        name,
        {network: values[name] for network, values in results.scores.items() if name in values},
        {network: ends[name] for network, ends in results.intervals.items() if name in ends},
    )


def by_parameters(measured: Mapping[str, Measurement]) -> Known:
    """The number of parameters in the place of a score."""
    millions = {name: each.parameters / 1e6 for name, each in measured.items()}
    return Known("parameters, M", millions, {}, "M parameters")


def check_score(score: str, limits: Limits, images: Labelled | None) -> None:
    """A choice without labels has no use for images or a least score."""
    if score == BY_SIZE and (images is not None or limits.min_score is not None):
        raise UserError(
            f"--score {BY_SIZE} chooses without labels, the largest size within the limits. Leave out --min-score, "
            "--train and --test, or name an evaluation, such as --score knn."
        )


def not_scored(source: ModelSource, score: str) -> UserError:
    """The error of a run without scores of that name."""
    folders = {file.parent.name for kind in SHOWN for file in source.out.glob(f"*/{kind}.json")}
    others = f" It has {', '.join(sorted(folders))} (--score)." if folders else ""
    return UserError(
        f"{source.name} has no scores called {score!r}.{others} Give labelled images with --train and --test, or run "
        f"`poa evaluate {score if score in PROTOCOLS else 'knn'} {shell_word(source.name)}` first. Without labels, "
        f"--score {BY_SIZE} takes the largest size within the limits."
    )


def add_scores(source: ModelSource, score: str, names: Sequence[str], images: Labelled, console: Console) -> None:
    """Score networks by the protocol of that name with its usual settings; the scores are written as always.

    Raises:
        UserError: There is no such protocol, or the scores that are there are of other images.
    """
    if score not in PROTOCOLS:
        raise UserError(
            f"--train and --test are for --score {', '.join(PROTOCOLS)}, got {score!r}. Leave them out to use the "
            "scores that are there."
        )
    protocol = protocol_of(score, {})
    sizes = source.names if protocol.joint else names
    options = SweepOptions(sizes=tuple(sizes), workers=images.workers, console=console)
    try:
        evaluate(source, protocol, train=images.train, test=images.test, limit=images.limit, options=options)
    except NotScored as error:
        note(console, str(error))
    except UserError as error:
        advice = "Choose another --name to keep both, or replace them with --overwrite."
        instead = f"Give the same images, or score again with `poa evaluate {score}` and --overwrite."
        raise UserError(str(error).replace(advice, instead)) from None
