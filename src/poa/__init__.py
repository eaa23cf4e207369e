"""Pre-train once on your own images, get every size of the model.

Example:
    ```python
    import poa

    run = poa.pretrain(data="images", out="runs/mine", recipe="vit-small-data", epochs=100)
    run = poa.load("runs/mine")
    run.sizes()
    run.extract("192x6", out="model")
    run.features(images, size="192x6")
    ```
"""

from os import PathLike
from typing import TYPE_CHECKING, Any

from poa.errors import UserError

if TYPE_CHECKING:
    from poa.evaluation.sweep import Scores
    from poa.run import Run

__all__ = ["UserError", "evaluate_knn", "load", "pretrain"]

# torch is imported by the functions that need it, so that the command line answers at once.


def pretrain(
    *, recipe: str | None = None, config: str | PathLike[str] | None = None, resume: bool = False, **given: Any
) -> "Run":
    """Pre-train an elastic network.

    Args:
        recipe: Start from a shipped recipe.
        config: Start from a YAML file of settings.
        resume: Go on with the run in ``out``, with its settings unless a recipe or file is named.
        **given: Settings by name, sections as dicts: ``data=..., out=..., epochs=10, model={"width_max": 512}``.

    Returns:
        The run.

    Raises:
        UserError: Something given is not as it must be.
    """
    from poa import launch
    from poa.settings import resolve

    plain = {name: str(value) if isinstance(value, PathLike) else value for name, value in given.items()}
    file = None if config is None else str(config)
    return launch.train(resolve(plain, recipe=recipe, file=file, resume=resume), resume=resume)


def load(folder: str | PathLike[str]) -> "Run":
    """Open a run, for its sizes, features and models.

    Args:
        folder: The ``out`` of a pre-training.

    Raises:
        UserError: The folder is not a run.
    """
    from poa.run import load as load_run

    return load_run(str(folder))


def evaluate_knn(run: "Run", *, train: str, test: str, **options: Any) -> "Scores":
    """Score sizes of a run by weighted k-NN; see ``poa.scoring.evaluate_knn`` for the options.

    Args:
        run: Whose sizes.
        train: Labelled images that vote.
        test: Labelled images that are classified.
        **options: Such as ``sizes``, ``branch``, ``ks``.
    """
    from poa import scoring

    return scoring.evaluate_knn(run, train=train, test=test, **options)
