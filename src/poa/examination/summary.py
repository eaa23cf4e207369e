"""What was found, in words and numbers, for terminals and pages."""

from collections import Counter
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from poa.config.examination import Kind
from poa.data.sources import kinds_of
from poa.errors import counted
from poa.examination.findings import Findings
from poa.plots.tables import plain_table
from poa.text import one_line

MEANINGS: dict[Kind, str] = {
    "unreadable": "Empty, damaged, too large or of a kind that is not supported.",
    "truncated": "The file ends before the image does.",
    "duplicate": "The same file as an earlier one, byte for byte.",
    "near-duplicate": "Nearly the same as an earlier image, such as a resized or recompressed copy.",
    "constant": "All pixels have nearly the same colour.",
    "tiny": "The shorter side has fewer than {min_side} pixels.",
    "elongated": "The longer side is more than {max_ratio:g} times the shorter one.",
    "grey": "No colour: all channels are equal.",
    "other-mode": "Stored neither as RGB nor as grey of 8 bits, such as CMYK, a palette or 16 bits; read as RGB.",
}


_MOST_REASONS = 3


def findings_table(found: Findings) -> Table:
    """A row a kind of finding, with the first image of each."""
    table = plain_table()
    table.add_column("finding", no_wrap=True)
    table.add_column("images", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("such as", overflow="ellipsis", no_wrap=True)
    for kind, rows in found.rows.items():
        first = one_line(found.index.name(int(rows[0]))) if len(rows) else ""
        table.add_row(kind, f"{len(rows):,}", _share(len(rows), len(found.index)), Text(first))
    return table


def _share(number: int, total: int) -> str:
    if number == 0:
        return ""
    return "<0.1%" if number < total / 1000 else f"{number / total:.1%}"


def facts(found: Findings) -> dict[str, str]:
    """What is known of all images, by subject."""
    told: dict[str, str] = {}
    if sides := found.sides():
        told["width"] = "{:,} to {:,} pixels, median {:,}".format(*(sides[at][0] for at in (0, 2, 1)))
        told["height"] = "{:,} to {:,} pixels, median {:,}".format(*(sides[at][1] for at in (0, 2, 1)))
    modes = found.modes()
    told["modes"] = kinds_of(modes) if modes else "none, since no image can be read"
    if any(mode.startswith("I;16") for mode in modes):
        told["bits"] = "of 16 the highest 8 are examined, as a training without --channels sees images"
    if reasons := _reasons(found):
        told["cannot be read"] = reasons
    told["classes"] = _classes(found)
    if conflicts := found.in_two_classes():
        told["duplicates with another label"] = f"{conflicts:,}"
    told["left out"] = kinds_of(found.index.ignored) if found.index.ignored else "no other files"
    return told


def _reasons(found: Findings) -> str:
    """Why images cannot be read, the most common reasons first."""
    rows = (*found.rows["unreadable"].tolist(), *found.rows["truncated"].tolist())
    counts = Counter(found.scan.reasons.get(i, "") for i in rows)
    texts = [f"{one_line(reason)} ({counted(number, 'image')})" for reason, number in counts.most_common(_MOST_REASONS)]
    return "; ".join([*texts, *(["and others"] if len(counts) > _MOST_REASONS else [])])


def flags(found: Findings) -> str:
    """Mean and standard deviation of the channels, as flags of ``poa pretrain``."""
    if not found.modes():
        return ""
    mean, spread = found.channels()
    return f"--views.mean {_numbers(mean)} --views.std {_numbers(spread)}"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)


def _classes(found: Findings) -> str:
    counts = found.class_counts()
    if not counts:
        return "none: the images have no labels"
    bare = counts.pop("", 0)
    low, high = (choose(counts, key=lambda name: counts[name]) for choose in (min, max))
    text = counted(len(counts), "class")
    if counts[low] == counts[high]:
        text += f" of {counted(counts[low], 'image')}"
    else:
        text += f", from {counted(counts[low], 'image')} ({low}) to {counts[high]:,} ({high})"
    return f"{text}; {counted(bare, 'image')} without a label" if bare else text
