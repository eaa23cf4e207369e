"""The function of the Python API that plans a run. Imports torch when it is called."""

from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poa.planning.run_plan import RunPlan


def plan(
    *,
    recipe: str | None = None,
    config: str | PathLike[str] | None = None,
    hours: float | None = None,
    steps: int | None = None,
    **given: Any,
) -> "RunPlan":
    """Plan a pre-training for images and machine, as ``poa plan`` does: ``poa.plan(data=..., out=...).train()``.

    Args:
        recipe: Plan only the length of a run of this recipe.
        config: Plan only the length of a run with the settings of this YAML file.
        hours: How long the run shall take.
        steps: How many steps the run shall have.
        **given: Settings by name, as in ``pretrain``; they are kept as given.

    Returns:
        The plan: ``config`` has all settings, ``decisions`` those that were chosen, with their reasons, ``forecast``
        speed, time, memory and disk, and ``train()`` trains so.

    Raises:
        UserError: An argument is not valid.
    """
    from poa.features.images import with_named
    from poa.planning.run_plan import make_plan

    file = None if config is None else fspath(config)
    return make_plan(with_named(given), recipe=recipe, file=file, hours=hours, steps=steps)
