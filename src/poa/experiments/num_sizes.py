"""What N sizes cost: at equal total compute, N sizes of one elastic run, N trained alone, and N distilled."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from statistics import fmean

from rich.console import Console

from poa.config.pretraining import Config
from poa.elastic.space import Size
from poa.errors import UserError, counted
from poa.evaluation.cost import costs_of
from poa.experiments.break_even import NumSizesResult, Report
from poa.experiments.operations import Way
from poa.experiments.plan import BASELINES, Networks, Terms, Training
from poa.experiments.runs import (
    PROTOCOLS,
    Labelled,
    check_images,
    check_settings,
    score_all,
    train_all,
    wanted_of,
)
from poa.families.base import Family
from poa.models.registry import family_of

USUAL = (1, 3, 6, 12)
"""Numbers of sizes, as far as the search space has so many."""
SHOWN = 3
"""The smallest, the middle and the largest size are trained at every number of sizes that includes them."""


@dataclass(frozen=True)
class Share:
    """Sizes trained in one way with the whole compute, where so many are wanted.

    Attributes:
        way: The method, such as ``poa``.
        num_sizes: How many sizes are wanted.
        seed: Of the trainings.
        runs: The folders of those sizes that are trained and scored, not always all that are wanted.
        compute: Operations to train all that are wanted, divided by those of the elastic run.
    """

    way: Way
    num_sizes: int
    seed: int
    runs: Mapping[Size, Path]
    compute: float


@dataclass(frozen=True)
class NumSizesPlan:
    """All trainings by folder, teachers before their students, and what is compared."""

    trainings: Mapping[Path, Training]
    shares: tuple[Share, ...]
    shown: tuple[Size, ...]
    """The smallest, the middle and the largest size."""


def planned(
    config: Config, *, numbers: Sequence[int], all_sizes: bool, seeds: Sequence[int], labelled: Labelled
) -> NumSizesPlan:
    """What to train, once everything is checked that can be before hours are spent.

    Args:
        config: Settings of the elastic run; ``out`` is the folder of all runs.
        numbers: Numbers of sizes; if there are none 1, 3, 6 and 12, as far as the search space has so many.
        all_sizes: Train each of N sizes alone and distilled, not only the smallest, the middle and the largest.
        seeds: One elastic run and its baselines for each.
        labelled: On what to score.
    """
    check_settings(config, seeds)
    chosen = _numbers(numbers, len(family_of(config).space.sizes))
    num_images = check_images(config, labelled)
    return plan_num_sizes(config, numbers=chosen, all_sizes=all_sizes, seeds=seeds, num_images=num_images)


def compare_num_sizes(made: NumSizesPlan, labelled: Labelled, out: Path, *, console: Console) -> Report:
    """Train and score what is missing, and write ``compare-num-sizes.json``, ``.csv`` and ``.png``."""
    train_all(made.trainings, console)
    scored = score_all(wanted_of([share.runs for share in made.shares]), labelled, console)
    report = Report(_results(made, scored), [str(size) for size in made.shown])
    report.write(out)
    return report


def _numbers(given: Sequence[int], most: int) -> list[int]:
    chosen = sorted(set(given)) or [number for number in USUAL if number <= most]
    for number in chosen:
        if not 1 <= number <= most:
            raise UserError(
                f"--num-sizes takes numbers from 1 to {most}, since the search space has {counted(most, 'size')}, got "
                f"{number}."
            )
    return chosen


def plan_num_sizes(
    config: Config, *, numbers: Sequence[int], all_sizes: bool, seeds: Sequence[int], num_images: int
) -> NumSizesPlan:
    """What to train. The networks of each number of sizes take the compute of the elastic run altogether.

    They are all trained for the same number of epochs, the teacher of distilled ones included. A single size is wanted
    for itself: the smallest, the middle and the largest are three cases of one size.
    """
    ordered = spread(family_of(config), max(SHOWN, *numbers))
    terms = Terms.of(config, ordered, num_images=num_images)
    trainings: dict[Path, Training] = {}
    shares: list[Share] = []

    def add(way: Way, number: int, of_seed: Terms, made: Networks, compute: float) -> None:
        trainings.update(made.trainings)
        shares.append(Share(way, number, of_seed.config.seed, made.runs, compute))

    for of_seed in map(terms.with_seed, seeds):
        for number in numbers:
            wanted = ordered[:SHOWN] if number == 1 else ordered[:number]
            trained = sorted(wanted if all_sizes else wanted[:SHOWN])
            add("poa", number, of_seed, of_seed.elastic(trained), 1.0)
        for way in BASELINES:
            for number in numbers:
                for sizes in _cases(ordered, number):
                    epochs = terms.equal_epochs(way, sizes)
                    trained = sorted(sizes if all_sizes else sizes[:SHOWN])
                    add(way, number, of_seed, of_seed.networks(way, trained, epochs), terms.share(way, sizes, epochs))
    return NumSizesPlan(trainings, tuple(shares), tuple(sorted(ordered[:SHOWN])))


def _cases(ordered: Sequence[Size], number: int) -> list[Sequence[Size]]:
    """The sizes of which so many are wanted."""
    return [(size,) for size in ordered[:SHOWN]] if number == 1 else [ordered[:number]]


def spread(family: Family, most: int) -> list[Size]:
    """So many sizes in such an order that the first N, for any N, are spread over the search space.

    The smallest and the largest come first, then always the size whose cost is farthest from those of all before it, in
    proportion. So the third is the middle, and N sizes are among any larger number of sizes.
    """
    space = family.space
    found = costs_of(family, family.image_size)
    place = {size: log(found[size].flops) for size in sorted(space.sizes)}
    ordered = list(dict.fromkeys((min(place, key=lambda size: place[size]), space.intact)))
    while len(ordered) < min(most, len(place)):
        left = [size for size in place if size not in ordered]
        ordered.append(max(left, key=lambda size: min(abs(place[size] - place[other]) for other in ordered)))
    return ordered


def _results(made: NumSizesPlan, scored: Mapping[tuple[Path, str], Mapping[str, float]]) -> list[NumSizesResult]:
    groups: dict[tuple[Way, int], list[Share]] = {}
    for share in made.shares:
        groups.setdefault((share.way, share.num_sizes), []).append(share)
    return [
        NumSizesResult(
            way,
            number,
            str(size),
            protocol.name,
            tuple(scored[share.runs[size], protocol.name][str(size)] for share in group if size in share.runs),
            fmean(share.compute for share in group if size in share.runs),
        )
        for (way, number), group in groups.items()
        for size in _sizes(group)
        for _, protocol in PROTOCOLS
    ]


def _sizes(shares: Collection[Share]) -> list[Size]:
    return sorted({size for share in shares for size in share.runs})
