"""Scores by the number of sizes that are wanted, and from which number one elastic run pays."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from poa.experiments.runs import TITLES, OverSeeds, seeds_cell
from poa.files import whole_file
from poa.plots.figure import legend, save, style
from poa.plots.tables import ScoreCell, plain_table, score_cell

NAME = "compare-num-sizes"
"""Of the files."""
WAYS = {"poa": "elastic run", "single": "alone", "seed": "SEED"}
MEAN = "mean"
"""In place of a size: the mean over sizes."""
_PROTOCOLS = {"knn": "k-NN", "linear": "linear"}
_STYLES = {"poa": ("#111111", "D"), "single": ("#4477aa", "o"), "seed": ("#cc6677", "s")}


class NumSizesResult(NamedTuple):
    """Scores of a size that was trained in one way, where so many sizes are wanted; fields as in the JSON file."""

    way: str
    """The method, such as ``poa``."""
    num_sizes: int
    size: str
    protocol: str
    values: tuple[float, ...]
    """In percent, one a seed."""
    compute: float
    """Operations to train all sizes that are wanted, divided by those of the elastic run."""


class NumSizesScore(NamedTuple):
    """The same over seeds, with what the elastic run is ahead by; fields as in the CSV file."""

    way: str
    num_sizes: int
    size: str
    """A size, or ``mean``."""
    protocol: str
    mean: float
    spread: float | None
    compute: float
    low: float | None
    high: float | None
    gain: float
    """Mean over seeds of the elastic run's score minus this one, of the same seed."""
    gain_low: float | None
    """Lower end of the 95 % interval of the gain over seeds."""
    gain_high: float | None


class BreakEven(NamedTuple):
    """The smallest number of sizes from which, up to the largest compared, the elastic run is ahead."""

    protocol: str
    way: str
    """What it is ahead of."""
    where: str
    """``mean`` over sizes, or ``every size``."""
    surely: bool
    """Whether the whole interval of the gain must be above zero."""
    num_sizes: int | None
    """None if it is not ahead at the largest number."""


@dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        results: Of all that was trained.
        shown: The smallest, the middle and the largest size.
    """

    results: Sequence[NumSizesResult]
    shown: Sequence[str]

    def scores(self) -> list[NumSizesScore]:
        """Of each size and of the mean over sizes, over seeds."""
        found = [*self.results, *self._means()]
        elastic = {(each.num_sizes, each.size, each.protocol): each.values for each in found if each.way == "poa"}
        return [_score(each, elastic[each.num_sizes, each.size, each.protocol]) for each in found]

    def _means(self) -> Iterable[NumSizesResult]:
        groups: dict[tuple[str, int, str], list[NumSizesResult]] = {}
        for each in self.results:
            groups.setdefault((each.way, each.num_sizes, each.protocol), []).append(each)
        for (way, number, protocol), group in groups.items():
            values = tuple(map(fmean, zip(*(each.values for each in group), strict=True)))
            yield NumSizesResult(way, number, MEAN, protocol, values, fmean(each.compute for each in group))

    def break_even(self) -> list[BreakEven]:
        """From how many sizes on the elastic run is ahead; surely only where there are several seeds."""
        scores = self.scores()
        several = all(each.gain_low is not None for each in scores)
        return [
            BreakEven(protocol, way, where, surely, _first_ahead(found, where, surely=surely))
            for protocol in TITLES
            for way in WAYS
            if way != "poa" and (found := [each for each in scores if (each.protocol, each.way) == (protocol, way)])
            for surely in ((False, True) if several else (False,))
            for where in ("every size", MEAN)
        ]

    def tables(self) -> list[Table]:
        """A table for each protocol, the best of each number of sizes in bold, and one of the break-even numbers."""
        scores = self.scores()
        return [
            *(
                _table([each for each in scores if each.protocol == name], title, self.shown)
                for name, title in TITLES.items()
            ),
            _break_even_table(self.break_even()),
        ]

    def write(self, folder: Path) -> None:
        """Write the files."""
        scores = self.scores()
        content = {
            "shown": list(self.shown),
            "break_even": [each._asdict() for each in self.break_even()],
            "results": [each._asdict() for each in self.results],
        }
        with whole_file(folder / f"{NAME}.json") as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        with whole_file(folder / f"{NAME}.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(NumSizesScore._fields)
            writer.writerows(scores)
        _plot(scores, self.shown, out=folder / f"{NAME}.png")


def _score(result: NumSizesResult, elastic: Sequence[float]) -> NumSizesScore:
    mean, spread, low, high = OverSeeds.of(result.values)
    gain, _, gain_low, gain_high = OverSeeds.of([ours - own for ours, own in zip(elastic, result.values, strict=True)])
    what = result.way, result.num_sizes, result.size, result.protocol
    return NumSizesScore(*what, mean, spread, result.compute, low, high, gain, gain_low, gain_high)


def _first_ahead(scores: Sequence[NumSizesScore], where: str, *, surely: bool) -> int | None:
    first = None
    for number in sorted({each.num_sizes for each in scores}, reverse=True):
        rows = [each for each in scores if each.num_sizes == number and (each.size == MEAN) == (where == MEAN)]
        bounds = [each.gain_low if surely else each.gain for each in rows]
        if not all(bound is not None and bound > 0 for bound in bounds):
            break
        first = number
    return first


def _table(scores: Sequence[NumSizesScore], title: str, shown: Sequence[str]) -> Table:
    table = plain_table(title)
    table.add_column("N", justify="right", no_wrap=True)
    table.add_column("training")
    for heading in ("compute", *shown, MEAN):
        table.add_column(heading, justify="right")
    numbers = sorted({each.num_sizes for each in scores})
    for number in numbers:
        here = {(each.way, each.size): each for each in scores if each.num_sizes == number}
        best = {size: max(each.mean for (_, of), each in here.items() if of == size) for _, size in here}
        ways = [way for way in WAYS if (way, MEAN) in here]
        for way in ways:
            cells = [_cell(here.get((way, size)), best) for size in (*shown, MEAN)]
            first = str(number) if way == ways[0] else ""
            table.add_row(first, WAYS[way], f"{here[way, MEAN].compute:.2f}", *cells, end_section=way == ways[-1])
    return table


def _cell(score: NumSizesScore | None, best: Mapping[str, float]) -> ScoreCell:
    return score_cell(None, None) if score is None else seeds_cell(score.mean, score.low, score.high, best[score.size])


def _break_even_table(found: Sequence[BreakEven]) -> Table:
    title = "Smallest N from which the elastic run is ahead"
    table = plain_table(title)
    table.min_width = len(title)
    table.add_column("of")
    columns = list(dict.fromkeys((each.where, each.surely) for each in found))
    for where, surely in columns:
        heading = "on the mean" if where == MEAN else "at every size"
        table.add_column(f"surely\n{heading}" if surely else heading, justify="right")
    for protocol, way in dict.fromkeys((each.protocol, each.way) for each in found):
        row = {
            (each.where, each.surely): each.num_sizes for each in found if (each.protocol, each.way) == (protocol, way)
        }
        table.add_row(f"{WAYS[way]}, {_PROTOCOLS[protocol]}", *(str(row[column] or "none") for column in columns))
    return table


def _plot(scores: Sequence[NumSizesScore], shown: Sequence[str], *, out: Path) -> None:
    """Scores against the number of sizes: a row of panels each protocol, a panel each size and one for the mean."""
    columns, numbers = (*shown, MEAN), sorted({each.num_sizes for each in scores})
    figure = Figure(figsize=(2.6 * len(columns) + 0.6, 5.6), layout="constrained")
    grid = figure.subplots(len(TITLES), len(columns), sharey="row", squeeze=False)
    for line, (protocol, title) in zip(grid, TITLES.items(), strict=True):
        x = "N, number of sizes" if protocol == list(TITLES)[-1] else ""
        for number, (axes, size) in enumerate(zip(line, columns, strict=True)):
            _panel(axes, [each for each in scores if (each.protocol, each.size) == (protocol, size)], numbers)
            style(axes, title="mean over sizes" if size == MEAN else size, x=x, y="" if number else title)
    handles, labels = grid[0][0].get_legend_handles_labels()
    legend(figure, columns=len(labels), handles=handles, labels=labels)
    save(figure, out)


def _panel(axes: Axes, scores: Sequence[NumSizesScore], numbers: Sequence[int]) -> None:
    for place, (way, name) in enumerate(WAYS.items()):
        row = sorted((each for each in scores if each.way == way), key=lambda each: each.num_sizes)
        colour, marker = _STYLES[way]
        axes.errorbar(
            [numbers.index(each.num_sizes) + 0.07 * (place - 1) for each in row],
            [each.mean for each in row],
            yerr=[0.0 if each.high is None else each.high - each.mean for each in row],
            color=colour,
            marker=marker,
            markersize=4,
            linewidth=1.2,
            elinewidth=1.0,
            capsize=2.5,
            label=name,
        )
    axes.set_xticks(range(len(numbers)), [str(number) for number in numbers])
    axes.set_xlim(-0.4, len(numbers) - 0.6)
