"""A method from outside of this package, named by its module and class, so that a new process finds it again."""

from importlib import import_module

from poa.errors import UserError, first_line
from poa.methods.base import Method


def own_method(name: str) -> type[Method]:
    """The class that MODULE:CLASS names; Python has to find the module.

    Raises:
        UserError: There is no such module or class, or it is no ``Method``.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise UserError(f"--method own needs --own MODULE:CLASS, such as mine:Contrast, got {name!r}.")
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:  # whatever is wrong in the module
        raise UserError(
            f"--own {name} cannot be imported ({first_line(error)}). Fix it, or put its folder into PYTHONPATH."
        ) from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"--own {name} is no subclass of poa.methods.base.Method. CONTRIBUTING.md has an example.")
    return found
