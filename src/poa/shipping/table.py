"""The table of exported files."""

import math

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
    headings = ["MB", "differs", "cosine", "ms", *(["score", "loss"] if has_scores else [])]
    for heading in headings:
        found.add_column(heading, justify="right", no_wrap=True)
    for each in result.files:
        before, after = each.scores or (math.nan, math.nan)
        scores = [f"{after:.1f}", f"{before - after:+.1f}"] if each.scores else ["-", "-"]
        found.add_row(
            Text(one_line(each.file.name)),
            f"{each.num_bytes / 1e6:.2f}",
            f"{each.agreement.difference:.0e}",
            f"{each.agreement.cosine:.4f}",
            f"{each.milliseconds:.2f}",
            *(scores if has_scores else []),
        )
    return found


def legend(result: Result) -> str:
    """What the columns are."""
    scores = "; score: of the file in %, and loss to the network" if any(each.scores for each in result.files) else ""
    return (
        f"differs: largest difference to the network, as a share of its largest output, on images of "
        f"{one_line(result.images)}; ms: one image, one thread{scores}"
    )
