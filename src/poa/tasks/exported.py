"""Files that ``poa export`` wrote, used on images: by ONNX Runtime, or as programs of torch."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from poa.config.segmentation import Segmentation
from poa.data.augment import normalise
from poa.errors import UserError, first_line, lacking
from poa.export.about import INPUT, KEY, About, read_about
from poa.models.folder import weights_of
from poa.tasks.classification.predict import LabelPredictor
from poa.tasks.predictor import Predictor
from poa.tasks.segmentation.png import MaskPredictor
from poa.tasks.segmentation.predict import usual_stride

ENDINGS = (".onnx", ".pt2")
"""Of files that can be used here."""

Run = Callable[[Tensor], Tensor]
"""From images as a file takes them to what comes out first."""


def read_exported(file: Path, *, all_classes: bool = False) -> Predictor:
    """The model in a file.

    Raises:
        UserError: The file is of another kind, damaged, or gives neither classes nor masks.
    """
    if file.suffix not in ENDINGS:
        raise UserError(f"{file} is not of a kind that can be used here. Give {' or '.join(ENDINGS)}, or a folder.")
    run, metadata = (_onnx if file.suffix == ".onnx" else _program)(file)
    about = read_about(metadata, file=str(file))
    if about.task == "classification":
        return LabelPredictor(_Labels(run, about), about.classes, about.preprocessing, weights_of(file), all_classes)
    if about.task == "segmentation":
        window = about.preprocessing.image_size
        config = Segmentation(crop=window, **{"stride": usual_stride(window), **about.windows})
        cpu = torch.device("cpu")
        return MaskPredictor(_Windows(run, about), about.classes, config, about.preprocessing, weights_of(file), cpu)
    raise UserError(f"{file} gives {about.task}, no labels or masks. Give a file of a model that was fine-tuned.")


def _as_taken(images: Float[Tensor, "batch 3 height width"], about: About) -> Shaped[Tensor, "batch _ _ _"]:
    """Normalised images as the file takes them: so, or as pixels with the channels last."""
    if not about.pixels:
        return images
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1) for values in (about.preprocessing.mean, about.preprocessing.std)
    )
    pixels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous()


@dataclass(frozen=True)
class _Labels:
    """A file of a classifier on images as they are read."""

    run: Run
    about: About

    def __call__(self, images: UInt8[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch classes"]:
        """Scores of each class."""
        own = self.about.preprocessing
        return self.run(_as_taken(normalise(images, mean=own.mean, std=own.std), self.about)).float()


@dataclass(frozen=True)
class _Windows:
    """A file of a segmentation network, which takes windows of one size, on normalised images up to that size."""

    run: Run
    about: About

    def __call__(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes height width"]:
        """Scores of each class for each pixel."""
        side, (height, width) = self.about.preprocessing.image_size, images.shape[2:]
        filled = F.pad(images, (0, side - width, 0, side - height))
        return self.run(_as_taken(filled, self.about)).float()[:, :, :height, :width]


def _onnx(file: Path) -> tuple[Run, dict[str, str]]:
    """A file for ONNX Runtime, and its metadata."""
    if find_spec("onnxruntime") is None:
        raise lacking(str(file), "onnxruntime", extra="export")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what is wrong is raised too
    try:
        session: Any = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of a file of others
        raise _damaged(file, error) from None

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])

    return run, dict(session.get_modelmeta().custom_metadata_map)


def _program(file: Path) -> tuple[Run, dict[str, str]]:
    """A program of torch, and its metadata."""
    metadata = {KEY: ""}
    try:
        program: Any = torch.export.load(file, extra_files=metadata).module()
    except Exception as error:  # of a file of others
        raise _damaged(file, error) from None

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        found: Tensor = program(images)
        return found

    return run, metadata


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} cannot be loaded ({first_line(error)}). Give a file that `poa export` wrote.")
