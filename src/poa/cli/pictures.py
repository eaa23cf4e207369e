"""The command ``poa pictures``: what networks see, as PNG files and one page."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

# torch is imported when the command runs: `poa --help` and a mistyped flag shall not wait for it.

Switch = Annotated[bool, Parameter(negative=(), show_default=False)]
Names = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative=(), show_default=False)]
Kind = Literal["attention", "colours", "neighbours", "matches", "prototypes"]
Kinds = Annotated[tuple[Kind, ...], Parameter(consume_multiple=True, negative=(), show_default=False)]


def pictures(
    *model: str,
    images: str,
    out: Path,
    sizes: Names = (),
    kinds: Kinds = ("attention", "colours", "neighbours", "matches", "prototypes"),
    limit: int | None = None,
    show: int = 8,
    seed: int = 0,
    branch: Literal["teacher", "untrained", "initial"] = "teacher",
    image_size: int | None = None,
    workers: int = 0,
    overwrite: Switch = False,
) -> None:
    """Draw what networks see in your images, side by side: PNG files and a page, index.html.

    Such as: poa pictures runs/mine --images PHOTOS --sizes 192x12 384x12 --out pictures

    Args:
        model: Folders of runs; extracted sizes or other folders that timm loads; timm names. One or several.
        images: A folder of images, a list, an archive or digits; class folders give frames and names.
        out: Folder to write, new or empty.
        sizes: Of runs: `all`, or names such as 384x12; the smallest and the largest by default.
        kinds: Attention of the class token, features as colours, nearest images, matching patches, typical images of
            prototypes; all by default.
        limit: Images to look for neighbours and prototypes among; up to 1,000 by default.
        show: Images that are shown one by one.
        seed: Of the augmented views.
        branch: The trained teacher, untrained networks, or those cut out of the weights that the run began with.
        image_size: Side of the images in pixels; that which the network is made for by default. More show more patches.
        workers: Processes that decode images.
        overwrite: Replace earlier pictures in --out.
    """
    from poa.models.source import model_source
    from poa.pictures import draw

    page = draw.draw(
        [model_source(name, branch=branch, image_size=image_size) for name in model],
        images,
        out=out,
        sizes=sizes,
        kinds=kinds,
        limit=limit,
        show=show,
        seed=seed,
        workers=workers,
        overwrite=overwrite,
        console=Console(stderr=True),
    )
    Console(soft_wrap=True, highlight=False, markup=False).print(f"Page: {page}")
