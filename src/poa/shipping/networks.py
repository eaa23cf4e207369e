"""What can be exported: sizes of a run, networks of timm, and the models that tasks wrote."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from poa.config.values import Step
from poa.data.images import Preprocessing
from poa.data.sources import Data
from poa.errors import UserError, counted
from poa.export.about import About, Precision, Task
from poa.export.timm import EXPORTED
from poa.models import registry
from poa.models.folder import weights_of
from poa.models.run import is_run, load
from poa.models.source import ModelSource, check_side, model_source
from poa.tasks.classification.folder import is_classifier, read_classifier
from poa.tasks.detection.folder import is_detector, read_detector
from poa.tasks.segmentation.folder import is_segmenter, read_segmenter
from poa.tasks.segmentation.predict import usual_stride

PRECISIONS: Mapping[str, tuple[Precision, ...]] = {
    "onnx": ("fp32", "fp16", "int8"),
    "program": ("fp32", "fp16"),
    "executorch": ("fp32",),
    "openvino": ("fp32", "fp16", "int8"),
}
"""In which precisions each format is written."""
OF_DETECTORS: Mapping[str, tuple[Precision, ...]] = {"onnx": ("fp32",)}
"""The same for detectors, whose operations depend on the objects that are found."""


@dataclass(frozen=True)
class Exportable:
    """A network to export, in evaluation mode, on the CPU.

    Attributes:
        name: Of its files.
        network: From normalised images to one tensor; a detector gives several, for one image.
        task: What comes out.
        preprocessing: How images are prepared.
        weights: Where they come from, in words.
        classes: Names of the classes in the order of the outputs.
        windows: Of a segmentation network, how masks are predicted.
    """

    name: str
    network: nn.Module
    task: Task
    preprocessing: Preprocessing
    weights: str
    classes: tuple[str, ...] = ()
    windows: Mapping[str, Any] = field(default_factory=dict)

    def about(self, precision: Precision, *, pixels: bool) -> About:
        """What a file of it says."""
        parts = self.classes, self.preprocessing, pixels, precision, self.weights, self.windows
        return About(self.name, self.task, *parts)


@dataclass(frozen=True)
class Exportables:
    """The networks that a name stands for.

    Attributes:
        names: The chosen ones.
        network: Makes that of a name.
        out: Folder for their files, unless another is asked for.
        data: Images that they were trained on, where that is known.
        precisions: In which precisions each format can be written.
        mark: After the name in those of files, such as ``-64px`` where another size of images is asked for.
    """

    names: tuple[str, ...]
    network: Callable[[str], Exportable]
    out: Path
    data: Data | None = None
    precisions: Mapping[str, tuple[Precision, ...]] = field(default_factory=lambda: PRECISIONS)
    mark: str = ""


class _Pooled(nn.Module):
    """The features of images, without those of patches."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """One vector an image."""
        features: Tensor = self.network(images).cls
        return features


class OneImage(nn.Module):
    """A detector of torchvision on one image that is prepared already: boxes in its pixels, labels from 1, scores.

    Args:
        detector: In evaluation mode; masks are left out.
        side: Of the image.
    """

    def __init__(self, detector: nn.Module, *, side: int) -> None:
        super().__init__()
        self.detector: Any = detector
        self._sides = [(side, side)]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of what is found in a normalised image."""
        detector = self.detector
        maps = detector.backbone(images)
        regions, _ = detector.rpn(ImageList(images, self._sides), maps, None)
        ((found,), _) = detector.roi_heads(maps, regions, self._sides, None)
        return found["boxes"], found["labels"], found["scores"]


def exportables(
    given: str, *, sizes: str | Sequence[str] = (), image_size: int | None = None, checkpoint: Step | None = None
) -> Exportables:
    """What a name stands for: a run, a folder that we or timm wrote, or a timm name.

    Args:
        given: The name.
        sizes: ``all``, or names of sizes; may be left out where there is one network.
        image_size: Side of the images, in pixels.
        checkpoint: The step of the run's checkpoint to use, or ``best``; the newest by default.

    Raises:
        UserError: There is no such network, or it cannot be exported.
    """
    check_side(image_size)
    found = _found(given, sizes, image_size, checkpoint)
    return found if image_size is None else replace(found, mark=f"-{image_size}px")


def _found(given: str, sizes: str | Sequence[str], image_size: int | None, checkpoint: Step | None) -> Exportables:
    folder = registry.folder_of(given)
    if is_run(folder) or checkpoint is not None:  # which only a run has
        source = model_source(given, image_size=image_size, checkpoint=checkpoint)
        return _of_source(source, sizes, folder / EXPORTED, load(folder).config.data)
    if is_detector(folder):
        return replace(_of_task(_detector, given, folder, sizes, image_size), precisions=OF_DETECTORS)
    if is_segmenter(folder):
        return _of_task(_segmenter, given, folder, sizes, image_size)
    if is_classifier(folder):
        return _of_task(_classifier, given, folder, sizes, image_size)
    source = model_source(given, image_size=image_size)
    out = folder / EXPORTED if folder.is_dir() else Path(EXPORTED, source.names[0])
    return _of_source(source, sizes, out, None)


def _of_source(source: ModelSource, sizes: str | Sequence[str], out: Path, data: Data | None) -> Exportables:
    if not sizes and len(source.names) > 1:
        raise UserError(
            f"{source.name} has {counted(len(source.names), 'size')}. Choose those to export: --size all, or names "
            f"such as --size {source.names[0]} {source.names[-1]}."
        )

    def network(name: str) -> Exportable:
        pooled = _Pooled(source.network(name)).cpu().eval().requires_grad_(False)
        return Exportable(name, pooled, "features", source.preprocessing, source.weights)

    names = tuple(dict.fromkeys(source.choose(sizes or source.names)))
    return Exportables(names, network, out, data)


def _of_task(
    read: Callable[[Path, str, int | None], Exportable],
    given: str,
    folder: Path,
    sizes: str | Sequence[str],
    image_size: int | None,
) -> Exportables:
    if sizes and sizes != "all" and list(sizes) != ["all"]:
        raise UserError(f"{given} holds a single network. Leave out --size.")
    name = folder.resolve().name
    return Exportables((name,), lambda _: read(folder, name, image_size), folder / EXPORTED)


def _classifier(folder: Path, name: str, image_size: int | None) -> Exportable:
    found = read_classifier(folder, image_size=image_size)
    return Exportable(name, found.network, "classification", found.preprocessing, weights_of(folder), found.classes)


def _segmenter(folder: Path, name: str, image_size: int | None) -> Exportable:
    """For windows of one size, which are made larger inside as the backbone needs."""
    found = read_segmenter(folder)
    own, how = found.preprocessing, found.settings
    side = image_size or own.image_size
    prepared = Preprocessing(side, side, own.mean, own.std)
    stride = usual_stride(side) if how.whole or side != own.image_size else how.stride
    windows = {"resize": how.resize, "stride": stride, "test_scales": how.test_scales, "test_flip": how.test_flip}
    return Exportable(name, found.network, "segmentation", prepared, weights_of(folder), found.classes, windows)


def _detector(folder: Path, name: str, image_size: int | None) -> Exportable:
    """For square images of one size, those of the shorter side that it was tested with by default."""
    found = read_detector(folder)
    multiple = found.network.backbone.maps.multiple
    side = image_size or found.plan.side + -found.plan.side % multiple
    if side % multiple:
        raise UserError(f"--image-size {side}: {folder} takes sides that are multiples of {multiple} pixels.")
    (red, green, blue), (first, second, third) = found.plan.mean, found.plan.std
    prepared = Preprocessing(side, side, (red, green, blue), (first, second, third))
    network = OneImage(found.network, side=side).eval()
    return Exportable(name, network, "detection", prepared, weights_of(folder), tuple(found.categories.values()))
