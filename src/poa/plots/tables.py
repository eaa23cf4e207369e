"""Tables of sizes and scores: on the terminal, as CSV or as JSON."""

import csv
import io
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from poa.elastic.space import SearchSpace, Size
from poa.errors import UserError, nearest
from poa.files import whole_file
from poa.text import one_line, plain_console, shortened

LOWER_IS_BETTER = ("alignment", "uniformity")
"""For the measures of quality; of all others higher values are better."""
Value = str | int | float | bool | None
WIDTH = 80
"""Of a terminal, in characters; less is taken where it has less."""
_MOST_SCORES = 4  # of a network of many millions of parameters, that surely fit
_SUBJECT = 16  # letters of its name
_HIDDEN_FIRST = ("weight", "MB", "GFLOPs", "params M", "ms")


@dataclass(frozen=True, slots=True)
class SizeRow:
    """One size, or another network.

    Attributes:
        flops: Floating-point operations for one image.
        weight: How often it stands in the sampling list; None if it is not trained as a sub-network.
        intact: Whether it is the largest, from which the others are cut.
        scores: In percent by name, such as ``top1@20``; empty if not scored.
        intervals: Lower and upper ends, of the scores that have them.
        megabytes: Of its file, in millions of bytes.
        milliseconds: That one batch takes where it was measured.
        subject: What it belongs to where several are shown: a run, or the network itself.
    """

    size: Size | str
    parameters: int
    flops: int | None = None
    weight: int | None = None
    intact: bool = False
    scores: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    megabytes: float | None = None
    milliseconds: float | None = None
    subject: str = ""

    @property
    def width(self) -> int | None:
        """Of a size."""
        return self.size.width if isinstance(self.size, Size) else None

    @property
    def depths(self) -> tuple[int, ...]:
        """Of a size."""
        return self.size.depths if isinstance(self.size, Size) else ()


def size_rows(
    space: SearchSpace,
    *,
    costs: Mapping[Size, tuple[int, int]],
    scores: Mapping[str, Mapping[str, float]] | None = None,
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> list[SizeRow]:
    """Rows of all sizes of a search space, narrow and shallow ones first; not all of them need scores."""
    weights = dict(zip(space.sizes, space.weights, strict=True))
    return [
        SizeRow(
            size,
            parameters=costs[size][0],
            flops=costs[size][1],
            weight=weights[size],
            intact=size == space.intact,
            scores=(scores or {}).get(str(size), {}),
            intervals=(intervals or {}).get(str(size), {}),
        )
        for size in sorted(space.sizes)
    ]


def score_names(rows: Sequence[SizeRow]) -> list[str]:
    """Names of all scores in the rows, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row.scores))


def records(rows: Sequence[SizeRow]) -> list[dict[str, Value]]:
    """Rows as flat dictionaries with the same keys, for CSV and JSON; what no row has is left out."""
    names = score_names(rows)
    bounded = {name for row in rows for name in row.intervals}
    optional = [name for name in ("subject", "megabytes", "milliseconds") if any(getattr(row, name) for row in rows)]
    return [
        {
            "size": str(row.size),
            "width": row.width,
            "depth": "-".join(map(str, row.depths)) or None,
            "parameters": row.parameters,
            "flops": row.flops,
            "weight": row.weight,
            "intact": row.intact,
            **{name: getattr(row, name) for name in optional},
            **{key: value for name in names for key, value in _with_ends(row, name, bounded=name in bounded)},
        }
        for row in rows
    ]


def _with_ends(row: SizeRow, name: str, *, bounded: bool) -> list[tuple[str, Value]]:
    low, high = row.intervals.get(name, (None, None))
    ends: list[tuple[str, Value]] = [(f"{name}_low", low), (f"{name}_high", high)] if bounded else []
    return [(name, row.scores.get(name)), *ends]


def to_csv(rows: Sequence[SizeRow]) -> str:
    """Rows as CSV text with a header; empty cells where there is no value."""
    lines = records(rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(lines[0]) if lines else ["size"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def to_json(rows: Sequence[SizeRow]) -> str:
    """Rows as a JSON list of objects; null where there is no value."""
    return json.dumps(records(rows), indent=1) + "\n"


def write(rows: Sequence[SizeRow], out: Path) -> None:
    """Write rows to a ``.csv`` or ``.json`` file; UserError if its name ends in something else."""
    formats = {".csv": to_csv, ".json": to_json}
    if out.suffix not in formats:
        raise UserError(f"A table is written as .csv or .json, got {out}. {nearest(out.suffix, formats)}")
    with whole_file(out) as temporary:
        temporary.write_text(formats[out.suffix](rows), encoding="utf-8")


def plain_table(title: str | None = None) -> Table:
    """A table without columns yet, in the one style of all tables."""
    table = Table(
        title=title and Text(one_line(title), style="table.title"),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    table.title_justify = table.caption_justify = "left"
    return table


@dataclass(frozen=True, slots=True)
class ScoreCell:
    """A score with half the length of its interval; ± is two letters wide where the console has ASCII alone."""

    score: str
    half: str
    style: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What is printed."""
        yield self._text(options)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """How wide that is."""
        return Measurement.get(console, options, self._text(options))

    def __str__(self) -> str:
        return f"{self.score} ±{self.half}" if self.half else self.score

    def _text(self, options: ConsoleOptions) -> Text:
        return Text(str(self).replace("±", "+-" if options.ascii_only else "±"), style=self.style)


def score_cell(
    value: float | None, best: float | None, *, ends: tuple[float, float] | None = None, decimals: int = 1
) -> ScoreCell:
    """A score, bold if it is the best, with half the length of its interval; a dash where there is none."""
    half = "" if value is None or ends is None else f"{(ends[1] - ends[0]) / 2:.1f}"
    return ScoreCell(_number(value, decimals), half, "bold green" if value is not None and value == best else "")


def score_table(
    scores: Mapping[str, Mapping[str, float]],
    columns: Mapping[str, str],
    *,
    lower_is_better: Sequence[str] = (),
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    decimals: Mapping[str, int] = MappingProxyType({}),
) -> Table:
    """A row a network, the best score in bold in each of the ``columns``, which give scores their headings.

    Some scores may be missing. They have one decimal where ``decimals`` gives no other number.
    """
    table = plain_table()
    table.add_column("size", no_wrap=True)
    best = {}
    for name, heading in columns.items():
        table.add_column(heading, justify="right", no_wrap=True)
        choose = min if name in lower_is_better else max
        best[name] = choose(row[name] for row in scores.values() if name in row)
    for network, row in scores.items():
        ends = (intervals or {}).get(network, {})
        cells = (
            score_cell(row.get(name), best[name], ends=ends.get(name), decimals=decimals.get(name, 1))
            for name in columns
        )
        table.add_row(Text(one_line(network)), *cells)
    return table


def quality_table(measures: Mapping[str, Mapping[str, float]]) -> Table:
    """Measures without labels, by name of the network and then of the measure."""
    names = list(dict.fromkeys(name for of_network in measures.values() for name in of_network))
    headings = {name: f"{name} ↓" if name in LOWER_IS_BETTER else name for name in names}
    decimals = {name: 3 for name in names if name != "rankme"}
    table = score_table(measures, headings, lower_is_better=LOWER_IS_BETTER, decimals=decimals)
    table.caption = "↓ lower is better"
    return table


def size_table(
    rows: Sequence[SizeRow],
    *,
    scores: Sequence[str] | None = None,
    hidden: Collection[str] = (),
    title: str | None = None,
) -> Table:
    """Rows as a table, scores with half the length of their intervals, the best of each in bold.

    Those of a subject stand together, and within it those of a width. The table shows ``scores``, by default up to
    four, top-1 before others, and other columns that some row has something for and that are not ``hidden``;
    ``fitting`` chooses both for a terminal. UserError if a score was not measured.
    """
    shown = _shown_scores(rows, scores)
    best = {name: max(row.scores[name] for row in rows if name in row.scores) for name in shown}
    facts = {heading: cells for heading, cells in _facts(rows).items() if heading not in hidden}
    several = any(row.subject for row in rows)
    table = plain_table(title)
    for heading in ("of", "size") if several else ("size",):
        table.add_column(heading, no_wrap=True)
    for heading in (*facts, *shown):
        evaluation, _, score = heading.rpartition(" ") if heading in shown else ("", "", heading)
        table.add_column(f"{evaluation}\n{score}".strip(), justify="right", no_wrap=True)
    widths = Counter((row.subject, row.width) for row in rows)
    grouped = {subject for (subject, _), number in widths.items() if number > 1}
    for number, row in enumerate(rows):
        before, after = (rows[place] if 0 <= place < len(rows) else None for place in (number - 1, number + 1))
        is_first = before is None or before.subject != row.subject
        is_new_width = row.subject in grouped and after is not None and after.width != row.width
        parted = after is not None and (after.subject != row.subject or is_new_width)
        table.add_row(
            *([Text(shortened(row.subject, _SUBJECT) if is_first else "")] if several else []),
            Text(_size_cell(row), style="bold" if row.intact else ""),
            *(cells[number] for cells in facts.values()),
            *(score_cell(row.scores.get(name), best[name], ends=row.intervals.get(name)) for name in shown),
            end_section=parted,
        )
    notes = {
        "* intact network, from which the others are cut": any(row.intact for row in rows),
        "weight: how often training draws a size": "weight" in facts,
    }
    if lines := [note for note, is_needed in notes.items() if is_needed]:
        table.caption = "\n".join(lines)
        table.min_width = min(max(map(len, lines)), plain_console().width)  # captions are wrapped to the table's width
    return table


def _size_cell(row: SizeRow) -> str:
    """A dash for a single network, whose name is that of the subject."""
    if str(row.size) == row.subject:
        return "-"
    return f"{row.size} *" if row.intact else one_line(str(row.size))


def _facts(rows: Sequence[SizeRow]) -> dict[str, list[str]]:
    """Cells by heading, of what some row has."""
    numbers: dict[str, list[float | None]] = {
        "params M": [row.parameters / 1e6 for row in rows],
        "GFLOPs": [None if row.flops is None else row.flops / 1e9 for row in rows],
        "MB": [row.megabytes for row in rows],
        "ms": [row.milliseconds for row in rows],
    }
    cells = {heading: [_number(x, _decimals(values)) for x in values] for heading, values in numbers.items()}
    cells["weight"] = ["-" if row.weight is None else str(row.weight) for row in rows]
    return {heading: column for heading, column in cells.items() if set(column) != {"-"}}


def fitting(rows: Sequence[SizeRow], scores: Sequence[str]) -> tuple[list[str], list[str]]:
    """What a terminal has room for beside the sizes: as many of the first scores, and if one is too much, less else.

    Returns:
        The scores to show, and the headings to hide, as in ``size_table``.
    """
    console, room = plain_console(width=10 * WIDTH), min(WIDTH, plain_console().width)
    shown, hidden = list(scores), list[str]()

    def is_wide() -> bool:
        table = size_table(rows, scores=shown, hidden=hidden)
        table.min_width = None
        return console.measure(table).maximum > room

    while len(shown) > 1 and is_wide():
        shown.pop()
    for heading in (heading for heading in _HIDDEN_FIRST if heading in _facts(rows)):
        if is_wide():
            hidden.append(heading)
    return shown, hidden


def in_parts(table: Table, room: int) -> list[Table]:
    """The table, or, if it is wider, several that have its first column and some of the others."""
    console = plain_console(width=100 * WIDTH)
    first, *others = table.columns
    parts: list[list[Column]] = [[]]
    for column in others:
        longer = [first, *parts[-1], column]
        if parts[-1] and console.measure(_of_columns(table, longer)).maximum > room:
            parts.append([])
        parts[-1].append(column)
    if len(parts) == 1:
        return [table]
    made = [_of_columns(table, [first, *part]) for part in parts]
    made[0].title, made[-1].caption = table.title, table.caption
    return made


def _of_columns(table: Table, columns: Sequence[Column]) -> Table:
    """A table of some columns of another, without its title and caption."""
    made = plain_table()
    for column in columns:
        made.add_column(column.header, justify=column.justify, no_wrap=column.no_wrap)
    for row, cells in zip(table.rows, zip(*(column.cells for column in columns), strict=True), strict=True):
        made.add_row(*cells, end_section=row.end_section)
    return made


def _shown_scores(rows: Sequence[SizeRow], wanted: Sequence[str] | None) -> list[str]:
    names = score_names(rows)
    unknown = [name for name in wanted or () if name not in names]
    if unknown:
        raise UserError(
            f"No size has a score {unknown[0]!r}. {nearest(unknown[0], names) if names else 'None is scored.'}"
        )
    if wanted is not None:
        return list(wanted)
    return sorted(names, key=lambda name: not name.startswith("top1"))[:_MOST_SCORES]


def _decimals(values: Sequence[float | None]) -> int:
    smallest = min((value for value in values if value is not None), default=1.0)
    return 1 if smallest >= 1 else 2 if smallest >= 0.1 else 3


def _number(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"
