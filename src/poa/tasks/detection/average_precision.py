"""Average precision of detections, as pycocotools computes it, and detections as it reads them."""

import contextlib
import io
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from poa.tasks.detection.coco import Entry, coco_tools

BOXES, MASKS = "bbox", "segm"
"""Kinds of average precision, as pycocotools calls them."""
_STATISTICS = {0: "ap", 1: "ap50", 2: "ap75", 3: "ap_small", 4: "ap_medium", 5: "ap_large", 8: "ar100"}
"""Places in the summary of pycocotools. AR: the recall with up to 100 detections an image, mean over IoUs."""
IN_MASK = 0.5
"""Least value of a pixel that belongs to an object."""
_DECIMALS, _SCORE_DECIMALS = 2, 6


def box_entries(
    image: int,
    boxes: Float[Tensor, "found 4"],
    labels: Int[Tensor, " found"],
    scores: Float[Tensor, " found"],
    *,
    categories: Sequence[int],
) -> list[Entry]:
    """Boxes (left, top, right, bottom in pixels) found in the image of an id; ``categories``: ids by label from 1."""
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
    """The same detections with masks in place of boxes: pycocotools takes areas from the masks then."""
    tools, entries = coco_tools(), []
    for entry, mask in zip(boxes, (masks[:, 0] >= IN_MASK).byte().cpu().numpy(), strict=True):
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of NumPy, about pycocotools
            code = tools.encode(np.asfortranarray(mask))
        segmentation = {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}
        kept = {name: value for name, value in entry.items() if name != "bbox"}
        entries.append({**kept, "segmentation": segmentation})
    return entries


def average_precision(
    truth: Mapping[str, Any], results: Path, *, kind: str, images: Sequence[int]
) -> Mapping[str, float]:
    """COCO's scores in percent, such as ``box_ap``: mean over IoUs from 0.5 to 0.95 and over categories that occur.

    ``truth`` is what ``truth_of`` gives. ``results`` are scored in the images of these ids; scores of object sizes that
    do not occur are left out.
    """
    with (
        contextlib.redirect_stdout(io.StringIO()),  # pycocotools prints what it does
        warnings.catch_warnings(action="ignore", category=DeprecationWarning),
    ):
        statistics = _statistics(truth, results, kind, images)
    scores = {name: float(statistics[place]) for place, name in _STATISTICS.items()}
    prefix = {BOXES: "box", MASKS: "mask"}[kind]
    return {f"{prefix}_{name}": 100.0 * score for name, score in scores.items() if score >= 0}


def _statistics(
    dataset: Mapping[str, Any], results: Path, kind: str, images: Sequence[int]
) -> Shaped[np.ndarray, "twelve"]:
    coco_tools()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, found = COCO(), COCO()
    truth.dataset = dict(dataset)
    truth.createIndex()
    found.dataset = {**truth.dataset, "annotations": []}
    found.createIndex()
    detections = json.loads(results.read_text(encoding="utf-8"))
    if detections:
        found = truth.loadRes(detections)  # cannot take an empty list
    evaluation: Any = COCOeval(truth, found, kind)
    evaluation.params.imgIds = sorted(images)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    statistics: Shaped[np.ndarray, "twelve"] = np.asarray(evaluation.stats)
    return statistics
