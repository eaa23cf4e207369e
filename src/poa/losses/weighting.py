"""How the losses of the widths of one network are weighed against one another (SlimCLR, arXiv 2209.15525, Sec. 3)."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from poa.errors import UserError, nearest


def _even(widths: Sequence[float]) -> list[float]:
    return [1.0] * len(widths)


def _share(widths: Sequence[float]) -> list[float]:
    return [round(width / sum(widths), 3) for width in widths]


def _width(widths: Sequence[float]) -> list[float]:
    return list(widths)


def _scaled_width(widths: Sequence[float]) -> list[float]:
    return [len(widths) * width / sum(widths) for width in widths]


def _full(widths: Sequence[float]) -> list[float]:
    return [1.0 + sum(widths[1:]), *_even(widths[1:])]


def _cumulative(widths: Sequence[float]) -> list[float]:
    raw = [1.0 + sum(widths[number + 1 :]) for number in range(len(widths))]
    return [len(raw) * weight / sum(raw) for weight in raw]


def _full_next(widths: Sequence[float]) -> list[float]:
    return [1.0 + sum(widths[1:2]), *_even(widths[1:])]


WEIGHTINGS: Mapping[str, Callable[[Sequence[float]], list[float]]] = {
    "even": _even,
    "share": _share,
    "width": _width,
    "scaled-width": _scaled_width,
    "full": _full,
    "cumulative": _cumulative,
    "full-next": _full_next,
}
"""The official code's options 0 to 3 and 5 to 7, in this order; option 4 is not defined there and comes to 0.

For widths w_1 > ... > w_n: ``even`` 1; ``share`` w_i / sum(w) to three decimals; ``width`` w_i; ``scaled-width``
n w_i / sum(w); ``full`` 1 + w_2 + ... + w_n for the full network and 1 for the others, as all published runs have it;
``cumulative`` 1 + w_{i+1} + ... + w_n, scaled so that all add up to n; ``full-next`` 1 + w_2 for the full network and
1 for the others.
"""


def width_weights(widths: Sequence[float], *, weighting: str = "full") -> tuple[float, ...]:
    """Weight of each width's loss.

    Args:
        widths: As shares of the full width, which comes first: descending from 1.
        weighting: One of ``WEIGHTINGS``.

    Raises:
        UserError: There is no such weighting, or the widths are not as said.
    """
    if weighting not in WEIGHTINGS:
        raise UserError(f"There is no weighting {weighting!r} of widths. {nearest(weighting, WEIGHTINGS)}")
    if not widths or widths[0] != 1.0 or any(not 0.0 < next_ < width for width, next_ in pairwise(widths)):
        raise UserError(
            f"Widths are shares of the full width that fall from 1, such as 1, 0.75, 0.5, 0.25; got "
            f"{', '.join(map(str, widths)) or 'none'}. Put the full width first and leave out what comes twice."
        )
    return tuple(WEIGHTINGS[weighting](widths))
