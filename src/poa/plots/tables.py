"""Sizes as rows: what each costs, how often it is trained and how good it is; on the terminal, as CSV or as JSON."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from poa.elastic.space import SearchSpace, Size
from poa.errors import UserError, nearest
from poa.files import whole_file

Value = str | int | float | bool | None
WIDTH = 80
"""Of a terminal, in characters."""
_MOST_SCORES = 4  # of a network of many millions of parameters, that surely fit


@dataclass(frozen=True, slots=True)
class SizeRow:
    """One size, or another network.

    Attributes:
        size: Its name.
        parameters: Number of parameters.
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
    """Rows of all sizes of a search space, narrow and shallow ones first.

    Args:
        space: The sizes and their weights.
        costs: Parameters and FLOPs of every size.
        scores: Scores by name of the size, as in the file of a sweep; sizes may be missing.
        intervals: Of the scores, likewise.
    """
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
    """Write rows to a ``.csv`` or ``.json`` file, which is there whole or not at all.

    Raises:
        UserError: The name ends in something else.
    """
    formats = {".csv": to_csv, ".json": to_json}
    if out.suffix not in formats:
        raise UserError(f"A table is written as .csv or .json, got {out}. {nearest(out.suffix, formats)}")
    with whole_file(out) as temporary:
        temporary.write_text(formats[out.suffix](rows), encoding="utf-8")


def size_table(
    rows: Sequence[SizeRow],
    *,
    scores: Sequence[str] | None = None,
    bounded: Sequence[str] = (),
    title: str | None = None,
) -> Table:
    """Rows as a table for the terminal, the best score of each column in bold.

    Args:
        rows: Sizes, those of a width together.
        scores: Names of the scores to show; by default up to four, top-1 before others. ``fitting`` chooses those that
            leave the table at most 80 characters wide.
        bounded: Names of the scores to show with half the length of their intervals.
        title: Heading.

    Raises:
        UserError: A score was not measured.
    """
    shown = _shown_scores(rows, scores)
    best = {name: max(row.scores[name] for row in rows if name in row.scores) for name in shown}
    is_grouped = len({row.width for row in rows}) < len(rows)
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.title_justify = table.caption_justify = "left"
    table.add_column("size", no_wrap=True)
    for heading in ("params M", "GFLOPs", "weight", *shown):
        evaluation, _, score = heading.rpartition(" ") if heading in shown else ("", "", heading)
        table.add_column(f"{evaluation}\n{score}".strip(), justify="right", no_wrap=True)
    millions = [row.parameters / 1e6 for row in rows]
    billions = [None if row.flops is None else row.flops / 1e9 for row in rows]
    decimals = _decimals(millions), _decimals(billions)
    for number, row in enumerate(rows):
        table.add_row(
            _name(row),
            _number(millions[number], decimals[0]),
            _number(billions[number], decimals[1]),
            "-" if row.weight is None else str(row.weight),
            *(_score(row, name, best[name], is_bounded=name in bounded) for name in shown),
            end_section=is_grouped and number + 1 < len(rows) and rows[number + 1].width != row.width,
        )
    if any(row.intact for row in rows):
        table.caption = "* intact network, from which the others are cut"
        table.min_width = len(table.caption)  # a caption is wrapped to the width of its table
    return table


def fitting(rows: Sequence[SizeRow], scores: Sequence[str], *, bounded: Sequence[str] = ()) -> list[str]:
    """As many of the first scores as a terminal has room for beside the sizes.

    Args:
        rows: Sizes.
        scores: Names of scores.
        bounded: As in ``size_table``.
    """
    console = Console(width=10 * WIDTH)
    shown = list(scores)
    while shown and console.measure(size_table(rows, scores=shown, bounded=bounded)).maximum > WIDTH:
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


def _name(row: SizeRow) -> Text:
    return Text(f"{row.size} *" if row.intact else str(row.size), style="bold" if row.intact else "")


def _score(row: SizeRow, name: str, best: float, *, is_bounded: bool) -> Text:
    value = row.scores.get(name)
    text = _number(value, 1)
    if is_bounded and name in row.intervals:
        low, high = row.intervals[name]
        text = f"{text} ±{(high - low) / 2:.1f}"
    return Text(text, style="bold green" if value == best else "")
