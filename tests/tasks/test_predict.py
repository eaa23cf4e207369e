"""What models that were written say of images: the files, the same as in a test, after a stop, and what is refused."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from rich.console import Console

from poa.config.detection import Detection
from poa.config.finetune import Finetune
from poa.config.segmentation import Segmentation
from poa.data.augment import normalise
from poa.errors import UserError
from poa.evaluation.sweep import SweepOptions
from poa.export.program import example, portable, traced, write_program
from poa.shipping.networks import exportables
from poa.tasks import evaluate, predict
from poa.tasks.classification.predict import LabelPredictor
from poa.tasks.detection import train as detection_training
from poa.tasks.detection.coco import read_annotations
from poa.tasks.detection.data import CocoImages
from poa.tasks.predictor import Part
from poa.tasks.segmentation import train as segmentation_training
from poa.tasks.segmentation.folder import read_segmenter
from poa.tasks.segmentation.masks import MaskedImages
from poa.tasks.segmentation.png import mask_name
from supervised import MEAN, STD, Models, family, source_of_models
from tasks.detection.coco_images import write_coco
from tasks.segmentation.mask_images import write_pairs

OPTIONS = SweepOptions(sizes=("16x2",))
FINETUNE = Finetune(epochs=1, batch_size=8)
SEGMENT = Segmentation(epochs=2, batch_size=2, crop=24, stride=8, lr=1e-2, test_flip=True, resize=28)
DETECT = Detection(
    epochs=2, batch_size=2, channels=8, hidden=16, regions=16, sides=(32,), test_side=40, longest=64, most=5
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and the results of a training of each kind with its models."""
    root = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation_training, "mask_sheet", lambda *_, **__: None)
        patch.setattr(detection_training, "object_sheet", lambda *_, **__: None)
        source = source_of_models(root, Models(family(image_size=24, patch_size=8)))
        for head in ("linear", "mlp"):
            options = SweepOptions(sizes=("16x2",), name=head)
            settings = FINETUNE.changed(head=head)
            evaluate.finetune_networks(source, settings, train="digits/train", limit=32, options=options)
        pairs = {part: MaskedImages(*write_pairs(root / part, num_images=3, seed=len(part))) for part in ("a", "bb")}
        parts: dict[str, Any] = {"train": pairs["a"], "test": pairs["bb"]}
        evaluate.segment_networks(source, SEGMENT, **parts, options=OPTIONS)
        coco = {part: CocoImages(*write_coco(root / part, num_images=3, seed=len(part))) for part in ("c", "dd")}
        parts = {"train": coco["c"], "test": coco["dd"]}
        evaluate.detect_networks(source, DETECT, **parts, options=OPTIONS)
    return root


def model(root: Path, kind: str) -> str:
    return str(root / kind / "models/16x2")


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_labels_are_those_of_the_network(root: Path, tmp_path: Path, head: str) -> None:
    out = tmp_path / "labels.csv"
    found = predict.predict(model(root, head), "digits/test", out=out, limit=70, all_classes=True)
    rows = rows_of(out)
    assert found == (out, "a classifier", 70, ())
    assert len(rows) == 70
    assert list(rows[0]) == ["image", "label", "probability", *map(str, range(10))]
    probabilities = np.array([[float(row[str(digit)]) for digit in range(10)] for row in rows])
    assert probabilities.sum(axis=1) == pytest.approx(1, abs=1e-4)
    assert [row["label"] for row in rows] == [str(each) for each in probabilities.argmax(axis=1)]
    assert [float(row["probability"]) for row in rows] == probabilities.max(axis=1).tolist()
    if head == "linear":
        network = timm.create_model(f"local-dir:{model(root, head)}", pretrained=True).eval()
        index = predict.open_images("digits/test", limit=70)
        assert rows[3]["image"] == index.name(3)
        with Image.open(io.BytesIO(index.read(3))) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB").resize((24, 24), Image.Resampling.BICUBIC)))
        with torch.inference_mode():
            expected = network(normalise(pixels.permute(2, 0, 1)[None], mean=MEAN, std=STD)).softmax(dim=1)[0]
        assert probabilities[3] == pytest.approx(expected.numpy(), abs=0.02)  # another resize


def test_masks_are_those_of_the_test(root: Path, tmp_path: Path) -> None:
    found = predict.predict(model(root, "segmentation"), str(root / "bb/images"), out=tmp_path / "masks")
    assert (found.num_images, found.kind) == (3, "a segmentation network")
    assert {path.name for path in (tmp_path / "masks").iterdir()} == {
        "0.png", "1.png", "2.png", "masks.json", "classes.txt"
    }  # fmt: skip
    about = json.loads((tmp_path / "masks/masks.json").read_text())
    assert (about["classes"], about["masks"]) == (["0", "1", "2"], 3)
    hits = total = 0
    for number in range(3):
        with Image.open(tmp_path / f"masks/{number}.png") as image:
            mask = np.array(image)
            assert image.mode == "P"
        truth = np.array(Image.open(root / f"bb/masks/{number}.png"))
        assert mask.shape == truth.shape
        kept = truth != 255
        hits, total = hits + int((mask == truth)[kept].sum()), total + int(kept.sum())
    scores = json.loads((root / "segmentation/segmentation.json").read_text())["scores"]["16x2"]
    assert 100 * hits / total == pytest.approx(scores["pixel_accuracy"])


def test_masks_of_an_exported_file(root: Path, tmp_path: Path) -> None:
    """Are those of the folder, since the file says how masks are predicted."""
    network = exportables(model(root, "segmentation")).network("16x2")
    about = network.about("fp32", pixels=False)
    program = traced(portable(network.network, network.preprocessing, half=False, pixels=False),
                     example(network.preprocessing, pixels=False), name="16x2")  # fmt: skip
    write_program(program, tmp_path / "16x2.pt2", about.metadata())
    for name, given in (("folder", model(root, "segmentation")), ("file", str(tmp_path / "16x2.pt2"))):
        predict.predict(given, str(root / "bb/images"), out=tmp_path / name)
    for number in range(3):
        masks = [np.array(Image.open(tmp_path / name / f"{number}.png")) for name in ("folder", "file")]
        assert np.array_equal(*masks)


def test_masks_can_be_trained_on(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks"
    predict.predict(model(root, "segmentation"), str(root / "bb/images"), out=out)
    pairs = MaskedImages(str(root / "bb/images"), str(out)).open()
    assert int(pairs.read(1).mask.max()) <= 2


def test_boxes_are_those_of_the_test(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "boxes.json"
    found = predict.predict(model(root, "detection"), str(root / "dd/images"), out=out)
    assert found.num_images == 3
    written = json.loads(out.read_text())
    assert [each["file_name"] for each in written["images"]] == ["0.png", "1.png", "2.png"]
    assert written["images"][0] == {"id": 1, "file_name": "0.png", "height": 48, "width": 64}
    assert written["categories"] == [{"id": 3, "name": "red"}, {"id": 7, "name": "green"}]
    boxes, masks = (
        json.loads((root / f"detection/detections/16x2-{what}.json").read_text()) for what in ("boxes", "masks")
    )
    names = ("category_id", "bbox", "score")
    assert [[each[name] for name in names] for each in written["annotations"]] == [
        [each[name] for name in names] for each in boxes
    ]
    assert [each["segmentation"] for each in written["annotations"]] == [each["segmentation"] for each in masks]
    assert [each["image_id"] + 99 for each in written["annotations"]] == [each["image_id"] for each in boxes]
    assert [each["id"] for each in written["annotations"]] == list(range(1, len(boxes) + 1))
    assert len(boxes) > 3
    read_annotations(out)  # as a file to train on
    best = sorted(each["score"] for each in boxes)[-2]
    predict.predict(model(root, "detection"), str(root / "dd/images"), out=out, min_score=best, overwrite=True)
    assert len(json.loads(out.read_text())["annotations"]) == 2


def interrupted(patch: pytest.MonkeyPatch, run: Callable[[], Any], *, after: int) -> None:
    plain, parts = predict._Progress.add, list[Part]()

    def add(progress: Any, part: Part, work: Path) -> None:
        plain(progress, part, work)
        parts.append(part)
        if len(parts) == after:
            with (work / "lines.txt").open("a") as file:
                file.write("half a li")  # the next part, of which the state is not written
            raise KeyboardInterrupt

    with patch.context() as inner:
        inner.setattr(predict._Progress, "add", add)
        with pytest.raises(KeyboardInterrupt):
            run()


@pytest.mark.parametrize(
    ("kind", "images", "name"),
    [("linear", "digits/test", "a.csv"), ("segmentation", "bb/images", "a"), ("detection", "dd/images", "a.json")],
)
def test_a_stopped_prediction_goes_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, images: str, name: str
) -> None:
    data = images if kind == "linear" else str(root / images)
    limit = 130 if kind == "linear" else None

    def run(folder: str, **options: Any) -> Path:
        return predict.predict(model(root, kind), data, out=tmp_path / folder / name, limit=limit, **options).path

    whole = run("whole")
    interrupted(monkeypatch, lambda: run("stopped"), after=1)
    assert not (tmp_path / "stopped" / name).exists()
    console = Console(file=io.StringIO(), width=200)
    again = run("stopped", console=console)
    assert f"images: {limit or 3}/{limit or 3} in" in console.file.getvalue()  # type: ignore[attr-defined]
    assert [path.name for path in again.parent.iterdir()] == [name]
    files = [path.relative_to(whole.parent) for path in whole.parent.rglob("*") if path.is_file()]
    assert all((whole.parent / each).read_bytes() == (again.parent / each).read_bytes() for each in files)
    if kind == "linear":  # what another command has begun is not gone on with
        interrupted(monkeypatch, lambda: run("other"), after=1)
        run("other", all_classes=True)
        assert len(rows_of(tmp_path / "other" / name)) == 130
        assert len(rows_of(tmp_path / "other" / name)[0]) == 13


def test_images_that_cannot_be_read(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "dd/images", tmp_path / "images")
    (tmp_path / "images/1.png").write_bytes(b"damaged")
    for kind, name in (("linear", "a.csv"), ("segmentation", "a"), ("detection", "a.json")):
        found = predict.predict(model(root, kind), str(tmp_path / "images"), out=tmp_path / name)
        assert (found.num_images, found.bad) == (2, ("1.png",))
    assert [row["image"] for row in rows_of(tmp_path / "a.csv")] == ["0.png", "2.png"]
    assert sorted(path.name for path in (tmp_path / "a").glob("*.png")) == ["0.png", "2.png"]
    assert [each["id"] for each in json.loads((tmp_path / "a.json").read_text())["images"]] == [1, 3]
    for file in (tmp_path / "images").iterdir():
        file.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"Of 3 images in .*, none could be read\. Check the data\."):
        predict.predict(model(root, "linear"), str(tmp_path / "images"), out=tmp_path / "b.csv")
    assert not list(tmp_path.glob("*b.csv*"))


def test_names_of_masks() -> None:
    found = [mask_name(name) for name in ("a.jpg", "a/b.tif", "/abs/c.png", "../../d.jpg", "a/../e.jpg", "no-ending")]
    assert found == ["a.png", "a/b.png", "abs/c.png", "d.png", "a/e.png", "no-ending.png"]


def test_refused(root: Path, tmp_path: Path) -> None:
    labels, masks, boxes = (model(root, kind) for kind in ("linear", "segmentation", "detection"))
    images, out = str(root / "bb/images"), tmp_path / "out.csv"
    out.write_text("there")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.txt").write_text("mine")
    shutil.copytree(images, tmp_path / "twins")
    shutil.copy(tmp_path / "twins/0.jpg", tmp_path / "twins/0.jpeg")
    for name, folder, options, text in (
        (labels, images, {"out": out}, r"out.csv already exists\. Choose another --out, or replace it with"),
        (labels, images, {"out": tmp_path / "a"}, r"--out must be a file that ends in \.csv for a classifier, got "),
        (masks, images, {"out": out}, r"--out must be a folder for a segmentation network, got .*out\.csv\."),
        (boxes, images, {"out": out}, r"--out must be a file that ends in \.json for a detector"),
        (masks, images, {"out": tmp_path / "other", "overwrite": True}, "holds other files than masks"),
        (masks, images, {"out": Path(images) / "masks"}, "is in the folder of images .* Choose another --out"),
        (masks, str(tmp_path / "twins"), {"out": tmp_path / "a"}, r"'0\.jpeg' and '0\.jpg' .* both be called '0"),
        (masks, images, {"out": tmp_path / "a", "all_classes": True}, "--all-classes has an effect on a classifier"),
        (labels, images, {"out": tmp_path / "a.csv", "min_score": 0.5}, "--min-score has an effect on a detector "),
        (boxes, images, {"out": tmp_path / "a.json", "min_score": 5.0}, r"--min-score must be from 0 to 1, got 5\.0"),
        (str(root / "linear"), images, {"out": tmp_path / "a.csv"}, "linear is not the folder of one model"),
        (str(tmp_path / "no"), images, {"out": tmp_path / "a.csv"}, r"no does not exist\. Give a folder that "),
        (labels, str(tmp_path / "no"), {"out": tmp_path / "a.csv"}, "no"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=text):
            predict.predict(name, folder, **options)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out.csv", "twins"]
    assert out.read_text() == "there"


def test_damaged_models_are_refused(root: Path, tmp_path: Path) -> None:
    for kind, name, text in (
        ("linear", "model.safetensors", r"does not hold a whole fine-tuned model \("),
        ("mlp", "classifier.safetensors", r"does not hold a whole fine-tuned model \("),
        ("segmentation", "segmentation.json", r"The segmentation network in .* cannot be loaded \(.*`poa segment`\."),
        ("segmentation", "head.safetensors", r"The segmentation network in .* cannot be loaded \("),
        ("detection", "detection.json", r"The detector in .* cannot be loaded \(.*`poa detect`\."),
        ("linear", "config.json", "timm cannot build a model from"),
    ):
        folder = tmp_path / kind / name
        shutil.copytree(model(root, kind), folder)
        (folder / name).write_text("[]")
        with pytest.raises(UserError, match=text):
            predict.open_model(str(folder))
        (folder / name).unlink()
    shutil.copytree(model(root, "segmentation"), tmp_path / "features")
    (tmp_path / "features/segmentation.json").unlink()
    with pytest.raises(UserError, match="is a network without classes: it gives features, no labels"):
        predict.open_model(str(tmp_path / "features"))


def test_values_that_are_not_finite_are_refused(root: Path) -> None:
    opened = predict.open_model(model(root, "linear"))
    assert isinstance(opened, LabelPredictor)
    found = replace(opened, score=lambda images: torch.full((len(images), 10), torch.nan))
    with pytest.raises(UserError, match=r"values that are not finite for the image '0\.jpg'"):
        list(found.parts(predict.open_images(str(root / "bb/images")), start=0, workers=0))


def test_folders_of_earlier_versions(root: Path, tmp_path: Path) -> None:
    """These do not say how masks are predicted: windows overlap by a third."""
    shutil.copytree(model(root, "segmentation"), tmp_path / "old")
    about = json.loads((tmp_path / "old/segmentation.json").read_text())
    assert about.pop("prediction") == {
        "resize": 28, "stride": 8, "whole": False, "test_scales": [1.0], "test_flip": True
    }  # fmt: skip
    (tmp_path / "old/segmentation.json").write_text(json.dumps(about))
    settings = read_segmenter(tmp_path / "old").settings
    assert (settings.stride, settings.resize, settings.test_flip) == (16, 0, False)
