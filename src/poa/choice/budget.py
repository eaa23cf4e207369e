"""The best size within limits. Pure functions of scores and measurements."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from poa.choice.measured import Measurement
from poa.config.choice import Limits
from poa.config.values import flag
from poa.errors import UserError, counted


@dataclass(frozen=True, slots=True)
class Candidate:
    """A size to choose from.

    Attributes:
        name: Of the size.
        score: In percent, or millions of parameters.
        measurement: What it takes.
        ends: Of the interval of the score, if it has one.
        is_estimate: Whether the score comes from those of other sizes.
    """

    name: str
    score: float
    measurement: Measurement
    ends: tuple[float, float] | None = None
    is_estimate: bool = False


class Quantity(NamedTuple):
    """What a limit is about."""

    of: Callable[[Measurement], float | None]
    unit: str
    least: str = "the smallest"
    """What the size with the least of it is called."""
    verb: str = "has"


QUANTITIES: Mapping[str, Quantity] = {
    "max_ms": Quantity(lambda each: each.ms, "ms", "the fastest", "takes"),
    "max_mb": Quantity(lambda each: each.file_bytes / 1e6, "MB"),
    "max_memory_mb": Quantity(
        lambda each: None if each.memory_bytes is None else each.memory_bytes / 1e6, "MB of memory"
    ),
    "max_gmacs": Quantity(lambda each: None if each.macs is None else each.macs / 1e9, "GMACs"),
    "max_million_parameters": Quantity(lambda each: each.parameters / 1e6, "million parameters"),
}
"""By the limit of ``Limits`` that bounds it."""


def keeps_to(measurement: Measurement, limits: Limits) -> bool:
    """Whether a network is within all limits but that of the score; what is not known is not."""
    for name, most in _bounds(limits).items():
        value = QUANTITIES[name].of(measurement)
        if value is None or value > most:
            return False
    return True


def best(candidates: Sequence[Candidate], limits: Limits) -> Candidate | None:
    """The candidate with the highest score within the limits, of equal ones the fastest; None if there is none.

    With ``min_score`` as the only limit, the fastest that reaches it.
    """
    allowed = [each for each in candidates if _is_allowed(each, limits)]
    if limits.min_score is not None and not _bounds(limits):
        return min(allowed, key=lambda each: (each.measurement.ms, -each.score), default=None)
    return min(allowed, key=lambda each: (-each.score, each.measurement.ms), default=None)


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other beats in score without being slower, the fastest first."""
    found: list[Candidate] = []
    for each in sorted(candidates, key=lambda each: (each.measurement.ms, -each.score)):
        if not found or each.score > found[-1].score:
            found.append(each)
    return found


def alike(chosen: Candidate, candidates: Sequence[Candidate], limits: Limits) -> list[Candidate]:
    """Others within the limits whose scores lie in the interval of the chosen one, the fastest first."""
    if chosen.ends is None:
        return []
    low, high = chosen.ends
    others = [
        each
        for each in candidates
        if each.name != chosen.name and low <= each.score <= high and _is_allowed(each, limits)
    ]
    return sorted(others, key=lambda each: each.measurement.ms)


def too_low(scored: Sequence[Candidate], limits: Limits, *, name: str) -> UserError:
    """The error of sizes within the other limits, none of which reaches the least score."""
    highest = max(scored, key=lambda each: each.score)
    others = bool(_bounds(limits))
    return UserError(
        f"No size of {name} reaches --min-score {limits.min_score:g}: the highest score"
        f"{' within the other limits' if others else ''} is {highest.score:.1f} %, of {highest.name}. Lower it"
        f"{', or raise another limit' if others else ''}."
    )


def unmet(measured: Mapping[str, Measurement], limits: Limits, *, name: str) -> UserError | None:
    """The error of sizes of which none is within the limits on what it takes, with the nearest; None if some is."""
    if any(keeps_to(each, limits) for each in measured.values()):
        return None
    for key, most in _bounds(limits).items():
        of, unit, least, verb = QUANTITIES[key]
        values = {network: value for network, each in measured.items() if (value := of(each)) is not None}
        if not values:
            return UserError(f"{unit} of the sizes of {name} are not known for this runtime. Leave out {flag([key])}.")
        nearest = min(values, key=values.__getitem__)
        if values[nearest] > most:
            return UserError(
                f"No size of {name} keeps to {flag([key])} {most:g}: {least}, {nearest}, {verb} {values[nearest]:.3g} "
                f"{unit}. Raise it."
            )
    given = " and ".join(f"{flag([key])} {most:g}" for key, most in _bounds(limits).items())
    return UserError(
        f"None of the {counted(len(measured), 'size')} of {name} keeps to {given} at the same time, though each alone "
        "is met. Raise one of them."
    )


def _is_allowed(candidate: Candidate, limits: Limits) -> bool:
    """Whether it is within all limits, that of the score included."""
    least = limits.min_score
    return keeps_to(candidate.measurement, limits) and (least is None or candidate.score >= least)


def _bounds(limits: Limits) -> dict[str, float]:
    """The limits on what a network takes, as far as they are given."""
    values = dict(limits)
    return {name: values[name] for name in QUANTITIES if values[name] is not None}
