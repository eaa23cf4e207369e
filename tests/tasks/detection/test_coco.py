import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from poa.config.detection import Detection
from poa.data.content import LeftOut
from poa.errors import UserError
from poa.tasks.detection.coco import (
    CROWD,
    NO_AREA,
    Annotations,
    check_categories,
    coco_tools,
    decoded_mask,
    read_annotations,
)
from poa.tasks.detection.data import (
    InstanceBatch,
    InstanceImages,
    Instances,
    find_images,
    images_in_order,
    instance_batches,
    readable_images,
)
from tasks.detection.coco_images import changed, write_coco


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return write_coco(tmp_path_factory.mktemp("coco"), num_images=4)


def found(data: tuple[str, Path], *, has_masks: bool = True) -> InstanceImages:
    return find_images(read_annotations(data[1], has_masks=has_masks), data[0])


def test_reading(data: tuple[str, Path]) -> None:
    annotations = read_annotations(data[1])
    assert annotations.categories == {3: "red", 7: "green"}
    assert list(annotations.categories) == [3, 7]  # the order of the labels
    assert [image.id for image in annotations.images] == [100, 101, 102, 103]
    assert (annotations.num_objects, annotations.skipped) == (6, {})
    assert all(each.mask is not None for image in annotations.images for each in image.objects)
    assert annotations.describe() == "4 images, 6 objects of 2 categories, 1 image without objects (used as negatives)"
    image = annotations.images[0]
    (left, top, width, height) = json.loads(data[1].read_text())["annotations"][0]["bbox"]
    assert image.objects[0].box == (left, top, left + width, top + height)
    assert image.sides == (48, 64)
    some = annotations.take([2, 0])
    assert [each.id for each in some.images] == [102, 100]
    pickle.loads(pickle.dumps(annotations))


def test_boxes_are_clipped_or_skipped_and_crowds_left_out(data: tuple[str, Path]) -> None:
    boxes = {0: [-5, 40, 20, 30], 1: [10, 10, 0, 5], 2: [64, 0, 5, 5], 3: [1.5, 2.5, 3, 4], 5: [0, 0, 5, 0.001]}
    over = {number: {"bbox": box} for number, box in boxes.items()} | {4: {"iscrowd": 1}}
    annotations = read_annotations(changed(data[1], annotations=over))
    kept = [each.box for image in annotations.images for each in image.objects]
    assert kept == [(0.0, 40.0, 15.0, 48.0), (1.5, 2.5, 4.5, 6.5)]
    assert annotations.skipped == {NO_AREA: 3, CROWD: 1}
    assert "3 objects skipped (boxes without area or outside of the image), 1 crowd skipped" in annotations.describe()


@pytest.mark.parametrize(
    ("over", "text"),
    [
        ({"annotations": None}, r"have no list 'annotations'. In COCO's format it holds"),
        ({"images": 3}, "have no list 'images'"),
        ({"images": [], "annotations": []}, "it lists no images"),
        ({"categories": [], "annotations": []}, "it lists no categories"),
        ({"images": [3]}, "Entry 0 of 'images' in .* is 3, not an object"),
        ({"images": {1: {"file_name": 5}}}, "The 'file_name' of entry 1 of 'images' in .* is 5, but .* a text"),
        ({"images": {1: {"id": 100}}}, "two images have the id 100"),
        (
            {"images": {1: {"width": 0}}},
            "The 'width' of entry 1 of 'images' in .* is 0, but .* above 0",
        ),
        ({"images": {1: {"height": True}}}, "The 'height' of entry 1 .* is True"),
        ({"categories": {1: {"id": 7}}}, "two categories have the id 7"),
        ({"categories": [{"id": 3}]}, "The 'name' of entry 0 of 'categories' in .* is missing"),
        ({"annotations": {2: {"category_id": 99}}}, "entry 2 of 'annotations' names the category 99"),
    ],
)
def test_malformed_files(data: tuple[str, Path], over: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        read_annotations(changed(data[1], **over))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"images": [')
    with pytest.raises(UserError, match="are not valid JSON"):
        read_annotations(tmp_path / "broken.json")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_annotations(tmp_path / "none.json")


def test_categories_that_do_not_suit(data: tuple[str, Path], tmp_path: Path) -> None:
    train = read_annotations(data[1])
    check_categories(train, train)
    fewer = changed(data[1], categories=[{"id": 3, "name": "red"}], annotations=[])
    check_categories(train, read_annotations(fewer))
    with pytest.raises(UserError, match=r"category 7 of .* is 'green', but in .* it is unknown"):
        check_categories(read_annotations(fewer), train)
    renamed = read_annotations(changed(data[1], categories={0: {"name": "blue"}}))
    with pytest.raises(UserError, match=r"category 7 of .* is 'blue', but in .* it is 'green'"):
        check_categories(train, renamed)


def test_missing_pycocotools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UserError, match=r"pip install 'poa-ssl\[detect\]'"):
        coco_tools()


def test_masks_of_every_form() -> None:
    pixels = np.zeros((4, 5), np.uint8)
    pixels[1:3, 2:5] = 1
    # runs go down the columns: two empty ones and a pixel, then twice 2 and 2, the rest
    counts = [9, 2, 2, 2, 2, 2, 1]
    coded = {"size": [4, 5], "counts": counts}
    assert np.array_equal(decoded_mask(coded, (4, 5)), pixels)
    packed = coco_tools().encode(np.asfortranarray(pixels))
    assert np.array_equal(decoded_mask({"size": [4, 5], "counts": packed["counts"].decode()}, (4, 5)), pixels)
    polygon = [[2, 1, 5, 1, 5, 3, 2, 3]]
    assert np.array_equal(decoded_mask(polygon, (4, 5)), pixels)
    both = decoded_mask([*polygon, [0, 0, 1, 0, 1, 1, 0, 1]], (4, 5))
    assert both.sum() == 7
    assert both[0, 0] == 1


def test_instances(data: tuple[str, Path]) -> None:
    images = found(data)
    one = images.read(0)
    assert one.image.shape == (3, 48, 64)
    assert 0 <= float(one.image.min()) < float(one.image.max()) <= 1
    assert one.labels.tolist() == [1, 2]
    assert one.masks is not None
    for box, mask, colour in zip(one.boxes.long().tolist(), one.masks.bool(), (0, 1), strict=True):
        left, top, right, bottom = box
        expected = torch.zeros(48, 64, dtype=torch.bool)
        expected[top:bottom, left:right] = True
        assert torch.equal(mask, expected)
        assert float(one.image[colour][mask].min()) == pytest.approx(230 / 255)
    empty = images.read(3)
    assert empty.boxes.shape == (0, 4)
    assert empty.masks is not None
    assert empty.masks.shape == (0, 48, 64)
    assert found(data, has_masks=False).read(0).masks is None


def test_mirror_images(data: tuple[str, Path]) -> None:
    one = found(data).read(1)
    mirrored = one.flipped()
    assert torch.equal(mirrored.image, one.image.flip(2))
    assert mirrored.masks is not None
    for box, mask in zip(mirrored.boxes.long().tolist(), mirrored.masks.bool(), strict=True):
        left, top, right, bottom = box
        assert bool(mask[top:bottom, left:right].all())
        assert int(mask.sum()) == (right - left) * (bottom - top)
    again = mirrored.flipped()
    assert torch.equal(again.boxes, one.boxes)
    bare = Instances(one.image, one.boxes, one.labels, None)
    assert bare.flipped().masks is None
    assert set(bare.target()) == {"boxes", "labels"}


def batches(images: InstanceImages, **over: Any) -> list[InstanceBatch]:
    steps = {name: over.pop(name, usual) for name, usual in (("start_step", 0), ("num_steps", 4))}
    return list(instance_batches(images, Detection(**{"batch_size": 2, "seed": 3, **over}), **steps))


def test_batches_depend_on_the_step_alone(data: tuple[str, Path]) -> None:
    images = found(data)
    whole = batches(images)
    for expected, got in zip(whole[2:], batches(images, start_step=2, num_steps=2), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(expected.images, got.images, strict=True))
        for a, b in zip(expected.targets, got.targets, strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)
    plain, mirrored = (batches(images, flip=flip)[0] for flip in (0.0, 1.0))
    assert torch.equal(plain.images[0], mirrored.images[0].flip(2))
    assert torch.equal(plain.targets[0]["masks"], mirrored.targets[0]["masks"].flip(2))
    of_epoch = {float(image.sum()) for batch in batches(images, flip=0.0, num_steps=2) for image in batch.images}
    assert len(of_epoch) == 4
    with pytest.raises(UserError, match="--batch-size 5 is larger"):
        batches(images, batch_size=5)


def test_damaged_images(tmp_path: Path) -> None:
    folder, file = write_coco(tmp_path, num_images=3)
    seen = readable_images(found((folder, file)))
    assert (len(seen), seen.damaged) == (3, LeftOut(0, 3))
    whole = Path(folder, "1.png").read_bytes()
    Path(folder, "1.png").write_bytes(whole[: len(whole) // 2])
    (batch,) = batches(seen, batch_size=3, num_steps=1)
    assert batch.bad == (1,)
    assert len(batch.images) == 3
    assert [pixels is None for _, pixels in images_in_order(seen)] == [False, True, False]
    Path(folder, "1.png").write_bytes(b"nothing")
    told: list[int] = []
    seen = readable_images(found((folder, file)), advance=told.append)
    assert (len(seen), seen.damaged, told) == (2, LeftOut(1, 3, ("1.png",)), [1, 1, 1])
    assert seen.left_out([0]).names == ("1.png", "0.png")
    assert [seen.annotation(number).id for number in range(2)] == [100, 102]
    assert seen.read(1).image.shape == (3, 48, 64)
    for number in range(3):
        Path(folder, f"{number}.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"Of 3 images in .* none could be read"):
        readable_images(found((folder, file)))
    with pytest.raises(UserError, match="Of 3 images from number"):
        batches(found((folder, file)), batch_size=3, num_steps=1)


def test_images_that_do_not_fit(tmp_path: Path, data: tuple[str, Path]) -> None:
    names = changed(data[1], images={0: {"file_name": "train/0.png"}, 2: {"file_name": "train/2.png"}})
    with pytest.raises(UserError, match=r"2 of 4 images in .* 'train/0.png'; an image there is called '0.png'"):
        found((data[0], names))
    with pytest.raises(UserError, match=r"'0.png' in .* has 64x48 pixels .* says 60x48, so boxes would be wrong"):
        readable_images(found((data[0], changed(data[1], images={0: {"width": 60}}))))
    folder, file = write_coco(tmp_path, num_images=2)
    with Image.open(Path(folder, "0.png")) as image:
        exif = image.getexif()
        exif[ExifTags.Base.Orientation] = 6
        image.save(Path(folder, "0.png"), exif=exif)
    with pytest.raises(UserError, match="has 48x64 pixels"):
        readable_images(found((folder, file)))


def test_fingerprints(data: tuple[str, Path], tmp_path: Path) -> None:
    plain = found(data)
    other = found((data[0], changed(data[1], annotations={0: {"category_id": 7}})))
    assert plain.identity.text == found(data).identity.text
    assert len({each.identity.text for each in (plain, other, plain.take([0, 1]))}) == 3
    assert isinstance(plain.annotations, Annotations)
