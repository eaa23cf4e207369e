"""``poa choose``: the best size of a run within limits, by scores and by times on this machine."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from rich.console import Console

from poa.choice.budget import Candidate, alike, best, keeps_to, too_low, unmet
from poa.choice.estimate import Estimates, estimate, spread
from poa.choice.measure import Network, known, measure, setup_of
from poa.choice.measured import Measurement, Setup
from poa.choice.scores import BY_SIZE, Known, Labelled, add_scores, by_parameters, check_score, known_scores, not_scored
from poa.config.choice import Limits, MeasureSettings
from poa.elastic.space import Size
from poa.errors import UserError, counted
from poa.models.source import ModelSource
from poa.text import plain_console

USUAL = MeasureSettings()
MOST_SCORED = 48
"""Sizes without scores that are all scored; of more only some are, and those that may be the best."""
SPREAD = 32
"""Sizes that are scored first where there are more."""
AT_ONCE, CHECKS = 8, 4
"""Promising sizes that are scored next, and how often."""


@dataclass(frozen=True)
class Choice:
    """The answer, and all that it was chosen from.

    Attributes:
        chosen: The best size within the limits.
        candidates: All sizes with a score, and those within the limits with an estimate of it, in their order.
        alike: Others within the limits whose scores are within the interval of the chosen one, the fastest first.
        promising: Sizes without a score that, by estimates, may be better than the chosen one.
        score: Name of the score, such as ``top1@20``.
        unit: Of the scores.
        setup: Of the measurements.
        estimates: Of sizes that are not scored; None where none are estimated.
        left_out: Sizes within the limits with neither.
    """

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    alike: tuple[Candidate, ...]
    promising: tuple[Candidate, ...]
    score: str
    unit: str
    setup: Setup
    estimates: Estimates | None = None
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        each = self.chosen
        half = "" if each.ends is None else f" ± {(each.ends[1] - each.ends[0]) / 2:.1f}"
        taken = f"{each.measurement.ms:.3g} ms, {each.measurement.file_bytes / 1e6:.3g} MB"
        return f"{each.name}: {each.score:.1f}{half} {self.unit}, {taken}{self._others()}."

    def _others(self) -> str:
        """What is said of sizes that may be as good."""
        faster = [each for each in self.alike if each.measurement.ms < self.chosen.measurement.ms]
        named, how = faster or self.alike, "faster" if faster else "slower"
        if not named:
            return ""
        rest = len(named) - 1
        more = f", as {'is' if rest == 1 else 'are'} {counted(rest, 'other')}" if rest else ""
        figures = f"{named[0].score:.1f} %, {named[0].measurement.ms:.3g} ms"
        return f"; {named[0].name} ({figures}) is within its interval and {how}{more}"

    def notes(self) -> list[str]:
        """What else to know, in sentences: which scores are estimates, and which sizes are missing."""
        found, scored = list[str](), sum(not each.is_estimate for each in self.candidates)
        if self.estimates is not None:
            found.append(
                f"{scored} of the {len(self.candidates)} sizes considered are scored. The scores of the others (~) are "
                f"estimated from these; {self.estimates.held_out} held-out sizes were estimated with an error of "
                f"{self.estimates.error:.1f} points (root mean square)."
            )
        if self.promising:
            first = self.promising[0]
            found.append(
                f"{first.name} is not scored and may be better: about {first.score:.1f} %, by estimate. Give --train "
                "and --test, and it is scored."
            )
        if self.left_out:
            found.append(f"{counted(len(self.left_out), 'size')} without a score could not be considered.")
        return found


def choose(
    source: ModelSource,
    limits: Limits,
    *,
    score: str = "knn",
    how: MeasureSettings = USUAL,
    images: Labelled | None = None,
    console: Console | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Choice:
    """Choose a size; measure those that are not measured on this machine, and score those that are not scored.

    Where many are not scored, some that are spread over the sizes within the limits are scored first, then those that
    may be better than the best so far, by estimates. An estimate alone is never the answer.

    Args:
        source: The sizes of a run.
        limits: What the size has to keep to.
        score: Name of the evaluation; ``parameters`` for the largest size within the limits, without labels.
        how: How sizes are measured.
        images: Images to score on; without, the scores on disk have to do.
        console: Where to show progress; standard error by default.
        clock: Gives seconds.

    Raises:
        UserError: No size keeps to the limits, none is scored, or the scores are not those of these weights.
    """
    console = console or plain_console(stderr=True)
    if source.family is None:
        raise UserError(f"{source.name} is a single network. Give the folder of a run, which has several sizes.")
    check_score(score, limits, images)
    if score != BY_SIZE and images is None and known_scores(source, score) is None:
        raise not_scored(source, score)
    measured = _measured(source, how, console, clock)
    if (error := unmet(measured, limits, name=source.name)) is not None:
        raise error
    if images is not None:
        _add_scores(source, limits, measured, score, images, console)
    found = by_parameters(measured) if score == BY_SIZE else known_scores(source, score)
    if found is None:
        raise not_scored(source, score)
    return _answer(source, limits, measured, found, setup_of(source, how))


def _answer(
    source: ModelSource, limits: Limits, measured: Mapping[str, Measurement], found: Known, setup: Setup
) -> Choice:
    """The choice by the scores that there are."""
    pool = _Pool.of(source, limits, measured, found)
    scored = [each for each in pool.scored if keeps_to(each.measurement, limits)]
    if not scored:
        raise UserError(
            f"No size of {source.name} within the limits is scored. Give labelled images with --train and --test, and "
            "some are."
        )
    chosen = best(scored, limits)
    if chosen is None:
        raise too_low(scored, limits, name=source.name)
    return Choice(
        chosen,
        pool.candidates,
        tuple(alike(chosen, pool.scored, limits)),
        tuple(pool.promising(limits)),
        found.name,
        found.unit,
        setup,
        pool.estimates,
        tuple(name for name in source.names if keeps_to(measured[name], limits) and name not in pool.names),
    )


def _measured(
    source: ModelSource, how: MeasureSettings, console: Console, clock: Callable[[], float]
) -> Mapping[str, Measurement]:
    """All sizes, measured together, now unless they were before."""
    there = known(source, how).networks
    if set(source.names) <= there.keys() and len({each.date for each in there.values()}) == 1:
        return there
    networks = [Network(source, name) for name in source.names]
    return dict(zip(source.names, measure(networks, how, console=console, clock=clock), strict=True))


def _add_scores(
    source: ModelSource,
    limits: Limits,
    measured: Mapping[str, Measurement],
    score: str,
    images: Labelled,
    console: Console,
) -> None:
    """Score the sizes within the limits: all, or of many some that are spread over them and those that may be best."""
    before = known_scores(source, score)
    within = [name for name in source.names if keeps_to(measured[name], limits)]
    lacking = [name for name in within if before is None or name not in before.scores]
    if len(lacking) <= MOST_SCORED:
        add_scores(source, score, within, images, console)
        return
    chosen = [str(size) for size in spread([Size.parse(name) for name in lacking], SPREAD)]
    for _ in range(CHECKS):
        add_scores(source, score, chosen, images, console)
        found = known_scores(source, score)
        chosen = (
            [] if found is None else [each.name for each in _Pool.of(source, limits, measured, found).promising(limits)]
        )
        if not chosen:
            return


@dataclass(frozen=True)
class _Pool:
    """All sizes with a score, and those within the limits with an estimate of it, in their order."""

    candidates: tuple[Candidate, ...]
    estimates: Estimates | None

    @classmethod
    def of(cls, source: ModelSource, limits: Limits, measured: Mapping[str, Measurement], found: Known) -> "_Pool":
        """By the scores that there are, and estimates of others within the limits where these are enough."""
        sizes = {name: Size.parse(name) for name in source.names}
        scores = {sizes[name]: found.scores[name] for name in source.names if name in found.scores}
        within = [size for name, size in sizes.items() if keeps_to(measured[name], limits)]
        estimates = estimate(scores, [size for size in within if size not in scores])
        joined = scores | (estimates.scores if estimates else {})
        candidates = (
            Candidate(name, joined[size], measured[name], found.intervals.get(name), is_estimate=size not in scores)
            for name, size in sizes.items()
            if size in joined
        )
        return cls(tuple(candidates), estimates)

    @property
    def names(self) -> set[str]:
        """Of all candidates."""
        return {each.name for each in self.candidates}

    @property
    def scored(self) -> list[Candidate]:
        """Those with a score."""
        return [each for each in self.candidates if not each.is_estimate]

    def promising(self, limits: Limits) -> list[Candidate]:
        """Sizes with an estimate that, raised by its error, makes them better than all that are scored."""
        if self.estimates is None:
            return []
        there, found = best(self.scored, limits), list[Candidate]()
        raised = [
            replace(each, score=each.score + self.estimates.error) for each in self.candidates if each.is_estimate
        ]
        while len(found) < AT_ONCE:
            top = best(raised, limits)
            if top is None or (there is not None and best([there, top], limits) is there):
                break
            raised.remove(top)
            found.append(next(each for each in self.candidates if each.name == top.name))
        return found
