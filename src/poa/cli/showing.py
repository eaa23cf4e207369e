"""What the commands ``poa evaluate ...`` show when networks are scored, and when some of them could not be."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from poa.models.source import ModelSource
    from poa.plots.tables import SizeRow


@contextmanager
def then(show: Callable[[], None]) -> Iterator[None]:
    """Show what there is in the end; networks that could not be scored are told after that.

    Args:
        show: What shows the others.
    """
    from poa.evaluation.results import NotScored

    try:
        yield
    except NotScored:
        show()
        raise
    show()


def show_scores(
    source: "ModelSource", path: Path, *, headline: str, sizes: Sequence[str], further: Sequence[str] = ()
) -> "tuple[list[SizeRow], str]":
    """Print the table of the networks asked for, and where the files are.

    Args:
        source: Whose networks.
        path: JSON file of scores, beside which there is one of CSV.
        headline: Score with its interval, of which the table has room for one; the first score where it is missing.
        sizes: Networks asked for.
        further: Further lines.

    Returns:
        All networks with scores, those that were not asked for too, and the headline taken; no networks if none of
        those asked for has one.
    """
    from poa.evaluation import evaluate
    from poa.plots.tables import fitting, score_names, size_table

    scores, intervals, _ = evaluate.read_scores(path)
    rows = evaluate.scored_rows(source, scores, intervals=intervals)
    chosen = set(source.choose(sizes))
    shown = [row for row in rows if str(row.size) in chosen]
    if not shown:
        return [], headline
    names = sorted(score_names(shown), key=lambda name: not name.startswith("top1"))
    headline = headline if headline in names else names[0]
    columns = fitting(shown, names, bounded=[headline])
    Console().print(size_table(shown, scores=columns, bounded=[headline]))
    print_plain = Console(soft_wrap=True, highlight=False).print
    if any(headline in row.intervals for row in shown):
        print_plain("±: half of the 95 % interval over test images")
    for line in (f"Scores: {path.with_suffix('.csv')}", *further):
        print_plain(line)
    return rows, headline
