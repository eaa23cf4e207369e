"""Tables of sizes and scores: on the terminal, as CSV or as JSON."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from poa.elastic.space import SearchSpace, Size
from poa.errors import UserError, nearest
from poa.files import whole_file
from poa.text import one_line, plain_console

LOWER_IS_BETTER = ("alignment", "uniformity")
"""For the measures of quality; of all others higher values are better."""
Value = str | int | float | bool | None
WIDTH = 80
"""Of a terminal, in characters; less is taken where it has less."""
_MOST_SCORES = 4  # of a network of many millions of parameters, that surely fit


@dataclass(frozen=True, slots=True)
class SizeRow:
    """One size, or another network.

    Attributes:
        flops: Floating-point operations for one image.
        weight: How often it stands in the sampling list; None if it is not trained as a sub-network.
        intact: Whether it is the largest, from which the others are cut.
        scores: In percent by name, such as ``top1@20``; empty if not scored.
        intervals: Lower and upper ends, of the scores that have them.
    """

    size: Size | str
    parameters: int
    flops: int | None = None
    weight: int | None = None
    intact: bool = False
    scores: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)

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
    """Rows as flat dictionaries with the same keys, for CSV and JSON."""
    names = score_names(rows)
    return [
        {
            "size": str(row.size),
            "width": row.width,
            "depth": "-".join(map(str, row.depths)) or None,
            "parameters": row.parameters,
            "flops": row.flops,
            "weight": row.weight,
            "intact": row.intact,
            **{name: row.scores.get(name) for name in names},
        }
        for row in rows
    ]


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
    bounded: Sequence[str] = (),
    title: str | None = None,
) -> Table:
    """Rows as a table, the best score of each column in bold; those of a width stand together.

    It shows ``scores``, by default up to four, top-1 before others (``fitting`` chooses those that leave the table at
    most 80 characters wide), and beside those that are ``bounded`` half the length of their intervals. UserError if a
    score was not measured.
    """
    shown = _shown_scores(rows, scores)
    best = {name: max(row.scores[name] for row in rows if name in row.scores) for name in shown}
    is_grouped = len({row.width for row in rows}) < len(rows)
    table = plain_table(title)
    table.add_column("size", no_wrap=True)
    for heading in ("params M", "GFLOPs", "weight", *shown):
        evaluation, _, score = heading.rpartition(" ") if heading in shown else ("", "", heading)
        table.add_column(f"{evaluation}\n{score}".strip(), justify="right", no_wrap=True)
    millions = [row.parameters / 1e6 for row in rows]
    billions = [None if row.flops is None else row.flops / 1e9 for row in rows]
    decimals = _decimals(millions), _decimals(billions)
    for number, row in enumerate(rows):
        table.add_row(
            Text(f"{row.size} *" if row.intact else one_line(str(row.size)), style="bold" if row.intact else ""),
            _number(millions[number], decimals[0]),
            _number(billions[number], decimals[1]),
            "-" if row.weight is None else str(row.weight),
            *(
                score_cell(row.scores.get(name), best[name], ends=row.intervals.get(name) if name in bounded else None)
                for name in shown
            ),
            end_section=is_grouped and number + 1 < len(rows) and rows[number + 1].width != row.width,
        )
    if any(row.intact for row in rows):
        table.caption = "* intact network, from which the others are cut"
        table.min_width = len(table.caption)  # a caption is wrapped to the width of its table
    return table


def fitting(rows: Sequence[SizeRow], scores: Sequence[str], *, bounded: Sequence[str] = ()) -> list[str]:
    """As many of the first scores as a terminal has room for beside the sizes; ``bounded`` as in ``size_table``."""
    console, room = plain_console(width=10 * WIDTH), min(WIDTH, plain_console().width)
    shown = list(scores)
    while shown and console.measure(size_table(rows, scores=shown, bounded=bounded)).maximum > room:
        shown.pop()
    return shown


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
