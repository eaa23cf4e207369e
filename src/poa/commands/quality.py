"""The command ``poa evaluate quality``: features judged without labels."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

if TYPE_CHECKING:
    from poa.subjects import Subject

# torch is imported when the command runs: `poa --help` and a mistyped flag shall not wait for it.

Switch = Annotated[bool, Parameter(negative=(), show_default=False)]
Names = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=())]


def quality(
    subject: str,
    /,
    *,
    data: str,
    sizes: Names = ("all",),
    k: int = 10,
    seed: int = 0,
    branch: Literal["teacher", "untrained", "initial"] = "teacher",
    name: str | None = None,
    image_size: int | None = None,
    out: Path | None = None,
    limit: int | None = None,
    workers: int = 0,
    overwrite: Switch = False,
) -> None:
    """Judge features without labels: RankMe, alignment, uniformity, neighbours, and CKA with the intact network.

    Args:
        subject: Folder of a run; an extracted size or another folder that timm loads; or a timm name.
        data: Images, labelled or not; some thousand say enough, see --limit.
        sizes: `all`, or names such as 384x12.
        k: Number of neighbours to compare.
        seed: Of the augmented views.
        branch: The trained teacher, untrained networks, or those cut out of the weights that the run began with.
        name: Folder of the results in --out; quality, with the branch, by default.
        image_size: Side of the images in pixels; that which the network is made for by default.
        out: Folder of all results; RUN/eval, or eval/NAME of another network, by default.
        limit: Take only so many images, evenly from all classes if there are some.
        workers: Processes that decode images.
        overwrite: Forget earlier results of that name.
    """
    from poa import label_free
    from poa.evaluation.sweep import NotScored
    from poa.subjects import subject_of

    networks = subject_of(subject, branch=branch, image_size=image_size, out=out)
    try:
        label_free.evaluate(
            networks,
            data,
            sizes=sizes,
            name=name,
            k=k,
            seed=seed,
            limit=limit,
            workers=workers,
            overwrite=overwrite,
            console=Console(stderr=True),
        )
    except NotScored:
        _show(networks, sizes, name)
        raise
    _show(networks, sizes, name)


def _show(subject: "Subject", sizes: tuple[str, ...], name: str | None) -> None:
    from poa import label_free
    from poa.report.quality import quality_table
    from poa.scoring import read_scores

    path = label_free.results_file(subject, name)
    measures, _, _ = read_scores(path)
    shown = {network: measures[network] for network in subject.choose(sizes) if network in measures}
    if shown:
        Console().print(quality_table(shown))
        Console(soft_wrap=True, highlight=False, markup=False).print(f"Measures: {path.with_suffix('.csv')}")
