"""Tables on the terminal, as wide as it is."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from poa.config.pretraining import Config
from poa.errors import counted
from poa.text import plain_console, tell

if TYPE_CHECKING:
    from rich.table import Table

    from poa.plots.tables import SizeRow


def show_sizes(rows: "Sequence[SizeRow]", scores: Sequence[str], *, notes: Sequence[str], all_in: Path | None) -> None:
    """Print a table of sizes with as many of the scores as there is room for, and what its signs and units mean.

    Where something is left out, a line says so, and which file (``all_in``) has it.
    """
    from poa.plots.tables import fitting, score_names, size_table

    console = plain_console()
    shown, hidden = fitting(rows, scores)
    console.print(size_table(rows, scores=shown, hidden=hidden))
    if any(name in row.intervals for row in rows for name in shown):
        tell(console, "±: half of the 95 % interval over test images")
    for line in notes:
        tell(console, line)
    number = len(score_names(rows)) - len(shown)
    left_out = [*([counted(number, "more score")] if number else []), *hidden]
    if left_out:
        where = "--out FILE.csv or FILE.json writes all" if all_in is None else f"see {all_in}"
        tell(console, f"{', '.join(left_out)}: {where}.")


def show_untrained(config: Config, *, out: Path | None) -> None:
    """Print the sizes of a run before it: without scores, and so without importing what makes them."""
    from poa.evaluation.cost import costs_of
    from poa.models.registry import family_of
    from poa.plots.tables import size_rows, write

    family = family_of(config)
    rows = size_rows(family.space, costs=costs_of(family, family.image_size))
    if out is not None:
        write(rows, out)
    show_sizes(rows, (), notes=(), all_in=out)


def show_table(table: "Table") -> None:
    """Print a table; where it is wider than the terminal, in parts, so that no number is cut."""
    from poa.plots.tables import in_parts

    console = plain_console()
    for part in in_parts(table, console.width):
        console.print(part)
