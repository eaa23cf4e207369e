"""Masks of images by a segmentation network: a PNG file of class ids for each image."""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from poa.config.segmentation import Segmentation
from poa.data.images import Preprocessing
from poa.data.index import ImageIndex
from poa.errors import UserError
from poa.models.folder import weights_of
from poa.plots.overlays import class_colours
from poa.tasks.predictor import ImagePredictor, Part
from poa.tasks.segmentation.crops import resized, scaled_sides
from poa.tasks.segmentation.folder import read_segmenter
from poa.tasks.segmentation.predict import Scorer, predict
from poa.text import one_line, unicode_text

ABOUT, NAMES = "masks.json", "classes.txt"
"""Files beside the masks: what they are, and the names of the classes as ``poa segment --classes`` reads them."""
_MOST_IN_PALETTE = 256


@dataclass(frozen=True)
class MaskPredictor(ImagePredictor):
    """A segmentation network.

    Attributes:
        score: The network, on the device.
        classes: Names by id.
        config: How masks are predicted.
        preprocessing: Of the windows.
        weights: What the parameters are.
        device: Where it computes.
    """

    score: Scorer
    classes: tuple[str, ...]
    config: Segmentation
    preprocessing: Preprocessing
    weights: str
    device: torch.device

    kind = "a segmentation network"
    example = "masks"
    is_file = False

    @property
    def settings(self) -> Mapping[str, Any]:
        """How masks are predicted."""
        return {"classes": self.classes, **self.preprocessing.stated(), **self.config.model_dump(mode="json")}

    def check_out(self, out: Path) -> None:
        """Also refuse to replace a folder that may hold something else."""
        super().check_out(out)
        if out.is_dir() and any(out.iterdir()) and not (out / ABOUT).is_file():
            raise UserError(f"{out} is a folder that holds other files than masks. Choose another --out.")

    def check_images(self, index: ImageIndex) -> None:
        """Refuse images whose masks would have the same name."""
        seen = dict[str, str]()
        for i in range(len(index)):
            name, mask = index.name(i), mask_name(index.name(i))
            if mask in seen:
                raise UserError(
                    f"The masks of {seen[mask]!r} and {name!r} in {index.source} would both be called {mask!r}. Rename "
                    "one of the images, or remove it."
                )
            seen[mask] = name

    def part(self, number: int, name: str, image: UInt8[Tensor, "1 3 height width"]) -> Part:  # noqa: ARG002
        """The file of the mask."""
        sides = image.shape[2], image.shape[3]
        seen = resized(image, scaled_sides(*sides, shorter=self.config.resize))
        mask = predict(self.score, seen, self.config, self.preprocessing, sides=sides, device=self.device)
        return Part(1, [name], {mask_name(name): mask_png(mask, num_classes=len(self.classes))})

    def finish(self, lines: Iterator[str], whole: Path) -> None:
        """The files beside the masks."""
        whole.mkdir(exist_ok=True)
        about = {
            "model": unicode_text(self.weights),
            "masks": sum(1 for _ in lines),
            "classes": [unicode_text(name) for name in self.classes],
        }
        (whole / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        (whole / NAMES).write_text("".join(f"{one_line(name)}\n" for name in self.classes), encoding="utf-8")


def mask_name(image: str) -> str:
    """The path of the mask of an image: the same, but for the ending, inside of the folder of the masks."""
    path = PurePosixPath(image)
    inside = [part for part in path.parts if part not in (path.anchor, "..")]
    return str(PurePosixPath(*inside).with_suffix(".png"))


def mask_png(mask: Int[Tensor, "height width"], *, num_classes: int) -> bytes:
    """A PNG file of class ids, with a palette of colours where that has room for all."""
    if num_classes <= _MOST_IN_PALETTE:
        image = Image.fromarray(mask.numpy().astype(np.uint8)).convert("P")
        image.putpalette((255 * class_colours(num_classes)[:, :3]).round().astype(np.uint8).tobytes())
    else:
        image = Image.fromarray(mask.numpy().astype(np.uint16))
    encoded = io.BytesIO()
    image.save(encoded, format="PNG")
    return encoded.getvalue()


def mask_predictor(folder: Path, *, device: torch.device) -> MaskPredictor:
    """The segmentation network in a folder that ``poa segment`` wrote."""
    found = read_segmenter(folder)
    network = found.network.to(device)
    return MaskPredictor(network, found.classes, found.settings, found.preprocessing, weights_of(folder), device)
