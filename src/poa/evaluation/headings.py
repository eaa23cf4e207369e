"""Headings of charts: method and data, not the folder in which they lie."""

from pathlib import Path

from poa.data.sources import Data
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
"""Methods of pre-training as published names; one from outside of this package has the name that --own gives."""


def data_name(data: Data) -> str:
    """Images by the last two parts of the path of each source, such as ``cifar10.zip/train``."""
    return one_line(" and ".join("/".join(Path(name).parts[-2:]) for name in names_of(data)))


def heading_of_run(run: Run) -> str:
    """Such as ``POA on digits/train``."""
    method = METHODS.get(run.config.method) or one_line(run.config.own)
    return f"{method} on {data_name(run.config.data)}"


def heading_of(source: ModelSource, test: Data) -> str:
    """For scores of a source on test images: ``POA on digits/train, scored on digits/test``."""
    folder = registry.folder_of(source.name)
    trained = heading_of_run(load(folder)) if is_run(folder) else one_line(source.names[0])
    branch = "" if source.branch == "teacher" else f", {source.branch}"
    return f"{trained}{branch}, scored on {data_name(test)}"
