"""The function of the Python API that exports. Imports torch when it is called."""

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from poa.config.values import without_paths

if TYPE_CHECKING:
    from poa.data.held import Named
    from poa.models.run import Run
    from poa.shipping.export import Result


def export_models(
    subject: "Run | str | PathLike[str]",
    *,
    sizes: str | Sequence[str] = (),
    formats: Sequence[str] = ("onnx",),
    precisions: Sequence[str] = ("fp32",),
    image_size: int | None = None,
    train: "Named | None" = None,
    test: "Named | None" = None,
    limit: int | None = None,
    **further: Any,
) -> "Result":
    """Write networks as files for other runtimes, as ``poa export`` does, each compared with the network.

    Args:
        subject: A run or its folder; an extracted size, a fine-tuned model or a segmentation network; or a timm name.
        sizes: ``all``, or names of sizes; may be left out where there is one network.
        formats: ``onnx``, ``program`` (.pt2), ``openvino`` and ``executorch`` (.pte).
        precisions: ``fp32``, ``fp16`` and ``int8``; ``int8`` of ONNX and OpenVINO alone.
        image_size: Side of the images, in pixels.
        train: Labelled images for the k-NN score of int8 files.
        test: Labelled images to test int8 files on.
        limit: Take only so many of each, balanced over classes.
        **further: Other fields of ``poa.shipping.export.Wish``, such as ``pixels``, ``calibrate`` and ``out``.

    Returns:
        The files, with their sizes, differences and times, and why others were not kept.

    Raises:
        UserError: An argument is not valid.
    """
    from poa.features.images import named
    from poa.models.source import located
    from poa.shipping.export import Wish, export
    from poa.shipping.networks import exportables
    from poa.shipping.scores import labelled

    images = labelled(named(train), named(test), limit)
    wish = Wish(formats, precisions, labelled=images, **without_paths(further))
    given, step = located(subject)
    return export(exportables(given, sizes=sizes, image_size=image_size, checkpoint=step), wish)
