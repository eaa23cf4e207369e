"""The model card (README.md) in the folder of a model: what a stranger needs to know, and how to load it.

Programs on it name the folder ``.``, so that they hold wherever the folder is copied to; no path of the machine is on
it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from poa.config.channels import USUAL
from poa.data.images import Preprocessing
from poa.files import whole_file
from poa.text import markdown_text, unicode_text

UNKNOWN = "unknown"
"""The hub's word for a licence that nobody has named."""
MOST_CLASSES, MOST_SCORES = 50, 6
"""Names of classes, and scores of one evaluation, that are on a card."""
CARD = "README.md"
_CARD = """---
library_name: timm
pipeline_tag: {task}
license: {licence}
tags: [{tags}]
---
# {name}

{summary}

## Use
Run these lines in the folder of this file, or write the path of the folder in the place of the dot.

{uses}

## Images
{images}

## Model
{model}

## Training
{training}

{scores}

## Licence
{rights}
"""
_NO_SCORES = "This network had not been scored when this file was written."
_IMAGES = """RGB. The shorter side is resized to {resize} pixels (bicubic, antialiased), and the middle {side} x {side}
pixels are cut out. Values are divided by 255; then the mean ({mean}) is subtracted, and the result is divided by the
standard deviation ({std}); these are given for red, green and blue."""


_VALUES = """Images with {number} channels, whose values keep all their bits. {low} becomes 0 and {high} becomes 1.
The shorter side is resized to {resize} pixels (bicubic, antialiased), and the middle {side} x {side} pixels are cut
out. Then the mean of each channel ({mean}) is subtracted, and the result is divided by the standard deviation
({std})."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of a network.

    Attributes:
        name: How it was scored, such as ``knn``.
        how: On which images and with which settings, in words.
        scores: In percent.
        intervals: Ends of the 95 % intervals over test images, of the scores that have one.
    """

    name: str
    how: str
    scores: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where weights come from. Names are as they are, paths are left out.

    Attributes:
        summary: In a few words, such as ``run mine, step 120``.
        facts: What they were trained on, how and how long: text by what it is about.
        inherited: Licences of the weights that the training began with or learned from, by their names; None where the
            licence is not known.
        evaluations: Scores so far.
        licence: Of the weights, by the identifiers of the Hugging Face hub.
    """

    summary: str
    facts: Mapping[str, str] = field(default_factory=dict)
    inherited: Mapping[str, str | None] = field(default_factory=dict)
    evaluations: Sequence[Evaluation] = ()
    licence: str = UNKNOWN


@dataclass(frozen=True, slots=True)
class Use:
    """A way to load a model.

    Attributes:
        title: Such as the name of a library.
        code: A Python program.
        before: What is said before it; Markdown.
    """

    title: str
    code: str
    before: str = ""


def model_card(
    *,
    task: str,
    name: str,
    summary: str,
    uses: Sequence[Use],
    preprocessing: Preprocessing,
    model: Mapping[str, str],
    origin: Origin,
    classes: Sequence[str] = (),
    further: str = "",
) -> str:
    """The text of a card, as the Hugging Face hub shows it.

    Args:
        task: One of the hub's.
        name: Of the model.
        summary: What it is, in Markdown.
        uses: How to load it.
        preprocessing: Of its images.
        model: Facts of the network, by what they are about.
        origin: Where the weights come from.
        classes: Their names, in the order of the outputs.
        further: More about images; Markdown.
    """
    named = {"classes": _classes(classes)} if classes else {}
    values = preprocessing.values
    low, high = values.range or (0, "the largest value of their type (floats: 1)")
    images = (_IMAGES if values == USUAL else _VALUES).format(
        number=values.number,
        low=low,
        high=high,
        resize=preprocessing.resize,
        side=preprocessing.image_size,
        mean=_numbers(preprocessing.mean),
        std=_numbers(preprocessing.std),
    )
    return _CARD.format(
        task=task,
        tags=", ".join([task, "timm", *(each.title for each in uses if each.title == "transformers")]),
        licence=_yaml(origin.licence),
        name=markdown_text(name),
        summary=summary,
        uses="\n\n".join(_use(each) for each in uses),
        images=f"{images}\n{further}".rstrip(),
        model=_table({**model, **named}),
        training=_table({**({"from": origin.summary} if origin.summary else {}), **origin.facts}),
        scores=_scores(origin.evaluations),
        rights="\n".join(_rights(origin)),
    )


def put_scores(folder: Path, evaluation: Evaluation) -> None:
    """Write scores on the card of a model, if it has one without any."""
    file = folder / CARD
    if not file.is_file():
        return
    text = file.read_text(encoding="utf-8")
    with whole_file(file) as temporary:
        temporary.write_text(text.replace(_scores(()), _scores([evaluation])), encoding="utf-8")


def _use(use: Use) -> str:
    before = f"{use.before}\n\n" if use.before else ""
    return f"### {use.title}\n{before}```python\n{use.code}\n```"


def _table(facts: Mapping[str, str]) -> str:
    lines = [f"| {markdown_text(what)} | {markdown_text(text)} |" for what, text in facts.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _classes(classes: Sequence[str]) -> str:
    """Their number and the first names."""
    rest = f" and {len(classes) - MOST_CLASSES:,} more, see config.json" if len(classes) > MOST_CLASSES else ""
    return f"{len(classes):,}: {', '.join(classes[:MOST_CLASSES])}{rest}"


def _scores(evaluations: Sequence[Evaluation]) -> str:
    said = "\n".join(map(_evaluation, evaluations)) or _NO_SCORES
    bounded = any(each.intervals for each in evaluations)
    return f"## Scores\n{said}" + ("\n\nIn brackets: 95 % intervals over test images." if bounded else "")


def _evaluation(evaluation: Evaluation) -> str:
    shown = list(evaluation.scores)[:MOST_SCORES]
    parts = [_score(name, evaluation.scores[name], evaluation.intervals.get(name)) for name in shown]
    hidden = len(evaluation.scores) - len(shown)
    more = f" and {hidden} more" if hidden else ""
    return f"- {markdown_text(evaluation.name)}, {markdown_text(evaluation.how)}: {', '.join(parts)}{more}"


def _score(name: str, value: float, ends: tuple[float, float] | None) -> str:
    bounds = "" if ends is None else f" ({ends[0]:.1f} to {ends[1]:.1f})"
    return f"{markdown_text(name)} {value:.1f} %{bounds}"


def _rights(origin: Origin) -> Iterator[str]:
    """What is known about licences."""
    if origin.licence == UNKNOWN:
        yield "No licence of these weights is named. Ask whoever gave them to you, or name yours as `license` above."
    else:
        yield f"These weights: {markdown_text(origin.licence)}."
    for name, licence in origin.inherited.items():
        known = "is not known here: look it up" if licence is None else f"is {markdown_text(licence)}"
        yield f"They derive from the weights of {markdown_text(name)}, whose licence {known}; its terms apply here too."


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _yaml(text: str) -> str:
    """A plain word as it is, any other text in quotes."""
    return text if re.fullmatch(r"[A-Za-z][\w.-]*", text) else "'" + unicode_text(text).replace("'", "''") + "'"
