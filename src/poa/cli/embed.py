"""The command ``poa embed``."""

from pathlib import Path
from typing import Literal

from rich.console import Console

from poa.cli.evaluate import Names, Switch

# torch is imported when the command runs: `poa --help` and a mistyped flag shall not wait for it.

_MOST_NAMED = 3


def embed(
    model: str,
    /,
    *,
    data: str,
    out: Path,
    sizes: Names = (),
    patches: Switch = False,
    branch: Literal["teacher", "untrained", "initial"] = "teacher",
    image_size: int | None = None,
    limit: int | None = None,
    workers: int = 0,
    overwrite: Switch = False,
) -> None:
    """Write the features of images from one or more sizes, for use in other programs.

    Such as: poa embed runs/mine --data IMAGES --sizes 96x4 --out features.parquet

    Args:
        model: Folder of a run; an extracted size or another folder that timm loads; or a timm name.
        data: The images: a folder, a list of paths, an archive. Labels are written too if there are some.
        out: FILE.parquet, FILE.npy (with FILE.json) or FILE.safetensors, the name of the size before the ending if
            there are several; or a folder, for a .npy file of each size.
        sizes: `all`, or names such as 384x12; needed for a run of several.
        patches: Also write one feature for each patch.
        branch: The trained teacher, untrained networks, or those cut out of the weights that the run began with.
        image_size: Side of the images in pixels; that which the network is made for by default.
        limit: Take only a class-balanced part of the images.
        workers: Processes that decode images.
        overwrite: Replace files that are there.
    """
    from poa.features import embed as embedding
    from poa.models.source import model_source

    written = embedding.embed(
        model_source(model, branch=branch, image_size=image_size),
        data,
        out=out,
        sizes=sizes,
        patches=patches,
        limit=limit,
        workers=workers,
        overwrite=overwrite,
        console=Console(stderr=True),
    )
    plain = Console(soft_wrap=True, highlight=False, markup=False)
    for name, path in written.paths.items():
        images, width = written.shape[name]
        plain.print(f"{path}: {images:,} images, {width} values each")
    if written.bad:
        more = f" and {len(written.bad) - _MOST_NAMED:,} more" if len(written.bad) > _MOST_NAMED else ""
        named = ", ".join(written.bad[:_MOST_NAMED])
        plain.print(f"{len(written.bad):,} images could not be read and are left out: {named}{more}")
