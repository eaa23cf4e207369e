import contextlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from poa.config.detection import Detection
from poa.evaluation.sweep import SweepOptions
from poa.tasks.detection import coco
from poa.tasks.detection.average_precision import BOXES, MASKS, average_precision, box_entries, mask_entries
from poa.tasks.detection.coco import coco_tools, decoded_mask, read_annotations, truth_of
from poa.tasks.detection.data import find_images
from poa.tasks.detection.train import Detections, DetectionTask
from supervised import Models, family, source_of_models
from tasks.detection.coco_images import changed, write_coco

CATEGORIES = [3, 7]


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("coco"), num_images=3)[1]


def entries(truth: Path, *, shift: float = 0.0) -> list[dict[str, object]]:
    """All objects, moved to the right, the later the less sure."""
    found = []
    for image in read_annotations(truth).images:
        boxes = torch.tensor([each.box for each in image.objects]).view(-1, 4) + torch.tensor([shift, 0, shift, 0])
        labels = torch.tensor([1 + CATEGORIES.index(each.category) for each in image.objects], dtype=torch.int64)
        scores = 1 / (2.0 + len(found) + torch.arange(len(labels)))
        found += box_entries(image.id, boxes, labels, scores, categories=CATEGORIES)
    return found


def score(
    truth: Path, found: list[dict[str, object]], kind: str = BOXES, images: tuple[int, ...] = (100, 101, 102)
) -> Mapping[str, float]:
    file = truth.parent / "found" / "boxes.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(found))
    return average_precision(truth_of(read_annotations(truth)), file, kind=kind, images=images)


def test_perfect_and_shifted_boxes(truth: Path) -> None:
    found = entries(truth)
    assert found[0]["category_id"] in CATEGORIES
    perfect = score(truth, found)
    assert perfect == pytest.approx(dict.fromkeys(perfect, 100.0))
    assert set(perfect) == {"box_ap", "box_ap50", "box_ap75", "box_ap_small", "box_ar100"}  # all are below 32x32
    # boxes are 21 pixels wide: moved by 3, IoU 18 / 24 = 0.75, which counts for 0.5, 0.55, ... 0.75
    shifted = score(truth, entries(truth, shift=3.0))
    assert shifted["box_ap50"] == pytest.approx(100)
    assert shifted["box_ap75"] == pytest.approx(100)
    assert shifted["box_ap"] == pytest.approx(60)


def test_the_truth_is_read_once_for_all_networks_and_kinds(truth: Path, tmp_path: Path) -> None:
    images = find_images(read_annotations(truth), str(truth.parent / "images"))
    source = source_of_models(tmp_path, Models(family(image_size=32, patch_size=8)))
    task = DetectionTask(source, SweepOptions(), 1, Detection(), images, images)
    found = Detections(boxes=entries(truth), masks=[], images=[100, 101, 102], examples=[])
    with patch.object(coco, "_read", wraps=coco._read) as read:
        for name in ("16x1", "32x1"):
            scores = task._scores(name, found)
            assert (scores["box_ap"], scores["mask_ap"]) == pytest.approx((100, 0))
    assert read.call_count == 1


def test_half_of_the_objects(truth: Path) -> None:
    reds = [each for each in entries(truth) if each["category_id"] == 3]
    assert score(truth, reds)["box_ap"] == pytest.approx(50)  # mean over categories
    one = [each for each in entries(truth) if each["image_id"] == 100]
    # precision is 1 up to recall 1/2: 51 of 101 places
    assert score(truth, one)["box_ap"] == pytest.approx(100 * 51 / 101)
    assert score(truth, one, images=(100, 102))["box_ap"] == pytest.approx(100)


def test_nothing_found(truth: Path) -> None:
    assert score(truth, []) == dict.fromkeys(("box_ap", "box_ap50", "box_ap75", "box_ap_small", "box_ar100"), 0.0)


def test_masks_and_boxes(truth: Path) -> None:
    found = []
    for image in read_annotations(truth).images:
        masks = torch.zeros(len(image.objects), 1, *image.sides)
        for place, each in enumerate(image.objects):
            pixels = torch.from_numpy(decoded_mask(each.mask, image.sides))
            masks[place, 0] = pixels * 0.5 + (1 - pixels) * 0.49  # from one half on a pixel belongs to it
        of_image = [each for each in entries(truth) if each["image_id"] == image.id]
        found += mask_entries(of_image, masks)
    assert not any("bbox" in each for each in found)
    scores = score(truth, found, MASKS)
    assert scores == pytest.approx({f"mask_{name}": 100.0 for name in ("ap", "ap50", "ap75", "ap_small", "ar100")})
    code = found[0]["segmentation"]
    assert isinstance(code, dict)
    assert np.array_equal(decoded_mask(code, (48, 64)).shape, (48, 64))


def test_annotations_without_area_and_crowds(truth: Path) -> None:
    content = json.loads(truth.read_text())
    bare = [{k: v for k, v in each.items() if k not in ("area", "iscrowd")} for each in content["annotations"]]
    plain = changed(truth, annotations=bare)
    assert score(plain, entries(truth))["box_ap"] == pytest.approx(100)


def test_same_as_pycocotools_alone(truth: Path) -> None:
    coco_tools()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    found = entries(truth, shift=2.0)[1:]
    ours = score(truth, found)
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO(str(truth))
        evaluation = COCOeval(known, known.loadRes(str(truth.parent / "found" / "boxes.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert ours["box_ap"] == 100 * evaluation.stats[0]
    assert ours["box_ap75"] == 100 * evaluation.stats[2]
    assert 0 < ours["box_ap"] < 100
