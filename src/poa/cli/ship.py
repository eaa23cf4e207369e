"""The command ``poa export``: networks to files that run elsewhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from poa.cli.evaluate import SEVERAL, Names, OptionalSources, Switch, say
from poa.config.values import Step
from poa.errors import UserError
from poa.text import plain_console

if TYPE_CHECKING:
    from poa.shipping.export import Result

# torch is imported when a command runs: `poa --help` and a mistyped flag shall not wait for it.

Formats = Annotated[tuple[Literal["onnx", "program", "openvino", "executorch"], ...], SEVERAL]
Precisions = Annotated[tuple[Literal["fp32", "fp16", "int8"], ...], SEVERAL]


@Parameter(name="*")
@dataclass(frozen=True)
class Checks:
    """How files are compared with networks.

    Attributes:
        images: Images to compare on; by default those of --calibrate or of the run.
        tolerance: Largest difference allowed, as a share of the largest output: 1e-5 for fp32 and 0.02 for fp16 by
            default. A file that differs more is not kept.
        train: Labelled images for the k-NN score of int8 files; not needed for classifiers.
        test: Labelled images to test int8 files on.
        limit: Use only so many of the --train and of the --test images, balanced over classes.
        max_loss: An int8 file that loses more points of score is not kept.
    """

    images: OptionalSources = None
    tolerance: float | None = None
    train: OptionalSources = None
    test: OptionalSources = None
    limit: int | None = None
    max_loss: float = 1.0


def export(
    model: str,
    /,
    *,
    size: Names = (),
    format: Formats = ("onnx",),
    precision: Precisions = ("fp32",),
    image_size: int | None = None,
    checkpoint: Step | None = None,
    with_preprocessing: Switch = False,
    calibrate: OptionalSources = None,
    checks: Checks = Checks(),
    out: Path | None = None,
    overwrite: Switch = False,
) -> None:
    """Write networks as files for other runtimes, each run apart from this library and compared with the network.

    Example: poa export runs/mine --size 96x3 128x6 --format onnx program --precision fp32 int8 --calibrate IMAGES

    Args:
        model: Folder of a run; an extracted size, a fine-tuned model or a segmentation network; or a timm name.
        size: `all`, or names such as 96x4; required for a run with several sizes.
        format: onnx (ONNX Runtime and others), program (.pt2, torch.export), openvino, or executorch (.pte).
        precision: fp32; fp16 (weights and computation of 16 bits); int8 (static quantisation; onnx and openvino).
        image_size: Side of the images in pixels; by default the size that the network is made for.
        checkpoint: Step of the run's checkpoint to use, or `best`; the newest by default.
        with_preprocessing: The files take pixels, uint8 of batch x height x width x 3, and normalise them themselves;
            resizing and cropping stay outside.
        calibrate: Images that give the ranges of int8, such as those of later use; those of the run by default.
        out: Folder to write, `exported` in that of the run or model by default.
        overwrite: Replace existing files.
    """
    from poa.shipping.export import Wish
    from poa.shipping.export import export as write
    from poa.shipping.networks import exportables
    from poa.shipping.scores import labelled

    wish = Wish(
        formats=format,
        precisions=precision,
        pixels=with_preprocessing,
        images=checks.images,
        calibrate=calibrate,
        labelled=labelled(checks.train, checks.test, checks.limit),
        tolerance=checks.tolerance,
        max_loss=checks.max_loss,
        out=out,
        overwrite=overwrite,
    )
    result = write(exportables(model, sizes=size, image_size=image_size, checkpoint=checkpoint), wish)
    _show(result)


def _show(result: "Result") -> None:
    from poa.shipping.table import legend, table

    if result.files:
        console = plain_console()
        console.print(table(result))
        console.print(legend(result))
        say(f"Folder: {result.files[0].file.parent}")
        say("A file says in its metadata (entry poa, JSON) how its images are prepared.")
    if result.refused:
        raise UserError(" ".join(result.refused.values()))
