"""The function of the Python API that examines images. Imports torch when it is called."""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poa.errors import UserError

if TYPE_CHECKING:
    from poa.data.held import Named
    from poa.examination.findings import Findings
    from poa.models.run import Run


def doctor(
    data: "Named",
    *,
    out: str | PathLike[str] | None = None,
    write_list: str | PathLike[str] | None = None,
    model: "Run | str | PathLike[str] | None" = None,
    size: str | None = None,
    limit: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> "Findings":
    """Find what may be wrong with the images of a set, as ``poa doctor`` does. The images are only read.

    Args:
        data: A folder, a list of paths, an archive, ``digits``, or images as for ``pretrain``.
        out: Write the findings to this file: .html or .csv.
        write_list: Write the images to keep to this file, for ``data`` of other functions: .txt, .csv or .tsv.
        model: Find near-duplicates by features of this run, folder that timm loads or timm name, not by pixels.
        size: Which size of it.
        limit: Take only a class-balanced part of the images.
        workers: Processes that decode images; by default one for each core but one.
        overwrite: Replace files that are there.
        **settings: ``min_side``, ``max_ratio``, ``similarity``, ``drop``; fields of
            ``poa.config.examination.Examination``.

    Returns:
        What was found: ``rows`` has the numbers of the images by kind of finding, ``kept`` of those to keep, and
        ``channels()`` gives the mean and standard deviation of the channels.

    Raises:
        UserError: An argument is not valid.
    """
    from poa.config.examination import Examination
    from poa.examination.examine import Comparison, examine
    from poa.features.images import named
    from poa.models.source import located, model_source

    comparison = None
    if model is None and size is not None:
        raise UserError("size chooses a network of model. Give model too, or leave size out.")
    if model is not None:
        folder, step = located(model)
        comparison = Comparison(model_source(folder, checkpoint=step), size)
    return examine(
        named(data),
        Examination(**settings),
        out=None if out is None else Path(out),
        write_list=None if write_list is None else Path(write_list),
        comparison=comparison,
        limit=limit,
        workers=workers,
        overwrite=overwrite,
    )
