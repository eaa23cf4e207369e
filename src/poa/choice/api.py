"""The functions of the Python API that measure and choose. Imports torch when they are called."""

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poa.choice.choose import Choice
    from poa.choice.measured import Measurement
    from poa.data.held import Named
    from poa.models.run import Run
    from poa.models.source import ModelSource


def measure(
    subject: "Run | str | PathLike[str]",
    *,
    sizes: str | Sequence[str] = "all",
    image_size: int | None = None,
    **settings: Any,
) -> "dict[str, Measurement]":
    """Measure time, memory and file size of networks on this machine, as ``poa measure`` does.

    Args:
        subject: A run or its folder; a folder that timm loads; or a timm name.
        sizes: ``all``, or names of sizes.
        image_size: Side of the images, in pixels.
        **settings: ``device``, ``runtime``, ``threads``, ``batch``, ``seconds``; fields of
            ``poa.config.choice.MeasureSettings``.

    Returns:
        Measurements by network, which are also kept beside the scores.

    Raises:
        UserError: An argument is not valid.
    """
    from poa.choice.measure import measure_sources
    from poa.config.choice import MeasureSettings

    how = MeasureSettings(**settings)
    (found,) = measure_sources([_source(subject, image_size=image_size)], how, sizes=sizes)
    return dict(found.now)


def choose(
    run: "Run | str | PathLike[str]",
    *,
    score: str = "knn",
    train: "Named | None" = None,
    test: "Named | None" = None,
    limit: int | None = None,
    workers: int = 0,
    **settings: Any,
) -> "Choice":
    """Choose the size with the highest score within limits, as ``poa choose`` does.

    Args:
        run: Whose sizes, or its folder.
        score: Name of the evaluation; ``parameters`` for the largest size within the limits, without labels.
        train: Labelled images to learn from, to score sizes that have no score.
        test: Labelled images to test on.
        limit: Take only a class-balanced part of the training images.
        workers: Processes that decode images.
        **settings: Limits, such as ``max_ms`` or ``max_mb``, and how sizes are measured, such as ``threads``; fields of
            the classes in ``poa.config.choice``.

    Returns:
        The size, with all that it was chosen from; as text it is one sentence.

    Raises:
        UserError: An argument is not valid, no size keeps to the limits, or none is scored.
    """
    from poa.choice import choose as choosing
    from poa.choice.scores import labelled
    from poa.config.choice import Limits, MeasureSettings
    from poa.features.images import named

    limits = Limits(**{name: settings.pop(name) for name in list(settings) if name in Limits.model_fields})
    how = MeasureSettings(**settings)
    images = labelled(named(train), named(test), limit, workers)
    return choosing.choose(_source(run), limits, score=score, how=how, images=images)


def _source(subject: "Run | str | PathLike[str]", *, image_size: int | None = None) -> "ModelSource":
    """The networks that are meant."""
    from poa.models.source import located, model_source

    name, step = located(subject)
    return model_source(name, image_size=image_size, checkpoint=step)
