"""The one sweep over the networks of a source: shared among processes, resumed after a stop, written as it goes.

A `Scorer` says what is done to each network: `FrozenFeatures` of `evaluate`, others for robustness, quality and tasks.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from rich.console import Console

from poa import distributed
from poa.config.protocols import MAX_BAD_SHARE
from poa.data.content import Identity, LeftOut
from poa.errors import UserError
from poa.evaluation.protocol import Outcome
from poa.evaluation.results import ResultFiles, Results, results_file
from poa.features.extract import Progress
from poa.models.source import ModelSource
from poa.text import note, plain_console
from poa.training.progress import Bars

AT_ONCE = 8
"""Networks that are held in memory together and share each decoded image."""


class Scorer(ABC):
    """What a sweep does to networks; a subclass is a frozen dataclass of the source, the images and the settings."""

    source: ModelSource
    done = "scored"
    """For the message about networks without scores, which could not be scored, trained or measured."""
    may_memorise = False
    """Whether all test images may be training images, so that scores say how well these are memorised."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the files of results, and of their folder by default; such as ``knn`` or ``detection``."""

    @property
    @abstractmethod
    def identities(self) -> Mapping[str, Identity]:
        """The images, by what they are for: ``train`` and ``test``, or others."""

    @property
    @abstractmethod
    def choices(self) -> Mapping[str, Any]:
        """All that the scores depend on besides weights and images, as far as JSON can hold it."""

    @property
    def of_the_others(self) -> str:
        """What is said where images could not be read."""
        return "The scores are those of the remaining images."

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that the scores depend on: results of other settings are refused."""
        texts = {what: each.text for what, each in self.identities.items()}
        return {"weights": self.source.weights, **texts, **self.choices}

    @property
    def at_once(self) -> int | None:
        """How many networks are scored together, at most; None for all of them, by one process."""
        return 1

    @abstractmethod
    def score(self, names: Sequence[str], work: Path, progress: Progress) -> Iterator[tuple[str, Outcome | UserError]]:
        """Score at most ``at_once`` networks that have no scores yet, each written as it is yielded.

        A `UserError` that is yielded says why one network has no scores, and the others go on. One that is raised
        ends the sweep; called again, it finds ``work`` as it was left: a folder, which need not exist at first, to
        keep what a stopped sweep resumes from, removed afterwards.
        """

    def finish(self, results: Results, folder: Path) -> None:  # noqa: B027  # optional
        """Write what further files there are once all networks are scored; called in the main process."""


@dataclass(frozen=True)
class SweepOptions:
    """What all sweeps take.

    Attributes:
        sizes: ``all``, or names of networks.
        name: Folder of the results in the source's ``out``; by default that of the scorer, with the branch unless it
            is ``teacher``.
        workers: Processes that prepare images.
        overwrite: Remove earlier results of that name.
        console: Where to show progress; standard error by default.
        max_bad_share: Share of the images that may be left out of scores as they cannot be read.
    """

    sizes: str | Sequence[str] = "all"
    name: str | None = None
    workers: int = 0
    overwrite: bool = False
    console: Console | None = None
    max_bad_share: float = MAX_BAD_SHARE

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(f"--max-bad-share is a share from 0 to 1, got {self.max_bad_share}.")
        if self.name is not None and Path(self.name).name != self.name:
            raise UserError(f"--name must be the name of a folder, without slashes, got {self.name!r}.")

    def check_readable(self, left_out: Mapping[str, LeftOut]) -> None:
        """Refuse to score where too many images could not be read."""
        for what, each in left_out.items():
            share = each.number / each.total
            if share > self.max_bad_share:
                raise UserError(
                    f"{each.describe(what)} That is {share:.1%}, more than --max-bad-share {self.max_bad_share:g}. "
                    f"Restore them, or allow more, such as --max-bad-share {ceil(100 * share) / 100:g}."
                )

    def tell(self, sentence: str) -> None:
        """Print a sentence, once for all processes."""
        if distributed.is_main():
            note(self.console or plain_console(stderr=True), sentence)


DEFAULTS = SweepOptions()


def sweep(source: ModelSource, scorer: Scorer, names: Sequence[str], options: SweepOptions = DEFAULTS) -> Results:
    """Score networks, and write ``<scorer>.json`` and ``<scorer>.csv`` in the folder of ``results_file``.

    Networks that the file already holds are left out, so that a stopped sweep resumes when it is called again, and
    more can be added later. Under several processes each scores its share. A network that cannot be scored, such as
    one that has diverged, does not keep the others from it.

    The names are those that ``source.choose(options.sizes)`` gives; who makes the scorer also uses ``options.workers``.
    Returns all results in the file, those of other networks too.

    Raises:
        NotScored: Some networks could not be scored; raised at the end.
        UserError: There are no networks, or the folder cannot be written or holds results of other settings.
    """
    names = list(dict.fromkeys(names))
    if not names:
        raise UserError("There are no networks to score: name some sizes, such as 96x4, or give --sizes all.")
    if overlap := overlap_of(scorer.identities, may_be_total=scorer.may_memorise):
        options.tell(overlap)
    folder, sources = results_file(source, scorer.name, options.name).parent, scorer.identities
    settings = json.loads(json.dumps(scorer.settings, default=str))
    files = ResultFiles(folder, Results(scorer.name, settings, {what: each.source for what, each in sources.items()}))
    for sentence in files.start(overwrite=options.overwrite):
        options.tell(sentence)
    with Bars(options.console or plain_console(stderr=True)) as progress:
        _score_share(scorer, names, files, options, progress)
    results = files.finish()
    for what, left_out in results.left_out.items():
        if left_out.number:
            options.tell(f"{left_out.describe(what)} {scorer.of_the_others}")
    if distributed.is_main():
        scorer.finish(results, folder)
    files.require(names, done=scorer.done)
    return results


def overlap_of(identities: Mapping[str, Identity], *, may_be_total: bool = False) -> str | None:
    """A sentence about test images that are also training images; None if there are none.

    Raises:
        UserError: All are, and that must not be.
    """
    if not {"train", "test"} <= identities.keys():
        return None
    train, test = identities["train"], identities["test"]
    number = test.num_among(train)
    if number == 0:
        return None
    if number < len(test):
        verb = "is" if number == 1 else "are"
        return (
            f"{number:,} of {len(test):,} test images {verb} also among the training images, which makes the scores "
            "too good. Take them out of the training or the test images."
        )
    if not may_be_total:
        raise UserError(
            f"All {len(test):,} test images ({test.source}) are also among the training images ({train.source}), so "
            "that a test would be meaningless. Give other images to test on."
        )
    return f"All {len(test):,} test images are also among the training images: scores say how well these are memorised."


def _score_share(
    scorer: Scorer, names: Sequence[str], files: ResultFiles, options: SweepOptions, progress: Progress
) -> None:
    """Score this process's share, group by group; groups do not depend on what is scored already."""
    groups = _groups(scorer, names)
    share = [name for group in groups for name in group]

    def tell() -> None:
        done = files.known.scores.keys() | files.known.failed.keys()
        progress("networks", sum(name in done for name in share), len(share))

    for group in groups:
        tell()
        pending = [name for name in group if name not in files.known.scores]
        if pending:
            with files.work_on(group) as work:
                for name, outcome in scorer.score(pending, work, progress):
                    if isinstance(outcome, Outcome):
                        options.check_readable(outcome.left_out)
                    files.add(name, outcome)
                    tell()


def _groups(scorer: Scorer, names: Sequence[str]) -> list[Sequence[str]]:
    """What this process scores, in groups that are scored together."""
    if scorer.at_once is None:
        return [names] if distributed.is_main() else []
    share = names[distributed.rank() :: distributed.world_size()]
    return [share[start : start + scorer.at_once] for start in range(0, len(share), scorer.at_once)]
