"""Headings of charts: method and data, not the folder in which they lie."""

from pathlib import Path

from poa.models import registry
from poa.models.run import Run, is_run, load
from poa.models.source import ModelSource
from poa.text import names_of, one_line

METHODS = {
    "poa": "POA",
    "single": "One size alone",
    "distill": "Distillation",
    "seed": "SEED",
    "slimclr-simclr": "SlimCLR (SimCLR)",
    "slimclr-mocov2": "SlimCLR (MoCo v2)",
    "slimclr-mocov3": "SlimCLR (MoCo v3)",
}
"""Methods of pre-training as published names."""


def data_name(path: str) -> str:
    """Images by the last two parts of their path, such as ``cifar10.zip/train``."""
    return one_line("/".join(Path(path).parts[-2:]))


def heading_of_run(run: Run) -> str:
    """Such as ``POA on digits/train``."""
    return f"{METHODS[run.config.method]} on {' and '.join(map(data_name, names_of(run.config.data)))}"


def heading_of(source: ModelSource, test: str) -> str:
    """For scores of a source on test images: ``POA on digits/train, scored on digits/test``."""
    folder = registry.folder_of(source.name)
    trained = heading_of_run(load(folder)) if is_run(folder) else one_line(source.names[0])
    branch = "" if source.branch == "teacher" else f", {source.branch}"
    return f"{trained}{branch}, scored on {data_name(test)}"
