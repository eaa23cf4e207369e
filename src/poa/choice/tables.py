"""Tables of measurements, and of the sizes to choose from, as wide as the terminal allows."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import floor, log10
from types import MappingProxyType
from typing import NamedTuple

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from poa.choice.budget import Candidate
from poa.choice.measured import Measurement
from poa.plots.tables import WIDTH, plain_table, score_cell
from poa.text import one_line, plain_console

Column = Callable[[Measurement], float | None]
COLUMNS: Mapping[str, Column] = {
    "ms": lambda each: each.ms,
    "MB": lambda each: each.file_bytes / 1e6,
    "GMACs": lambda each: None if each.macs is None else each.macs / 1e9,
    "p95 ms": lambda each: each.ms_p95,
    "images/s": lambda each: each.images_per_second,
    "memory MB": lambda each: None if each.memory_bytes is None else each.memory_bytes / 1e6,
    "params M": lambda each: each.parameters / 1e6,
}
"""The most important first: where there is no room, the last are left out."""
UNITS = (
    "ms: of a batch, the median; p95: what 95 % of the passes stay below.",
    "MB: of the file; memory MB: the most that weights and intermediate results take at once.",
    "GMACs: multiply-adds for one image, as timm counts them; FLOPs are twice as many.",
)
"""What the columns mean."""
BUSY = 0.05
"""Share of interrupted passes that is told."""


class Row(NamedTuple):
    """One network of a table of measurements; the subject says whose it is where there are several."""

    subject: str
    name: str
    measurement: Measurement


def measurement_table(rows: Sequence[Row]) -> Table:
    """A row a network, by subject where there are several."""
    several = len({row.subject for row in rows}) > 1
    labels = [
        Text(one_line(row.name if not several or row.subject == row.name else f"{row.subject} {row.name}"))
        for row in rows
    ]
    return _fitting(labels, [row.measurement for row in rows])


def interrupted(measurements: Iterable[Measurement]) -> list[str]:
    """A sentence on a machine that was busy with other work, if it was."""
    every = list(measurements)
    share = sum(each.interrupted for each in every) / sum(each.passes for each in every)
    if share < BUSY:
        return []
    return [
        f"The machine was busy: other processes interrupted {share:.0%} of the passes, which count for p95 but not for "
        "the median."
    ]


def choice_table(candidates: Sequence[Candidate], chosen: Candidate, *, score: str) -> Table:
    """A row a size, the chosen one in bold and with a star; estimated scores begin with ~."""
    best = max((each.score for each in candidates if not each.is_estimate), default=None)
    labels = [
        Text(f"{each.name} *", style="bold") if each.name == chosen.name else Text(each.name) for each in candidates
    ]
    scores = [
        Text(f"~{each.score:.1f}", style="dim") if each.is_estimate else score_cell(each.score, best, ends=each.ends)
        for each in candidates
    ]
    return _fitting(labels, [each.measurement for each in candidates], further={score: scores})


def _fitting(
    labels: Sequence[Text],
    measurements: Sequence[Measurement],
    *,
    further: Mapping[str, Sequence[RenderableType]] = MappingProxyType({}),
) -> Table:
    """A table with as many columns as there is room for."""
    console, room = plain_console(width=10 * WIDTH), plain_console().width
    for number in range(len(COLUMNS), 0, -1):
        table = _table(labels, measurements, list(COLUMNS)[:number], further)
        if console.measure(table).maximum <= room:
            break
    return table


def _table(
    labels: Sequence[Text],
    measurements: Sequence[Measurement],
    columns: Sequence[str],
    further: Mapping[str, Sequence[RenderableType]],
) -> Table:
    table = plain_table()
    table.add_column("size", no_wrap=True)
    for heading in (*further, *columns):
        table.add_column(heading, justify="right", no_wrap=True)
    cells = [_numbers([COLUMNS[name](each) for each in measurements]) for name in columns]
    for row in zip(labels, *further.values(), *cells, strict=True):
        table.add_row(*row)
    return table


def _numbers(values: Sequence[float | None]) -> list[str]:
    """Values of a column with as many decimals as the smallest needs for two digits."""
    smallest = min((value for value in values if value), default=1.0)
    decimals = max(0, min(4, 1 - floor(log10(smallest))))
    return ["-" if value is None else f"{value:,.{decimals}f}" for value in values]
