"""Checks that the settings of all trainings share; each refusal names the flag."""

import math
from collections.abc import Iterable, Mapping
from typing import TypeVar

from poa.errors import UserError, nearest

T = TypeVar("T")


def check_counts(counts: Mapping[str, int]) -> None:
    """Check that numbers of things are at least 1.

    Args:
        counts: By name of the flag, without dashes before it.

    Raises:
        UserError: One is not.
    """
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"--{name} must be at least 1, got {count}.")


def check_positive(values: Mapping[str, int | float]) -> None:
    """Check that values are finite and above 0.

    Args:
        values: By name of the flag.

    Raises:
        UserError: One is not.
    """
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise UserError(f"--{name} must be above 0, got {value}.")


def check_not_negative(values: Mapping[str, int | float]) -> None:
    """Check that values are not below 0.

    Args:
        values: By name of the flag.

    Raises:
        UserError: One is, or is not a number.
    """
    for name, value in values.items():
        if not value >= 0:
            raise UserError(f"--{name} must not be below 0, got {value}.")


def check_shares(shares: Mapping[str, int | float], *, whole: Iterable[str] = ()) -> None:
    """Check that shares and probabilities lie between 0 and 1.

    Args:
        shares: By name of the flag.
        whole: Those that may be 1.

    Raises:
        UserError: One does not.
    """
    for name, value in shares.items():
        if not 0 <= value <= 1 or (value == 1 and name not in whole):
            raise UserError(f"--{name} lies between 0 and 1, got {value}.")


def check_layer_decay(layer_decay: float) -> None:
    """Check the factor from the learning rate of a layer to that of the one before it.

    Args:
        layer_decay: 1 for one learning rate.

    Raises:
        UserError: It is not above 0 and at most 1.
    """
    if not 0 < layer_decay <= 1:
        raise UserError(f"--layer-decay lies between 0 and 1, got {layer_decay}. Usual are 0.4 to 1.")


def preset_of(presets: Mapping[str, T], name: str) -> T:
    """Settings by name.

    Args:
        presets: To choose from.
        name: Such as ``small-data``.

    Raises:
        UserError: There are none of that name.
    """
    if name not in presets:
        raise UserError(f"There is no preset {name!r}. {nearest(name, presets, most=len(presets))}")
    return presets[name]
