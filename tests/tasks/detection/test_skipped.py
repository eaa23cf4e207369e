"""Files as other programs write them: what cannot be used of them is left out and counted, or refused in a sentence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from poa.errors import UserError
from poa.tasks.detection.average_precision import BOXES, MASKS, average_precision
from poa.tasks.detection.coco import (
    CROWD,
    NO_AREA,
    NO_BOX,
    NO_IMAGE,
    NO_MASK,
    check_categories,
    check_objects,
    coco_tools,
    read_annotations,
    truth_of,
)
from poa.tasks.detection.data import find_images, readable_images
from tasks.detection.coco_images import changed, write_coco

TRIANGLE = [5, 5, 35, 5, 35, 35]
PACKED = coco_tools().encode(np.asfortranarray(np.ones((48, 64), np.uint8)))["counts"].decode()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return write_coco(tmp_path_factory.mktemp("coco"), num_images=4)


@pytest.mark.parametrize(
    "mask",
    [
        None,
        [],
        [[]],
        {},
        "",
        "x",
        3,
        [[1, 2, 3, 4]],
        [[20.0, 20.0]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [[1, 2, 3, 4, 5, "6"]],
        [[1, 2, 3, 4, 5, float("nan")]],
        [[0, 0, 1e12, 0, 1e12, 1e12]],
        [[[1, 2], [3, 4], [5, 6]]],
        {"size": [64, 48], "counts": [3072]},
        {"size": [48, 64], "counts": [9]},
        {"size": [48, 64], "counts": [-5, 3077]},
        {"size": [48, 64], "counts": "no code"},
        {"size": [48, 64]},
    ],
)
def test_objects_without_a_usable_mask_are_skipped_where_masks_are_learnt(data: tuple[str, Path], mask: Any) -> None:
    file = changed(data[1], annotations={0: {"segmentation": mask}})
    annotations = read_annotations(file)
    assert (annotations.num_objects, annotations.skipped) == (5, {NO_MASK: 1})
    assert "1 object skipped (without a usable mask)" in annotations.describe()
    boxes = read_annotations(file, has_masks=False)
    assert (boxes.num_objects, boxes.skipped) == (6, {})


@pytest.mark.parametrize(
    ("mask", "kept"),
    [
        ([TRIANGLE, [20.0, 20.0], [1, 2, 3, 4]], [TRIANGLE]),
        (TRIANGLE, [TRIANGLE]),
        ({"size": [48, 64], "counts": [3000, 72]}, {"size": [48, 64], "counts": [3000, 72]}),
        ({"size": [48, 64], "counts": PACKED}, {"size": [48, 64], "counts": PACKED}),
    ],
)
def test_what_is_sound_of_a_mask_is_kept(data: tuple[str, Path], mask: Any, kept: Any) -> None:
    annotations = read_annotations(changed(data[1], annotations={0: {"segmentation": mask}}))
    assert annotations.images[0].objects[0].mask == kept
    assert not annotations.skipped


def test_objects_without_box_image_or_id(data: tuple[str, Path]) -> None:
    boxes: list[Any] = [None, [], [1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, float("nan")]]
    for box in boxes:
        annotations = read_annotations(changed(data[1], annotations={1: {"bbox": box}}))
        assert (annotations.num_objects, annotations.skipped) == (5, {NO_BOX: 1})
    over = {0: {"id": 0}, 1: {"id": None, "image_id": 99}, 2: {"id": 2, "iscrowd": "0"}, 3: {"id": 2, "iscrowd": "1"}}
    annotations = read_annotations(changed(data[1], annotations=over))
    assert (annotations.num_objects, annotations.skipped) == (4, {NO_IMAGE: 1, CROWD: 1})


def found(file: Path, root: Path, kind: str) -> list[dict[str, Any]]:
    """A perfect detection of each object, as results have it."""
    entries = []
    for each in json.loads(file.read_text())["annotations"]:
        what = {"bbox": each["bbox"]} if kind == BOXES else {"segmentation": {"size": [48, 64], "counts": PACKED}}
        entries.append({"image_id": each["image_id"], "category_id": each["category_id"], "score": 0.9, **what})
    (root / "found.json").write_text(json.dumps(entries))
    return entries


def test_skipped_objects_are_not_asked_for_in_the_test(data: tuple[str, Path], tmp_path: Path) -> None:
    found(data[1], tmp_path, BOXES)
    whole = average_precision(
        truth_of(read_annotations(data[1])), tmp_path / "found.json", kind=BOXES, images=[100, 101, 102, 103]
    )
    over: dict[int, Any] = {0: {"segmentation": [[]]}, 2: {"bbox": None}, 4: {"iscrowd": 1, "segmentation": "x"}}
    over[5] = {"id": 0, "area": None}
    broken = truth_of(read_annotations(changed(data[1], annotations=over)))
    for kind in (BOXES, MASKS):
        found(data[1], tmp_path, kind)
        scores = average_precision(broken, tmp_path / "found.json", kind=kind, images=[100, 101, 102, 103])
        assert scores.keys() == {name.replace("box", {BOXES: "box", MASKS: "mask"}[kind]) for name in whole}
    assert whole["box_ap"] == pytest.approx(100)


def test_a_byte_order_mark_is_no_fault(data: tuple[str, Path], tmp_path: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "a.json").write_text(data[1].read_text(), encoding=encoding)
        found(data[1], tmp_path, BOXES)
        truth = truth_of(read_annotations(tmp_path / "a.json"))
        scores = average_precision(truth, tmp_path / "found.json", kind=BOXES, images=[100])
        assert scores["box_ap"] == pytest.approx(100)


def test_parts_without_objects_are_refused(data: tuple[str, Path]) -> None:
    bare = read_annotations(changed(data[1], annotations={key: {"segmentation": [[]]} for key in range(6)}))
    with pytest.raises(UserError, match=r"No object in .* has a usable mask\. .* --head faster-rcnn"):
        check_objects(bare, part="test")
    check_objects(read_annotations(data[1]), part="test")
    thin = read_annotations(changed(data[1], annotations={key: {"bbox": [1, 1, 0, 0]} for key in range(6)}))
    with pytest.raises(UserError, match=r"has no test images with objects \(4 images, 0 objects .*6 objects skipped"):
        check_objects(thin, part="test")
    assert thin.skipped == {NO_AREA: 6}


def test_images_that_are_not_there_are_left_out(data: tuple[str, Path]) -> None:
    annotations = read_annotations(changed(data[1], images={1: {"file_name": "gone.png"}}))
    images = readable_images(find_images(annotations, data[0]))
    assert (len(images), images.num_absent) == (3, 1)
    assert [images.annotation(number).id for number in range(3)] == [100, 102, 103]
    many = changed(data[1], images={1: {"file_name": "gone.png"}, 2: {"file_name": "gone.png"}})
    with pytest.raises(UserError, match=r"2 of 4 images in .* 'gone.png'; an image there is called '0.png'"):
        find_images(read_annotations(many), data[0])


def test_paths_and_names_in_other_spellings(tmp_path: Path) -> None:
    folder, file = write_coco(tmp_path, num_images=4)
    Path(folder, "sub").mkdir()
    for old, new in (("1.png", "sub/B.PNG"), ("2.png", "cafe\u0301.png")):
        Path(folder, old).rename(Path(folder, new))
    names = ("./0.png", ".\\SUB\\b.png", "caf\u00e9.png", "/3.png")
    over = {number: {"file_name": name} for number, name in enumerate(names)}
    images = find_images(read_annotations(changed(file, images=over)), folder)
    assert [images.index.name(row) for row in images.rows] == ["0.png", "sub/B.PNG", "cafe\u0301.png", "3.png"]
    forms = [read_annotations(changed(file, categories={0: {"name": name}})) for name in ("caf\u00e9", "cafe\u0301")]
    check_categories(*forms)
