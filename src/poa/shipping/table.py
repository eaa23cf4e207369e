"""The table of exported files."""

from rich.table import Table
from rich.text import Text

from poa.plots.tables import plain_table
from poa.shipping.export import Result
from poa.text import one_line


def table(result: Result) -> Table:
    """Files with their size, their difference to the network and their time."""
    found = plain_table()
    found.add_column("file", overflow="fold")
    has_scores = any(each.scores for each in result.files)
    headings = ["MB", "difference", "cosine", "ms", *(["score %"] if has_scores else [])]
    for heading in headings:
        found.add_column(heading, justify="right", no_wrap=True)
    for each in result.files:
        scores = "-" if each.scores is None else f"{each.scores[0]:.1f} > {each.scores[1]:.1f}"
        found.add_row(
            Text(one_line(each.file.name)),
            f"{each.num_bytes / 1e6:.2f}",
            f"{each.agreement.difference:.0e}",
            f"{each.agreement.cosine:.4f}",
            f"{each.milliseconds:.2f}",
            *([scores] if has_scores else []),
        )
    return found


def legend(result: Result) -> str:
    """What the columns are."""
    scores = "; score: network > file" if any(each.scores for each in result.files) else ""
    return (
        f"difference: the largest, as a share of the network's largest output, on images of {one_line(result.images)}; "
        f"ms: one image, one thread{scores}"
    )
