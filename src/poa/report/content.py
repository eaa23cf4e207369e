"""What the page shows, as values; ``choice.js`` and the files after it read them under the same names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cost:
    """A cost of networks: parameters, operations, megabytes, milliseconds.

    Attributes:
        key: Its name in ``Point.costs``.
        heading: In tables and before fields, short.
        label: In the chart and the list of choices.
        unit: After numbers in sentences.
    """

    key: str
    heading: str
    label: str
    unit: str


@dataclass(frozen=True, slots=True)
class Score:
    """A score of networks in percent.

    Attributes:
        key: Its name in ``Point.scores`` and ``Point.intervals``, and in tables.
        label: In the chart and the list of choices.
    """

    key: str
    label: str


@dataclass(frozen=True, slots=True)
class Blocks:
    """Of a stage of the intact network all blocks, and the numbers of those that a size keeps."""

    all: int
    kept: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Command:
    """A command for a size: its name stands between the parts."""

    title: str
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Subject:
    """A run, a folder or a timm model, and what can be done with its networks."""

    name: str
    about: str
    commands: Sequence[Command]


@dataclass(frozen=True, slots=True)
class Point:
    """One network.

    Attributes:
        subject: Place of its subject.
        name: Of the size.
        depth: Blocks of its elastic stages; None for a network that is no size.
        intact: Whether the others are cut from it.
        costs: By the keys of costs, as far as they are known.
        scores: By the keys of scores, as far as there are some.
        intervals: Lower and upper ends.
        blocks: Of each stage; empty for a network that is no size of a run.
        card: Text of its model card; empty where the size is not extracted.
    """

    subject: int
    name: str
    depth: int | None
    intact: bool
    costs: Mapping[str, float]
    scores: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    blocks: Sequence[Blocks] = ()
    card: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """Values over steps."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Mark:
    """A value that means something, in words."""

    label: str
    value: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Lines in one small chart."""

    title: str
    lines: Sequence[Line]
    mark: Mark | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """A picture as ``data:`` address, and what it shows."""

    image: str
    caption: str


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures of one kind: how to read them, and what could not be drawn."""

    title: str
    text: str
    notes: Sequence[str]
    pictures: Sequence[Image]


@dataclass(frozen=True, slots=True)
class Content:
    """All of the page but its title.

    Attributes:
        notes: What to keep in mind when networks are compared.
    """

    costs: Sequence[Cost]
    scores: Sequence[Score]
    subjects: Sequence[Subject]
    points: Sequence[Point]
    notes: Sequence[str] = ()
    curves: Sequence[Curve] = ()
    pictures: Sequence[Pictures] = ()
