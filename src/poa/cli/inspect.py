"""The commands ``poa embed``, ``pictures``, ``report`` and ``gradients``: what networks and trainings show."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from poa.cli.evaluate import SEVERAL, Model, Names, OptionalSources, Sources, Switch, say
from poa.config.values import Step
from poa.errors import counted
from poa.text import plain_console

# torch is imported when a command runs: `poa --help` and a mistyped flag shall not wait for it.

Branch = Literal["teacher", "untrained", "initial"]
Kind = Literal["attention", "colours", "neighbours", "matches", "prototypes"]
Kinds = Annotated[tuple[Kind, ...], SEVERAL, Parameter(show_default=False)]
_MOST_NAMED = 3


def embed(
    model: Model,
    /,
    *,
    data: Sources,
    out: Path,
    sizes: Names = (),
    patches: Switch = False,
    whiten: float | None = None,
    whitened_as: Path | None = None,
    branch: Branch = "teacher",
    image_size: int | None = None,
    checkpoint: Step | None = None,
    limit: int | None = None,
    workers: int = 0,
    overwrite: Switch = False,
) -> None:
    """Write the features of images from one or more sizes, for use in other programs.

    Example: poa embed runs/mine --data IMAGES --sizes 96x4 --out features.parquet

    Args:
        data: The images: a folder, a list of paths, an archive. Labels, if any, are written too.
        out: FILE.parquet, FILE.npy (with FILE.json) or FILE.safetensors; with several sizes, FILE-SIZE and the ending.
            Or a folder for one .npy file of each size.
        sizes: `all`, or names such as 96x4; required for a run with several sizes.
        patches: Also write one feature for each patch.
        whiten: Whiten features by those of these images, so that directions in which they vary little count as much as
            others. The number is added to each direction's variance, as a share of the mean: 0.1 suits. It helps
            networks that were trained long, and not those of minutes. How it was done is written beside them.
        whitened_as: Whiten them as those of other images were: the --out that --whiten was given with.
        branch: The trained teacher, untrained networks, or networks cut out of the weights that the run started from.
        image_size: Side of the images in pixels; by default the size that the network is made for.
        checkpoint: Step of the run's checkpoint to use, or `best`; the newest by default.
        limit: Use only so many images, balanced over classes.
        workers: Processes that decode images.
        overwrite: Replace existing files.
    """
    from poa.features import embed as embedding
    from poa.models.source import model_source

    written = embedding.embed(
        model_source(model, branch=branch, image_size=image_size, checkpoint=checkpoint),
        data,
        out=out,
        sizes=sizes,
        patches=patches,
        whiten=whiten,
        whitened_as=whitened_as,
        limit=limit,
        workers=workers,
        overwrite=overwrite,
        console=plain_console(stderr=True),
    )
    for name, path in written.paths.items():
        images, width = written.shape[name]
        say(f"{path}: {counted(images, 'image')}, {width} values each")
    say_bad(written.bad)


def say_bad(names: Sequence[str]) -> None:
    """Print which images could not be read, if any."""
    if names:
        more = f" and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else ""
        named = ", ".join(names[:_MOST_NAMED])
        say(f"Left out, since they could not be read: {counted(len(names), 'image')}: {named}{more}")


def pictures(
    *model: str,
    images: Sources,
    out: Path,
    sizes: Names = (),
    kinds: Kinds = ("attention", "colours", "neighbours", "matches", "prototypes"),
    limit: int | None = None,
    show: int = 8,
    seed: int = 0,
    branch: Branch = "teacher",
    image_size: int | None = None,
    checkpoint: Step | None = None,
    workers: int = 0,
    overwrite: Switch = False,
) -> None:
    """Draw what networks see in your images, side by side: PNG files and a page, index.html.

    Example: poa pictures runs/mine --images PHOTOS --sizes 96x4 128x6 --out pictures

    Args:
        model: Folders of runs; extracted sizes or other folders that timm loads; timm names. One or several.
        images: A folder of images, a list, an archive or digits; class folders give frames and names.
        out: Folder to write, new or empty.
        sizes: Sizes of runs: `all`, or names such as 96x4; the smallest and the largest by default.
        kinds: Attention of the class token, features as colours, nearest images, matching patches, typical images of
            prototypes; all by default.
        limit: Number of images that are searched for neighbours and images of prototypes; up to 1,000 by default.
        show: Number of images that are shown one by one.
        seed: Seed of the augmented views.
        branch: The trained teacher, untrained networks, or networks cut out of the weights that the run started from.
        image_size: Side of the images in pixels; by default the size that the network is made for. Larger images show
            more patches.
        checkpoint: Step of the checkpoint to use, of runs, or `best`; the newest by default.
        workers: Processes that decode images.
        overwrite: Replace earlier pictures in --out.
    """
    from poa.models.source import model_source
    from poa.pictures import draw

    drawn = draw.draw(
        [model_source(name, branch=branch, image_size=image_size, checkpoint=checkpoint) for name in model],
        images,
        out=out,
        sizes=sizes,
        kinds=kinds,
        limit=limit,
        show=show,
        seed=seed,
        workers=workers,
        overwrite=overwrite,
        console=plain_console(stderr=True),
    )
    say(f"Page: {drawn.page}")


def report(
    *model: str,
    out: Path | None = None,
    images: OptionalSources = None,
    sizes: Names = (),
    kinds: Kinds = ("attention", "colours", "neighbours", "matches", "prototypes"),
    limit: int | None = None,
    show: int = 8,
    checkpoint: Step | None = None,
) -> None:
    """Write one HTML file to explore all sizes of a run: scores and costs, a budget, training curves, pictures.

    Example: poa report runs/mine --images PHOTOS --sizes 96x4 128x6

    The file works offline and can be passed on. Scores and times are those that are there: `poa evaluate` and `poa
    measure` make them. Further models are shown beside the first.

    Args:
        model: Folders of runs; extracted sizes or other folders that timm loads; timm names. One or several.
        out: File to write, RUN/report.html by default.
        images: Also show what sizes see in these images, as `poa pictures` does.
        sizes: Sizes to show pictures of: `all`, or names such as 96x4; the smallest and the largest by default.
        kinds: Kinds of pictures; all by default.
        limit: Number of images that are searched for neighbours and images of prototypes; up to 1,000 by default.
        show: Number of images that are shown one by one.
        checkpoint: Step of the checkpoint to use, of runs, or `best`; the newest by default.
    """
    from poa.report.write import write_report

    page = write_report(
        model,
        out=out,
        images=images,
        sizes=sizes,
        kinds=kinds,
        limit=limit,
        show=show,
        checkpoint=checkpoint,
        console=plain_console(stderr=True),
    )
    say(f"Page: {page}")


def gradients(run: Path, /, *, out: Path | None = None) -> None:
    """Plot the gradient norms of each width over the steps of a run with --monitor.gradients-every.

    Example: poa gradients runs/mine

    Args:
        run: Folder of the run.
        out: PNG file to write; RUN/gradients.png by default.
    """
    from poa.models.run import load
    from poa.plots.gradients import gradient_plot
    from poa.training.metrics import read_metrics

    paths = load(run).paths
    picture = out or paths.folder / "gradients.png"
    gradient_plot(read_metrics(paths.metrics), out=picture)
    say(str(picture))
