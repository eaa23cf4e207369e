"""Pre-train once on your own images, get every size of the model.

Example:
    ```python
    import poa

    run = poa.pretrain(data="images", out="runs/mine", recipe="vit-96", epochs=100)
    run = poa.load("runs/mine")
    run.sizes()
    run.extract("96x4", out="model")
    run.features("photo.jpg", size="96x4")
    poa.evaluate("runs/mine", "linear", train="labelled/train", test="labelled/test")
    ```
"""

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poa.config.protocols import MAX_BAD_SHARE
from poa.errors import UserError

if TYPE_CHECKING:
    from poa.evaluation.results import Scores
    from poa.models.run import Run

__all__ = ["UserError", "evaluate", "evaluate_knn", "load", "pretrain"]

# torch is imported by the functions that need it, so that the command line answers at once.


def pretrain(
    *, recipe: str | None = None, config: str | PathLike[str] | None = None, resume: bool = False, **given: Any
) -> "Run":
    """Pre-train an elastic network.

    Args:
        recipe: Start from a shipped recipe.
        config: Start from a YAML file of settings.
        resume: Resume the run in ``out``, with its settings unless a recipe or file is named.
        **given: Settings by name, sections as dicts: ``data=..., out=..., epochs=10, model={"width_max": 512}``.

    Returns:
        The run.

    Raises:
        UserError: An argument is not valid.
    """
    from poa.config.resolve import resolve
    from poa.pretraining import launch

    settings = _without_paths(given)
    file = None if config is None else fspath(config)
    return launch.train(resolve(settings, recipe=recipe, file=file, resume=resume), resume=resume)


def _without_paths(value: Any) -> Any:
    """Settings with texts for paths."""
    if isinstance(value, Mapping):
        return {name: _without_paths(below) for name, below in value.items()}
    return fspath(value) if isinstance(value, PathLike) else value


def load(folder: str | PathLike[str]) -> "Run":
    """Open a run, for its sizes, features and models.

    Args:
        folder: The ``out`` of a pre-training.

    Raises:
        UserError: The folder is not a run.
    """
    from poa.models.run import load as load_run

    return load_run(fspath(folder))


def evaluate(
    subject: "Run | str | PathLike[str]",
    protocol: str = "knn",
    *,
    test: str | PathLike[str],
    train: str | PathLike[str] | None = None,
    sizes: str | Sequence[str] = "all",
    branch: str = "teacher",
    name: str | None = None,
    image_size: int | None = None,
    out: str | PathLike[str] | None = None,
    limit: int | None = None,
    workers: int = 0,
    overwrite: bool = False,
    max_bad_share: float = MAX_BAD_SHARE,
    **settings: Any,
) -> "Scores":
    """Evaluate networks on frozen features, as ``poa evaluate`` does.

    Args:
        subject: A run or its folder; a folder that timm loads; or a timm name.
        protocol: ``knn``, ``linear``, ``linear-switchable``, ``linear-slimmable``, ``probe``, ``few-shot``,
            ``cluster`` or ``retrieval``.
        test: Labelled images to test on.
        train: Labelled images to learn from; all but ``cluster`` need them.
        sizes: ``all``, or names of sizes.
        branch: ``teacher``; ``untrained``; or ``initial``, of a run that began with trained weights.
        name: Folder of the results in ``out``.
        image_size: Side of the images, in pixels.
        out: Folder of all results; ``eval`` in a run, else ``eval/NAME``.
        limit: Take only a class-balanced part of the training images.
        workers: Processes that decode images.
        overwrite: Forget results of that name.
        max_bad_share: Share of the images that may be left out as they cannot be read; 0.01 by default.
        **settings: Of the protocol, such as ``ks`` or ``per_class``; fields of its class in ``poa.evaluation``.

    Returns:
        Scores in percent by network and name.

    Raises:
        UserError: An argument is not valid.
    """
    from poa.evaluation import evaluate as scoring
    from poa.evaluation.sweep import SweepOptions
    from poa.models.source import model_source

    given = subject if isinstance(subject, str | PathLike) else subject.folder
    chosen = scoring.protocol_of(protocol, settings)
    source = model_source(str(given), branch=branch, image_size=image_size, out=None if out is None else Path(out))
    options = SweepOptions(sizes, name, workers, overwrite, max_bad_share=max_bad_share)
    parts = (None if train is None else fspath(train)), fspath(test)
    results = scoring.evaluate(source, chosen, train=parts[0], test=parts[1], limit=limit, options=options)
    return results.of(source.choose(sizes))


def evaluate_knn(
    run: "Run | str | PathLike[str]", *, train: str | PathLike[str], test: str | PathLike[str], **options: Any
) -> "Scores":
    """Evaluate sizes of a run by weighted k-NN: short for ``evaluate(run, "knn", ...)``.

    Args:
        run: Whose sizes, or its folder.
        train: Labelled images that vote.
        test: Labelled images that are classified.
        **options: Such as ``sizes``, ``branch``, ``ks``.
    """
    return evaluate(run, "knn", train=train, test=test, **options)
