"""Errors that the user can fix: what was wrong, what was got, what is allowed, what to do next."""

import difflib
from collections.abc import Iterable

DISTRIBUTION = "poa-ssl"
"""The name of this package for pip; `poa` on PyPI is another project."""


class UserError(ValueError):
    """A mistake in the input. The command line prints its text alone, without a traceback."""


def reason(error: UserError | OSError) -> str:
    """What to tell the user, who can fix disks, permissions and connections as well."""
    if not isinstance(error, OSError):
        return str(error)
    return f"{error.filename or 'Reading or writing'}: {error.strerror or error}. Fix this and try again."


def first_line(error: Exception) -> str:
    """Kind and first line of an error of another library, or what a ``UserError`` says, to be quoted in brackets."""
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return text.splitlines()[0].rstrip(".: ")


def nearest(word: str, choices: Iterable[str], *, most: int = 12) -> str:
    """``Did you mean 'x'?``, or the first ``most`` of the choices where none is near the word."""
    known = list(choices)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {close[0]!r}?"
    rest = f" and {len(known) - most} more" if len(known) > most else ""
    return f"Choose from {', '.join(known[:most])}{rest}."


def counted(number: int, noun: str) -> str:
    """Number and noun: ``1 image``, ``1,352 images``, ``2 classes``, ``0 categories``."""
    if number == 1:
        return f"1 {noun}"
    ending = "es" if noun.endswith(("s", "tch", "nch")) else "s"
    return f"{number:,} {noun[:-1]}ies" if noun.endswith("y") else f"{number:,} {noun}{ending}"


def installing(extra: str) -> str:
    """How to install the packages of an extra of this distribution."""
    return f"Install it with: pip install '{DISTRIBUTION}[{extra}]'"


def lacking(what: str, package: str, *, extra: str) -> UserError:
    """The error of something asked for that needs a package which is not installed."""
    return UserError(f"{what} needs the package {package}, which is not installed. {installing(extra)}.")
