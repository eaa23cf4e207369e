"""Objects in images by a detector: a file in COCO's format."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from poa.errors import UserError
from poa.models.folder import weights_of
from poa.tasks.detection.average_precision import IN_MASK, box_entries, mask_entries
from poa.tasks.detection.coco import coco_tools
from poa.tasks.detection.folder import read_detector
from poa.tasks.predictor import ImagePredictor, Part, check_finite
from poa.text import unicode_text


@dataclass(frozen=True)
class BoxPredictor(ImagePredictor):
    """A detector.

    Attributes:
        network: In evaluation mode, on the device.
        categories: Names by id, in the order of the labels.
        has_masks: Whether it gives masks too.
        weights: What the parameters are.
        device: Where it computes.
        min_score: Objects with a lower score are left out, besides those that the detector leaves out.
    """

    network: Any
    categories: Mapping[int, str]
    has_masks: bool
    weights: str
    device: torch.device
    min_score: float = 0.0

    kind = "a detector"
    example = "boxes.json"
    is_file = True

    @property
    def settings(self) -> Mapping[str, Any]:
        """What is written."""
        return {"categories": [[number, name] for number, name in self.categories.items()], "score": self.min_score}

    def part(self, number: int, name: str, image: UInt8[Tensor, "1 3 height width"]) -> Part:
        """A line of what COCO's format says of the image, without the ids of its objects."""
        height, width = image.shape[2:]
        about = {"id": number + 1, "file_name": unicode_text(name), "height": height, "width": width}
        return Part(1, [json.dumps({"image": about, "objects": self._objects(image[0], number + 1, name)})])

    def finish(self, lines: Iterator[str], whole: Path) -> None:
        """All images and objects in one file."""
        found = [json.loads(line) for line in lines]
        objects = [each for of_image in found for each in of_image["objects"]]
        content = {
            "info": {"description": f"Detected by {unicode_text(self.weights)}"},
            "images": [of_image["image"] for of_image in found],
            "categories": [{"id": number, "name": unicode_text(name)} for number, name in self.categories.items()],
            "annotations": [{"id": number, **each} for number, each in enumerate(objects, start=1)],
        }
        whole.write_text(json.dumps(content), encoding="utf-8")

    @torch.inference_mode()
    def _objects(self, pixels: Tensor, image: int, name: str) -> Sequence[Mapping[str, Any]]:
        """The objects in an image, the most certain first."""
        found = {what: each.cpu() for what, each in self.network([pixels.to(self.device).float() / 255])[0].items()}
        check_finite(found["boxes"], name=name)
        kept = found["scores"] >= self.min_score
        found = {what: each[kept] for what, each in found.items()}
        boxes = box_entries(image, found["boxes"], found["labels"], found["scores"], categories=list(self.categories))
        objects: list[dict[str, Any]] = [
            {**box, "area": round(box["bbox"][2] * box["bbox"][3], 2), "iscrowd": 0} for box in boxes
        ]
        if self.has_masks:
            areas = (found["masks"][:, 0] >= IN_MASK).sum(dim=(1, 2)).tolist()
            masks = zip(objects, mask_entries(boxes, found["masks"]), areas, strict=True)
            objects = [{**each, **mask, "area": area} for each, mask, area in masks]
        return objects


def box_predictor(folder: Path, *, device: torch.device, min_score: float = 0.0) -> BoxPredictor:
    """The detector in a folder that ``poa detect`` wrote."""
    if not 0 <= min_score <= 1:
        raise UserError(f"--min-score must be from 0 to 1, got {min_score}.")
    found = read_detector(folder)
    if found.plan.has_masks:
        coco_tools()  # before an hour is spent
    network = found.network.to(device)
    return BoxPredictor(network, found.categories, found.plan.has_masks, weights_of(folder), device, min_score)
