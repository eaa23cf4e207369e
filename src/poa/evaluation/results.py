"""Files of scores of the networks of a source, as JSON and as CSV."""

import csv
import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from poa import distributed
from poa.elastic.space import Size
from poa.errors import UserError, counted
from poa.evaluation.protocol import Outcome
from poa.files import make_folder, whole_file
from poa.models.source import ModelSource
from poa.text import csv_cell

Scores = dict[str, dict[str, float]]
"""Scores by name of the network, then by name of the score."""
Intervals = dict[str, dict[str, tuple[float, float]]]
"""Lower and upper ends, named as ``Scores``."""


@dataclass(frozen=True, slots=True)
class Results:
    """The content of a file of results, by name of the network.

    Attributes:
        protocol: Name of the scorer.
        settings: All that the scores depend on.
        bad_images: How many images could not be read.
        scores: In percent.
        intervals: Of the scores that have one; 95 %, over test images.
        details: What else the protocol wrote down.
        failed: Why networks have no scores.
    """

    protocol: str
    settings: Mapping[str, Any]
    bad_images: Mapping[str, int] = field(default_factory=dict)
    scores: Scores = field(default_factory=dict)
    intervals: Intervals = field(default_factory=dict)
    details: Scores = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Results":
        """The content of a file such as ``RUN/eval/knn/knn.json``; older ones have no intervals.

        Raises:
            UserError: The file is damaged, or is not a file of scores.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            ends = content.get("intervals", {})
            content["intervals"] = {key: {name: tuple(pair) for name, pair in ends[key].items()} for key in ends}
            return cls(**content)
        except (AttributeError, TypeError, ValueError):
            raise UserError(
                f"{path} is damaged or not a file of scores. Delete it, or score with another --name."
            ) from None

    def of(self, names: Iterable[str]) -> Scores:
        """The scores of some networks, which all have some."""
        return {name: self.scores[name] for name in names}

    def with_outcome(self, name: str, outcome: Outcome) -> "Results":
        """The same and a network that was scored."""
        return replace(
            self,
            bad_images=outcome.bad_images,
            scores=self.scores | {name: dict(outcome.scores)},
            intervals=self.intervals | {name: outcome.intervals()},
            details=self.details | ({name: dict(outcome.details)} if outcome.details else {}),
        )

    def joined(self, other: "Results") -> "Results":
        """These and those of the same settings, which win. A network that has scores has not failed."""
        scores = self.scores | other.scores
        return replace(
            self,
            bad_images=other.bad_images or self.bad_images,
            scores=scores,
            intervals=self.intervals | other.intervals,
            details=self.details | other.details,
            failed={name: why for name, why in (self.failed | other.failed).items() if name not in scores},
        )

    def in_order(self) -> "Results":
        """With sizes in their order, and other networks by name."""
        return replace(
            self,
            scores=_ordered(self.scores),
            intervals=_ordered(self.intervals),
            details=_ordered(self.details),
            failed=_ordered(self.failed),
        )


class NotScored(UserError):  # noqa: N818  # says what is the matter
    """Some networks have no scores; those of the others are written.

    Attributes:
        results: All that is written.
    """

    def __init__(self, message: str, results: Results) -> None:
        super().__init__(message)
        self.results = results


class ResultFiles:
    """The files of one scorer in a folder: one, and during a sweep of several processes one more for each of them.

    Attributes:
        known: What is scored, as far as this process knows.
    """

    def __init__(self, out: Path, scorer: str, settings: Mapping[str, Any]) -> None:
        self._out, self._scorer = out, scorer
        self.known = Results(scorer, settings)

    def start(self, *, overwrite: bool) -> None:
        """Read what is there, or remove it.

        Raises:
            UserError: The folder cannot be written, or holds results of other settings.
        """
        if overwrite and distributed.is_main():
            self._remove(self._paths())
        distributed.barrier()
        make_folder(self._out, content="Scores")
        self._read()

    def add(self, name: str, outcome: Outcome | UserError) -> None:
        """Write the scores of a network, or why it has none."""
        if isinstance(outcome, Outcome):
            self.known = self.known.with_outcome(name, outcome)
        else:
            self.known = replace(self.known, failed=self.known.failed | {name: str(outcome)})
        self._write(self._own)

    def finish(self) -> Results:
        """Put the results of all processes into one file, once all are there."""
        distributed.barrier()
        self._read()
        distributed.barrier()
        if distributed.is_main():
            self._write(self.main)
            _write_csv(self.known.in_order(), self.main.with_suffix(".csv"))
            self._remove(set(self._paths()) - {self.main})
        distributed.barrier()
        return self.known

    def require(self, names: Sequence[str], *, done: str) -> None:
        """See that networks have scores.

        Raises:
            NotScored: Some have none: they could not be ``done``, such as scored.
        """
        failed = {name: self.known.failed[name] for name in names if name in self.known.failed}
        assert self.known.scores.keys() | failed.keys() >= set(names)
        if not failed:
            return
        reasons: dict[str, list[str]] = {}
        for name, why in failed.items():
            reasons.setdefault(why, []).append(name)
        lines = " ".join(f"{', '.join(same)}: {why}" for why, same in reasons.items())
        rest = f"; the others are in {self.main}" if len(failed) < len(names) else ""
        raise NotScored(
            f"{len(failed)} of {counted(len(names), 'network')} could not be {done}{rest}. {lines}", self.known
        )

    @property
    def work(self) -> Path:
        """Where a sweep keeps what it resumes from."""
        return self._out / f"work-{self._scorer}"

    @property
    def main(self) -> Path:
        """The file of all results."""
        return self._out / f"{self._scorer}.json"

    @property
    def _own(self) -> Path:
        alone = distributed.world_size() == 1
        return self.main if alone else self._out / f"{self._scorer}.part{distributed.rank()}.json"

    def _paths(self) -> list[Path]:
        parts = sorted(self._out.glob(f"{self._scorer}.part*.json"))
        return [self.main, *parts] if self.main.exists() else parts

    def _remove(self, paths: Iterable[Path]) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        for path in paths:
            path.unlink()

    def _read(self) -> None:
        for path in self._paths():
            found = Results.read(path)
            _check_same(path, found.settings, self.known.settings)
            self.known = self.known.joined(found)

    def _write(self, path: Path) -> None:
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(asdict(self.known.in_order()), indent=1), encoding="utf-8")


def results_file(source: ModelSource, scorer: str, name: str | None = None) -> Path:
    """Where the results of a scorer such as ``knn`` or ``detection`` are written, in a folder called ``name``.

    By default that is the scorer's name, with the branch unless it is ``teacher``; for k-NN the branch is enough.
    """
    branch = [] if source.branch == "teacher" else [source.branch]
    kind = [] if scorer == "knn" and branch else [scorer]
    return source.out / (name or "-".join(kind + branch)) / f"{scorer}.json"


def size_of(name: str) -> Size | None:
    """The size that a network is named after, if it is: ``384x12``, but not ``resnet18``."""
    return Size.parse(name) if re.fullmatch(r"\d+x\d+(-\d+)*", name) else None


def _ordered(table: dict[str, Any]) -> dict[str, Any]:
    return {name: table[name] for name in sorted(table, key=_place)}


def _place(name: str) -> tuple[bool, int, tuple[int, ...], str]:
    """Sorts sizes in their order, then other networks by name."""
    size = size_of(name)
    return (True, 0, (), name) if size is None else (False, size.width, size.depths, name)


def _check_same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differing = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    if differing:
        listed = ", ".join(f"{name} ({found.get(name)} before, {wanted.get(name)} now)" for name in differing)
        raise UserError(
            f"{path} holds scores made with other settings: {listed}. "
            "Choose another --name to keep both, or replace them with --overwrite."
        )


def _write_csv(results: Results, path: Path) -> None:
    """A line a network: each score, and the ends of its interval where some network has one."""
    names = list(dict.fromkeys(name for of_network in results.scores.values() for name in of_network))
    bounded = {name for of_network in results.intervals.values() for name in of_network}
    columns = [f"{name}{end}" for name in names for end in (("", "_low", "_high") if name in bounded else ("",))]
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["size", "width", "depth", *columns], lineterminator="\n")
        writer.writeheader()
        for network, scores in results.scores.items():
            size = size_of(network)
            named = {"width": size.width, "depth": "-".join(map(str, size.depths))} if size else {}
            ends = results.intervals.get(network, {})
            low = {f"{name}_low": pair[0] for name, pair in ends.items()}
            high = {f"{name}_high": pair[1] for name, pair in ends.items()}
            writer.writerow({"size": csv_cell(network), **named, **scores, **low, **high})
