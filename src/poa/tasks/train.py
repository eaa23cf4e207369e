"""Models of tasks trained from Python, without test images: ``poa.finetune``, ``poa.segment`` and ``poa.detect``."""

from collections.abc import Callable, Mapping
from os import fspath
from pathlib import Path
from typing import Any

from poa.config.values import Settings
from poa.data.channels import require_rgb
from poa.evaluation.results import Results, results_file
from poa.evaluation.sweep import SweepOptions
from poa.models.source import model_source, trained_folder

_OF_SOURCE, _OF_TASK = ("branch", "image_size", "out", "checkpoint"), ("limit", "save_every")
_OF_SWEEP = ("sizes", "name", "workers", "overwrite", "max_bad_share")


def train_models(
    subject: str, task: Callable[..., Results], preset: Settings, given: Mapping[str, Any], **parts: Any
) -> dict[str, Path]:
    """Train the networks of a subject for a task of ``tasks.evaluate``.

    Args:
        subject: Folder of a run; a folder that timm loads; or a timm name.
        task: Such as ``finetune_networks``.
        preset: Settings of the task.
        given: Other values for them, and options of the source, the sweep and the task, by name.
        **parts: Images and what belongs to them, as the task takes them.

    Returns:
        The folder of each model, by the name of its network.
    """
    of_source, of_task, of_sweep = (
        {name: given[name] for name in names if name in given} for names in (_OF_SOURCE, _OF_TASK, _OF_SWEEP)
    )
    settings = preset.changed(**{name: given[name] for name in given.keys() - {*of_source, *of_task, *of_sweep}})
    out = of_source.pop("out", None)
    source = model_source(subject, **of_source, out=trained_folder(subject) if out is None else Path(fspath(out)))
    require_rgb(source.preprocessing.values, what="Training for a task", name=source.name)
    options = SweepOptions(**of_sweep)
    results = task(source, settings, **parts, **of_task, options=options)
    models = results_file(source, results.protocol, options.name).parent / "models"
    return {name: models / name for name in source.choose(options.sizes)}
