"""Runs, extracted sizes and timm models beside one another, with all that is known of their networks."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from poa.choice.measured import Measured, Setup, load
from poa.config.values import Step
from poa.errors import UserError
from poa.evaluation.headings import heading_of_run
from poa.evaluation.rows import network_rows, run_rows
from poa.models import registry
from poa.models.run import Run, is_run
from poa.models.run import load as load_run
from poa.models.source import ModelSource, located, model_source, run_source
from poa.plots.tables import SizeRow


@dataclass(frozen=True)
class Subject:
    """A run, an extracted size or a timm model.

    Attributes:
        source: Its networks.
        name: That no other subject has; short.
        heading: Method and data, or the name.
        rows: One for each network, with costs and scores.
        measured: Times; those on this machine first.
        run: The run, if it is one.
    """

    source: ModelSource
    name: str
    heading: str
    rows: Sequence[SizeRow]
    measured: Sequence[Measured]
    run: Run | None = None


@dataclass(frozen=True)
class Overview:
    """What one table or chart shows of one or several subjects.

    Attributes:
        rows: Those of all subjects, which they name if there are several.
        notes: What the columns mean, such as where milliseconds were measured.
        heading: Method and data of all.
    """

    rows: Sequence[SizeRow]
    notes: Sequence[str]
    heading: str


def overview(given: Sequence[Run | str | PathLike[str]], *, checkpoint: Step | None = None) -> Overview:
    """What one table or chart shows of runs, folders that timm loads, and timm models.

    Raises:
        UserError: As :func:`opened` says.
    """
    found = opened(given, checkpoint=checkpoint, branch="untrained")
    setup = common_setup([each.measured for each in found])
    rows = [
        replace(row, subject=each.name if len(found) > 1 else "")
        for each in found
        for row in _with_measurements(each.rows, each.measured, setup)
    ]
    return Overview(rows, _notes(setup), "; ".join(dict.fromkeys(each.heading for each in found)))


def opened(
    given: Sequence[Run | str | PathLike[str]], *, checkpoint: Step | None = None, branch: str = "teacher"
) -> list[Subject]:
    """Runs, folders that timm loads, and timm models, each under a name that no other has.

    Args:
        given: Names of subjects, or runs.
        checkpoint: The step of the runs' checkpoint whose scores are known, or ``best``; by default that of a run given
            as such, else the newest.
        branch: Whose weights networks get; ``untrained`` reads and downloads none, but those of folders.

    Raises:
        UserError: There is no such network, one is named twice, or its scores are damaged.
    """
    places = [located(each) for each in given]
    names = [name for name, _ in places]
    if not names:
        raise UserError("No network is named. Give the folder of a run, an extracted size, or a timm name.")
    folders = Counter(registry.folder_of(name).resolve() for name in names)
    if twice := [name for name in names if folders[registry.folder_of(name).resolve()] > 1]:
        raise UserError(f"{twice[0]} is named twice. Name each run or network once.")
    return [
        _opened(name, label, step if checkpoint is None else checkpoint, branch)
        for (name, step), label in zip(places, labels(names), strict=True)
    ]


def measured_rows(source: ModelSource, rows: Sequence[SizeRow]) -> tuple[list[SizeRow], list[str]]:
    """Rows of a source with their milliseconds and MB, and what is to be said of these."""
    measured = load(source)
    setup = common_setup([measured])
    return _with_measurements(rows, measured, setup), _notes(setup)


def labels(names: Sequence[str]) -> list[str]:
    """A short name for each: as many of the last parts of the path as tell them apart."""
    parts = [Path(name).resolve().parts if registry.folder_of(name).is_dir() else (name,) for name in names]
    chosen = []
    for own in parts:
        number = 1
        while number < len(own) and sum(other[-number:] == own[-number:] for other in parts) > 1:
            number += 1
        chosen.append("/".join(own[-number:]))
    return chosen


def common_setup(measured: Sequence[Sequence[Measured]]) -> Setup | None:
    """Of the setups in which subjects were measured that which most of them share, and then most networks; the first.

    Milliseconds of different setups cannot be compared, so a table shows those of one.
    """
    subjects, networks = Counter[Setup](), Counter[Setup]()
    for of_subject in measured:
        subjects.update({each.setup for each in of_subject})
        for each in of_subject:
            networks[each.setup] += len(each.networks)
    return max(networks, key=lambda setup: (subjects[setup], networks[setup])) if networks else None


def _opened(name: str, label: str, checkpoint: Step | None, branch: str) -> Subject:
    folder = registry.folder_of(name)
    if is_run(folder):
        run = load_run(folder, checkpoint=checkpoint)
        source = run_source(run, branch=branch)
        return Subject(source, label, heading_of_run(run), run_rows(run), load(source), run)
    source = model_source(name, branch="teacher" if folder.is_dir() else branch, checkpoint=checkpoint)
    return Subject(source, label, label, network_rows(source), load(source))


def _with_measurements(rows: Sequence[SizeRow], measured: Sequence[Measured], setup: Setup | None) -> list[SizeRow]:
    known = {name: each for found in measured if found.setup == setup for name, each in found.networks.items()}
    return [
        replace(row, megabytes=each.file_bytes / 1e6, milliseconds=each.ms)
        if (each := known.get(str(row.size)))
        else row
        for row in rows
    ]


def _notes(setup: Setup | None) -> list[str]:
    return [] if setup is None else [f"ms: {setup}"]
