"""Measures without labels as a table for the terminal."""

from collections.abc import Mapping

from rich import box
from rich.table import Table
from rich.text import Text

LOWER_IS_BETTER = ("alignment", "uniformity")
"""Of all other measures higher values are better."""
_DECIMALS = {"rankme": 1}


def quality_table(measures: Mapping[str, Mapping[str, float]]) -> Table:
    """A row a network, the best value of each column in bold.

    Args:
        measures: By name of the network, then by name of the measure.
    """
    names = list(dict.fromkeys(name for of_network in measures.values() for name in of_network))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("size", no_wrap=True)
    for name in names:
        table.add_column(f"{name} ↓" if name in LOWER_IS_BETTER else name, justify="right", no_wrap=True)
    best = {
        name: (min if name in LOWER_IS_BETTER else max)(row[name] for row in measures.values() if name in row)
        for name in names
    }
    for network, row in measures.items():
        table.add_row(network, *(_cell(name, row.get(name), best[name]) for name in names))
    table.caption = "↓ lower is better"
    table.caption_justify = "left"
    return table


def _cell(name: str, value: float | None, best: float) -> Text:
    if value is None:
        return Text("-")
    return Text(f"{value:.{_DECIMALS.get(name, 3)}f}", style="bold green" if value == best else "")
