"""Errors that are the user's to mend: what was wrong, what was got, what is allowed, what to do."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in the input. The command line prints its text alone, without a traceback."""


def reason(error: UserError | OSError) -> str:
    """What to tell the user. Disks, permissions and connections are the user's to mend as well.

    Args:
        error: What happened.
    """
    if not isinstance(error, OSError):
        return str(error)
    return f"{error.filename or 'Reading or writing'}: {error.strerror or error}. Mend this and try again."


def nearest(word: str, choices: Iterable[str], *, most: int = 12) -> str:
    """Point from a wrong word to the right one.

    Args:
        word: What was given.
        choices: What would have been accepted.
        most: How many choices to list when none is near.

    Returns:
        ``"Did you mean 'x'?"``, or the choices where none is near.
    """
    known = list(choices)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {close[0]!r}?"
    rest = f" and {len(known) - most} more" if len(known) > most else ""
    return f"Choose from {', '.join(known[:most])}{rest}."
