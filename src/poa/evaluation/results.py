"""Files of scores of the networks of a source, as JSON and as CSV."""

import csv
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from poa import distributed
from poa.data.content import LeftOut
from poa.elastic.space import Size
from poa.errors import UserError, counted
from poa.evaluation.protocol import Outcome
from poa.files import make_folder, one_writer, whole_file
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
        sources: Where the images were, by what they are for; none in files of versions that knew images by their names
            and sizes, and weights by the number of steps.
        bad_images: How many images could not be read.
        left_out: The same with some of their names.
        scores: In percent.
        intervals: Of the scores that have one; 95 %, over test images.
        details: What else the protocol wrote down.
        failed: Why networks have no scores.
    """

    protocol: str
    settings: Mapping[str, Any]
    sources: Mapping[str, str] = field(default_factory=dict)
    bad_images: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, LeftOut] = field(default_factory=dict)
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
            left_out = content.get("left_out", {})
            content["left_out"] = {what: LeftOut.parse(each) for what, each in left_out.items()}
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
            bad_images={what: each.number for what, each in outcome.left_out.items()},
            left_out=outcome.left_out,
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
            left_out=other.left_out or self.left_out,
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

    Other commands may write scores of other networks to the same files at the same time.

    Attributes:
        known: What is scored, as far as this process knows.
    """

    def __init__(self, out: Path, nothing: Results) -> None:
        """``nothing`` is known at first but the scorer, its settings and where the images are."""
        self._out, self._scorer, self.known = out, nothing.protocol, nothing

    def start(self, *, overwrite: bool) -> list[str]:
        """Read what is there; remove it, or set it aside if it cannot be trusted any more, and say so.

        Raises:
            UserError: The folder cannot be written, or holds results of other settings.
        """
        told = []
        make_folder(self._out, content="Scores")
        if distributed.is_main():
            with one_writer(self._out.parent):
                if overwrite:
                    self._remove(self._paths())
                elif reasons := [why for path in self._paths() if (why := self._outdated(path))]:
                    told = [f"{reasons[0]} The results there are kept in {self._set_aside()}, and computed again."]
        distributed.barrier()
        self._read()
        return told

    def add(self, name: str, outcome: Outcome | UserError) -> None:
        """Write the scores of a network, or why it has none."""
        with one_writer(self._out.parent):
            if self._own.exists():
                self._join(self._own)
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
            with one_writer(self._out.parent):
                self._read()
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

    @contextmanager
    def work_on(self, group: Sequence[str]) -> Iterator[Path]:
        """A folder to resume from while networks are scored, which is kept until the end of the sweep if one fails.

        While another process works in it, this one gets another.
        """
        with ExitStack() as stack:
            for number in count(1):
                folder = self._work / (group[0] if number == 1 else f"{group[0]} ({number})")
                with suppress(UserError):
                    stack.enter_context(one_writer(folder))
                    break
            yield folder
            if not self.known.failed.keys() & set(group):
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def main(self) -> Path:
        """The file of all results."""
        return self._out / f"{self._scorer}.json"

    @property
    def _work(self) -> Path:
        return self._out / f"work-{self._scorer}"

    @property
    def _own(self) -> Path:
        alone = distributed.world_size() == 1
        return self.main if alone else self._out / f"{self._scorer}.part{distributed.rank()}.json"

    def _paths(self) -> list[Path]:
        parts = sorted(self._out.glob(f"{self._scorer}.part*.json"))
        return [self.main, *parts] if self.main.exists() else parts

    def _remove(self, paths: Iterable[Path]) -> None:
        """Remove files, and what no process works on any more."""
        for path in paths:
            path.unlink()
        for folder in self._work.glob("*/"):
            with suppress(UserError), one_writer(folder, patience=0):
                shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            self._work.rmdir()

    def _set_aside(self) -> Path:
        """Rename the files that are there, and forget what was begun."""
        for path in self._paths():
            path.replace(f"{path}.before")
        self._remove(())
        return Path(f"{self.main}.before")

    def _outdated(self, path: Path) -> str | None:
        """Why scores cannot be trusted any more though the settings are the same; None if they can, or are others."""
        try:
            found = Results.read(path)
        except UserError:  # raised when all processes read it
            return None
        sources, differing = self.known.sources, set(_differing(found.settings, self.known.settings))
        if not differing:
            return None
        if found.sources:
            if any(found.sources.get(what) != sources.get(what, "") for what in differing):
                return None
            changed = ", ".join(f"{what} ({sources[what]})" for what in sources if what in differing)
            return f"Images or labels have changed since {path} was written: {changed}."
        if str(self.known.settings["weights"]).startswith(f"{found.settings.get('weights')}, "):
            differing.discard("weights")
        if not differing <= sources.keys():
            return None
        return f"{path} is of an earlier version, which did not check the content of images and weights."

    def _read(self) -> None:
        for path in self._paths():
            self._join(path)

    def _join(self, path: Path) -> None:
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
    if differing := _differing(found, wanted):
        listed = ", ".join(f"{name} ({found.get(name)} before, {wanted.get(name)} now)" for name in differing)
        raise UserError(
            f"{path} holds results made with other settings: {listed}. "
            "Choose another --name to keep both, or replace them with --overwrite."
        )


def _differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    return [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]


def _write_csv(results: Results, path: Path) -> None:
    """A line a network: scores, ends of intervals where some network has some, and the number of bad images."""
    names = list(dict.fromkeys(name for of_network in results.scores.values() for name in of_network))
    bounded = {name for of_network in results.intervals.values() for name in of_network}
    bad = {f"bad_{what}": number for what, number in results.bad_images.items()}
    columns = [f"{name}{end}" for name in names for end in (("", "_low", "_high") if name in bounded else ("",))]
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["size", "width", "depth", *columns, *bad], lineterminator="\n")
        writer.writeheader()
        for network, scores in results.scores.items():
            size = size_of(network)
            named = {"width": size.width, "depth": "-".join(map(str, size.depths))} if size else {}
            ends = results.intervals.get(network, {})
            low = {f"{name}_low": pair[0] for name, pair in ends.items()}
            high = {f"{name}_high": pair[1] for name, pair in ends.items()}
            writer.writerow({"size": csv_cell(network), **named, **scores, **low, **high, **bad})
