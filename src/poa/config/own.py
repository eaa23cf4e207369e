"""What settings name outside of this package, by module and name, so that a new process finds it again."""

import re
from collections.abc import Callable
from importlib import import_module
from typing import Any

from poa.errors import UserError, first_line


def is_own(name: str) -> bool:
    """Whether a name is of the form MODULE:NAME."""
    return re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name) is not None


def own_class(name: str, *, flag: str, kind: type) -> Any:
    """The class that a flag names; Python has to find the module.

    Raises:
        UserError: There is no such module or class, or it is no ``kind``.
    """
    found = _imported(name, flag=flag)
    if not (isinstance(found, type) and issubclass(found, kind)):
        base = f"{kind.__module__}.{kind.__name__}"
        raise UserError(f"{flag} {name} is no subclass of {base}. CONTRIBUTING.md has an example.")
    if lacking := sorted(getattr(found, "__abstractmethods__", ())):
        raise UserError(f"{flag} {name} does not define {', '.join(lacking)}. CONTRIBUTING.md has an example.")
    return found


def own_function(name: str, *, flag: str) -> Callable[..., Any]:
    """The function that a flag names; Python has to find the module.

    Raises:
        UserError: There is no such module or function.
    """
    found = _imported(name, flag=flag)
    if not callable(found) or isinstance(found, type):
        raise UserError(f"{flag} {name} is no function. CONTRIBUTING.md has an example.")
    return found  # type: ignore[no-any-return]  # callable


def _imported(name: str, *, flag: str) -> Any:
    if not is_own(name):
        raise UserError(f"{flag} needs MODULE:NAME, such as mine:Contrast, got {name!r}.")
    module, _, attribute = name.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:  # whatever is wrong in the module
        raise UserError(
            f"{flag} {name} cannot be imported ({first_line(error)}). Fix it, or put its folder into PYTHONPATH."
        ) from error
