"""What the page shows of runs, folders and timm models: costs, scores, measurements, commands, model cards."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from poa.choice.measured import Setup
from poa.choice.subjects import Subject
from poa.elastic.plan import even_blocks
from poa.elastic.space import Size
from poa.errors import counted
from poa.evaluation.rows import FIRST, evaluations_of_network, evaluations_of_run, headline
from poa.models.source import ModelSource
from poa.plots.sizes import USUAL_SCORE, score_label
from poa.plots.tables import SizeRow, score_names
from poa.report import content
from poa.report.content import Blocks, Command, Content, Cost, Point, Score
from poa.text import one_line, python_literal, shell_word, unicode_text

PARAMETERS = Cost("parameters", "params M", "parameters in millions", "M parameters")
GMACS = Cost("gmacs", "GMACs", "GMACs for one image (half the FLOPs)", "GMACs")
MEGABYTES = Cost("mb", "MB", "MB of weights in fp32", "MB")
_HERE = "\ue000"
"""Stands for the name of the size in a command: a character that is nobody's."""
_OF_NETWORK = {"weights", "image_size", "resize", "mean", "std"}
"""Settings of results that say what is scored, not how."""


def content_of(subjects: Sequence[Subject]) -> Content:
    """All networks of all subjects as points."""
    networks = Counter[Setup]()
    for each in (each for subject in subjects for each in subject.measured):
        networks[_key(each.setup)] += len(each.networks)
    times = {f"ms {number}": setup for number, (setup, _) in enumerate(networks.most_common())}
    names = list(dict.fromkeys(name for subject in subjects for name in _scores_of(subject.rows)))
    files = [_file_bytes(each) for each in subjects]
    return Content(
        costs=[*_time_costs(times), PARAMETERS, GMACS, MEGABYTES],
        scores=[Score(name, score_label(name)) for name in names],
        subjects=[content.Subject(one_line(each.name), _about(each), commands(each)) for each in subjects],
        points=[
            _point(place, each, row, times, files[place]) for place, each in enumerate(subjects) for row in each.rows
        ],
        notes=[*_notes(times), *_unlike(subjects, names)],
    )


def _key(setup: Setup) -> Setup:
    """Networks for images of other sizes share a column of times: each has its own."""
    return replace(setup, image_size=0)


def _time_costs(times: Mapping[str, Setup]) -> list[Cost]:
    """Headings say in what the setups differ; the first is that with most networks, then the newest on this machine."""
    said = {key: _said(setup) for key, setup in times.items()}
    differ = [len(set(parts)) > 1 for parts in zip(*said.values(), strict=True)]
    costs = []
    for key, parts in said.items():
        heading = ", ".join(["ms", *(part for part, differs in zip(parts, differ, strict=True) if differs)])
        costs.append(Cost(key, heading, heading, "ms"))
    return costs


def _said(setup: Setup) -> tuple[str, ...]:
    threads, batch = counted(setup.threads, "thread"), f"batch {setup.batch}"
    return f"{setup.runtime} {setup.version}", one_line(setup.machine), threads, batch


def _notes(times: Mapping[str, Setup]) -> list[str]:
    """How the numbers were taken."""
    if not times:
        return ["Times are not measured yet: run `poa measure`, and write this page again."]
    costs = zip(_time_costs(times), times.values(), strict=True)
    return [f"{cost.heading}: median time of a batch, {', '.join(_said(setup))}." for cost, setup in costs]


def _unlike(subjects: Sequence[Subject], names: Sequence[str]) -> list[str]:
    """Which scores of the subjects cannot be compared."""
    notes, settings = [], {one_line(subject.name): _score_settings(subject) for subject in subjects}
    for name in names:
        known = {subject: dict(of_score[name]) for subject, of_score in settings.items() if name in of_score}
        first, *others = known
        if unlike := [other for other in others if known[other] != known[first]]:
            notes.append(
                f"{name}: that of {', '.join(unlike)} was taken on other images or with other settings than that of "
                f"{first}. They cannot be compared."
            )
    return notes


def _score_settings(subject: Subject) -> Mapping[str, Mapping[str, Any]]:
    """The images and settings of each score, by its name, without what is the network's own."""
    run, source = subject.run, subject.source
    evaluations = evaluations_of_network(source) if run is None else evaluations_of_run(run)
    return {
        f"{prefix}{name}": {key: value for key, value in results.settings.items() if key not in _OF_NETWORK}
        for prefix, results in evaluations
        for name in dict.fromkeys(name for scores in results.scores.values() for name in scores)
    }


def _scores_of(rows: Sequence[SizeRow]) -> list[str]:
    """Those to look at first, of which the chart of ``poa evaluate knn`` shows one; of untrained networks the last."""
    names = [*headline(rows), *score_names(rows)]
    fresh = FIRST[1:]
    return sorted(dict.fromkeys(names), key=lambda name: (name.partition(" ")[0] in fresh, name != USUAL_SCORE))


def _point(
    place: int, subject: Subject, row: SizeRow, times: Mapping[str, Setup], file_bytes: Mapping[str, int]
) -> Point:
    name = str(row.size)
    taken = {key: _ms(subject, setup, name) for key, setup in times.items()}
    costs = {
        **{key: value for key, value in taken.items() if value is not None},
        PARAMETERS.key: row.parameters / 1e6,
        **({} if row.flops is None else {GMACS.key: row.flops / 2e9}),
        MEGABYTES.key: file_bytes.get(name, 4 * row.parameters) / 1e6,
    }
    return Point(
        subject=place,
        name=one_line(name),
        depth=sum(row.depths) if row.depths else None,
        intact=row.intact,
        costs={key: float(f"{value:.5g}") for key, value in costs.items()},
        scores=dict(row.scores),
        intervals={key: pair for key, pair in row.intervals.items() if key in row.scores},
        blocks=_blocks(subject.source, row.size),
        card=_card(subject, name),
    )


def _ms(subject: Subject, setup: Setup, name: str) -> float | None:
    """Of a network in a setup, at the image size of its scores where it was measured at several."""
    own = subject.source.preprocessing.image_size
    found = [each for each in subject.measured if _key(each.setup) == setup and name in each.networks]
    best = max(found, key=lambda each: each.setup.image_size == own, default=None)
    return None if best is None else best.networks[name].ms


def _file_bytes(subject: Subject) -> dict[str, int]:
    """Of the files that `poa extract` writes, where they were measured of all networks, so that all are comparable."""
    names = {str(row.size) for row in subject.rows}
    whole = (each for each in subject.measured if each.setup.runtime == "torch" and names <= each.networks.keys())
    first = next(whole, None)
    return {} if first is None else {name: each.file_bytes for name, each in first.networks.items()}


def _blocks(source: ModelSource, size: Size | str) -> list[Blocks]:
    if source.family is None or not isinstance(size, Size):
        return []
    whole = source.family.stages(source.family.space.intact)
    return [
        Blocks(stage.blocks, even_blocks(stage.blocks, part.blocks))
        for stage, part in zip(whole, source.family.stages(size), strict=True)
    ]


def _card(subject: Subject, name: str) -> str:
    """Of an extracted size, or of the folder that the subject is; empty where there is none."""
    folder = Path(subject.source.name) if subject.run is None else subject.run.paths.models / name
    try:
        return unicode_text((folder / "README.md").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""


def _about(subject: Subject) -> str:
    """What the page says of a subject, in a sentence."""
    pixels, run = f"{subject.source.preprocessing.image_size} pixels", subject.run
    if run is None:
        return f"A timm model, {pixels}."
    return one_line(f"{subject.heading}: {run.config.model.name}, step {run.step:,}, {pixels}.")


def commands(subject: Subject) -> list[Command]:
    """What can be done with a network, as commands to copy."""
    given = subject.source.name
    word = shell_word(given)
    if subject.run is None:
        name = f"local-dir:{given}" if Path(given).is_dir() else given
        lines = {
            "Load it in Python": f"timm.create_model({python_literal(name)}, pretrained=True)",
            "Write as ONNX": f"poa export {word} --format onnx",
        }
    else:
        model = python_literal(f"local-dir:{subject.run.paths.models / _HERE}")
        step = "" if subject.run.asked_step is None else f" --checkpoint {subject.run.asked_step}"
        lines = {
            "Write as a timm model": f"poa extract {word} --size {_HERE}{step}",
            "Load it in Python": f"timm.create_model({model}, pretrained=True)",
            "Write as ONNX": f"poa export {word} --size {_HERE} --format onnx{step}",
            "Fine-tune it on your labels": f"poa finetune {word} --train LABELLED --sizes {_HERE}{step}",
            "Measure it": f"poa measure {word} --sizes {_HERE}",
            "See what it sees": f"poa pictures {word} --sizes {_HERE} --images IMAGES --out pictures{step}",
        }
    return [Command(title, tuple(line.split(_HERE))) for title, line in lines.items()]
