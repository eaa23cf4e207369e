"""COCO's average precision by pycocotools, of detections in files of COCO's format for results."""

import contextlib
import io
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from poa.files import whole_file
from poa.tasks.detection.coco import coco_tools

BOXES, MASKS = "bbox", "segm"
"""What is compared, as pycocotools calls it."""
_NAMES = {BOXES: "box", MASKS: "mask"}
_STATISTICS = {0: "ap", 1: "ap50", 2: "ap75", 3: "ap_small", 4: "ap_medium", 5: "ap_large", 8: "ar100"}
"""Places in what pycocotools sums up. AR: the recall with up to 100 detections an image, meant over IoUs."""
_IN_MASK = 0.5
_DECIMALS, _SCORE_DECIMALS = 2, 6

Entry = dict[str, Any]
"""A detection in COCO's format for results."""


def box_entries(
    image: int,
    boxes: Float[Tensor, "found 4"],
    labels: Int[Tensor, " found"],
    scores: Float[Tensor, " found"],
    *,
    categories: Sequence[int],
) -> list[Entry]:
    """Boxes found in an image.

    Args:
        image: Its id.
        boxes: Left, top, right, bottom, in its pixels.
        labels: From 1.
        scores: Between 0 and 1.
        categories: Ids in the order of the labels.
    """
    found = zip(boxes.double().tolist(), labels.tolist(), scores.double().tolist(), strict=True)
    return [
        {
            "image_id": image,
            "category_id": categories[label - 1],
            "bbox": [round(value, _DECIMALS) for value in (left, top, right - left, bottom - top)],
            "score": round(score, _SCORE_DECIMALS),
        }
        for (left, top, right, bottom), label, score in found
    ]


def mask_entries(boxes: Iterable[Entry], masks: Float[Tensor, "found 1 height width"]) -> list[Entry]:
    """The same detections with masks in place of boxes: pycocotools takes areas from the masks then.

    Args:
        boxes: Detections of an image.
        masks: How likely each pixel belongs to each.
    """
    entries = []
    for entry, mask in zip(boxes, (masks[:, 0] >= _IN_MASK).byte().cpu().numpy(), strict=True):
        code = _encoded(np.asfortranarray(mask))
        segmentation = {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}
        kept = {name: value for name, value in entry.items() if name != "bbox"}
        entries.append({**kept, "segmentation": segmentation})
    return entries


def _encoded(mask: UInt8[np.ndarray, "height width"]) -> Mapping[str, Any]:
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of NumPy, about pycocotools
        code: Mapping[str, Any] = coco_tools().encode(mask)
    return code


def write_entries(entries: Sequence[Entry], file: Path) -> None:
    """Write a file of results; it is there whole or not at all.

    Args:
        entries: All detections.
        file: Where to.
    """
    with whole_file(file) as temporary:
        temporary.write_text(json.dumps(entries))


def average_precision(annotations: Path, results: Path, *, kind: str, images: Sequence[int]) -> Mapping[str, float]:
    """COCO's scores in percent; those of object sizes that do not occur are left out.

    Args:
        annotations: What is true, in COCO's format.
        results: What was found, in COCO's format for results.
        kind: ``bbox`` or ``segm``.
        images: Ids of the images to score.

    Returns:
        Such as ``box_ap``: averaged over IoUs from 0.5 to 0.95, and over the categories that occur.
    """
    with (
        contextlib.redirect_stdout(io.StringIO()),  # pycocotools tells much of what it does
        warnings.catch_warnings(action="ignore", category=DeprecationWarning),
    ):
        statistics = _statistics(annotations, results, kind, images)
    scores = {name: float(statistics[place]) for place, name in _STATISTICS.items()}
    return {f"{_NAMES[kind]}_{name}": 100.0 * score for name, score in scores.items() if score >= 0}


def _statistics(annotations: Path, results: Path, kind: str, images: Sequence[int]) -> Shaped[np.ndarray, "twelve"]:
    coco_tools()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth: Any = COCO(str(annotations))
    truth.dataset.setdefault("info", {})  # which some versions want
    for entry in truth.dataset["annotations"]:  # what other tools leave out
        entry.setdefault("iscrowd", 0)
        entry.setdefault("area", entry["bbox"][2] * entry["bbox"][3])
    found: Any = COCO()
    found.dataset = {key: truth.dataset[key] for key in ("images", "categories")} | {"annotations": []}
    found.createIndex()
    if json.loads(results.read_text()):
        found = truth.loadRes(str(results))  # cannot read an empty list
    evaluation: Any = COCOeval(truth, found, kind)
    evaluation.params.imgIds = sorted(images)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    statistics: Shaped[np.ndarray, "twelve"] = np.asarray(evaluation.stats)
    return statistics
