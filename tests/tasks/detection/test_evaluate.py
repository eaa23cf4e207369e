import contextlib
import io
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from cyclopts import App, CycloptsError
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from poa import distributed
from poa.cli import tasks as commands
from poa.cli.evaluate import Options
from poa.config.detection import Detection
from poa.elastic.space import SearchSpace, Size
from poa.errors import UserError
from poa.evaluation.results import NotScored, Scores, results_file
from poa.families.slim_resnet import SlimResNet
from poa.models.source import ModelSource
from poa.tasks.detection import folder as detected
from poa.tasks.detection import train as training
from poa.tasks.detection.data import CocoImages
from poa.tasks.evaluate import detect_networks
from supervised import Models, family, scores_of, source_of_models, stop
from tasks.detection.coco_images import changed, write_coco

FAMILY = family(image_size=32, patch_size=8)
SETTINGS = Detection(
    epochs=2, batch_size=2, channels=8, hidden=16, regions=16, sides=(32, 40), test_side=48, longest=64, most=10
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CocoImages]:
    root = tmp_path_factory.mktemp("data")
    return {
        "train": CocoImages(*write_coco(root / "train", num_images=5)),
        "test": CocoImages(*write_coco(root / "test", num_images=3, seed=1)),
    }


@pytest.fixture(autouse=True)
def plain_pictures(whole: tuple[Path, Scores], monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn in earnest for the networks of ``whole`` alone, as it takes half a second each."""
    monkeypatch.setattr(training, "object_sheet", lambda *_, **__: None)


def source(out: Path, models: Models | None = None, **options: Any) -> ModelSource:
    return source_of_models(out, models or Models(FAMILY), **options)


def run(
    out: Path, data: dict[str, CocoImages], settings: Detection = SETTINGS, models: Models | None = None, **options: Any
) -> Scores:
    return scores_of(detect_networks, source(out, models), settings, **{"sizes": ("16x1", "32x1"), **data, **options})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: dict[str, CocoImages]) -> tuple[Path, Scores]:
    """Both networks, trained without a stop."""
    out = tmp_path_factory.mktemp("whole")
    return out, run(out, data, sizes=("32x1", "16x1"))


def test_files(whole: tuple[Path, Scores], data: dict[str, CocoImages]) -> None:
    root, found = whole
    folder = root / "detection"
    written = json.loads((folder / "detection.json").read_text())
    assert written["protocol"] == "detection"
    assert written["scores"] == found
    names = [f"{kind}_{score}" for kind in ("box", "mask") for score in ("ap", "ap50", "ap75", "ap_small", "ar100")]
    assert {name: list(scores) for name, scores in found.items()} == dict.fromkeys(("16x1", "32x1"), names)
    assert written["bad_images"] == {"train": 0, "test": 0}
    settings, details = written["settings"], written["details"]["16x1"]
    assert (settings["head"], settings["epochs"], settings["sides"]) == ("mask-rcnn", 2, [32, 40])
    assert settings["weights"] == "teacher at step 5"
    assert (details["training_images"], details["training_objects"], details["test_images"]) == (5, 8, 3)
    assert details["training_loss"] > 0
    expected = ["detection.csv", "detection.json", "detections", "models", "pictures"]
    assert sorted(path.name for path in folder.iterdir()) == expected
    with Image.open(folder / "pictures/16x1.png") as picture:
        assert min(picture.size) > 400
    for name in ("16x1", "32x1"):
        boxes, masks = (
            json.loads((folder / "detections" / f"{name}-{what}.json").read_text()) for what in ("boxes", "masks")
        )
        assert len(boxes) == len(masks) == written["details"][name]["detections"] > 0
        assert {each["image_id"] for each in boxes} <= {100, 101, 102}
        assert {each["category_id"] for each in boxes} <= {3, 7}


def test_scores_are_those_of_pycocotools_alone(whole: tuple[Path, Scores], data: dict[str, CocoImages]) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    for kind, what, name in (("bbox", "boxes", "box"), ("segm", "masks", "mask")):
        file = whole[0] / "detection/detections" / f"32x1-{what}.json"
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            truth = COCO(str(data["test"].annotations))
            evaluation = COCOeval(truth, truth.loadRes(str(file)), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        places = {"ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ar100": 8}
        expected = {f"{name}_{score}": 100 * evaluation.stats[place] for score, place in places.items()}
        assert {key: value for key, value in whole[1]["32x1"].items() if key.startswith(name)} == expected


def test_models_load_without_us(
    whole: tuple[Path, Scores], data: dict[str, CocoImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the model card says, and where this package cannot be imported; it finds what was found."""
    folder = whole[0] / "detection/models/32x1"
    card = (folder / "README.md").read_text()
    assert all(part in card for part in ("2 classes. ", f"box_ap {whole[1]['32x1']['box_ap']:.1f} %"))
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    with Image.open(Path(data["test"].images) / "0.png") as image:
        names: dict[str, Any] = {"image": torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255}
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(folder)
    for name in [each for each in sys.modules if each.split(".")[0] in ("poa", "jaxtyping")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "detector", None)
    del sys.modules["detector"]
    with torch.inference_mode():
        exec(code[1], names)
    found = names["found"]
    about = json.loads((folder / "detection.json").read_text())
    categories = [each["id"] for each in about["categories"]]
    written = json.loads((whole[0] / "detection/detections/32x1-boxes.json").read_text())
    expected = [each for each in written if each["image_id"] == 100]
    assert [categories[label - 1] for label in found["labels"].tolist()] == [each["category_id"] for each in expected]
    for (left, top, right, bottom), each in zip(found["boxes"].tolist(), expected, strict=True):
        assert [left, top, right - left, bottom - top] == pytest.approx(each["bbox"], abs=0.02)
    assert found["masks"].shape == (len(expected), 1, 48, 64)


@pytest.mark.parametrize("head", ["faster-rcnn", "cascade-mask-rcnn"])
def test_other_heads(tmp_path: Path, data: dict[str, CocoImages], head: str) -> None:
    settings = SETTINGS.changed(head=head, epochs=1, box_head="convolutions")
    found = run(tmp_path, data, settings, sizes="16x1")["16x1"]
    assert ("mask_ap" in found) == ("mask" in head)
    files = sorted(path.name for path in (tmp_path / "detection/detections").iterdir())
    assert files == (["16x1-boxes.json", "16x1-masks.json"] if "mask" in head else ["16x1-boxes.json"])
    backbone = timm.create_model(f"local-dir:{tmp_path}/detection/models/16x1", pretrained=True).state_dict()
    fresh = Models(FAMILY)("16x1", num_classes=0).state_dict()
    assert any(not torch.equal(value, fresh[name]) for name, value in backbone.items())  # trained along


@pytest.mark.parametrize("after", [1, 3])
def test_stopped_training_goes_on(
    tmp_path: Path, whole: tuple[Path, Scores], data: dict[str, CocoImages], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    stop(monkeypatch, run, tmp_path, data, after=after)
    models, begun, plain = Models(FAMILY), [], training.train
    monkeypatch.setattr(training, "train", lambda *a, **k: (begun.append(k["hooks"].start), plain(*a, **k))[1])
    assert run(tmp_path, data, models=models) == whole[1]
    assert models.made == (["32x1"] if after == 3 else ["16x1", "32x1"])
    assert begun[0]["epoch"] == 1
    for name in ("16x1", "32x1"):
        for file in ("head.safetensors", "model.safetensors"):
            path = Path("detection/models", name, file)
            found, expected = load_file(tmp_path / path), load_file(whole[0] / path)
            assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert not list((tmp_path / "detection").glob("work-detection/*"))


def test_finished_networks_are_not_trained_again_and_other_settings_are_refused(
    tmp_path: Path, data: dict[str, CocoImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.changed(epochs=1)
    first = run(tmp_path, data, settings, sizes="16x1")
    models = Models(FAMILY)
    assert run(tmp_path, data, settings, models=models, sizes="16x1") == first
    assert models.made == []
    with pytest.raises(UserError, match=r"lr \(0.0003 before, 0.02 now\).*another --name.*--overwrite"):
        run(tmp_path, data, settings.changed(lr=0.02), sizes="16x1")
    other = run(tmp_path, data, settings.changed(lr=0.02), sizes="16x1", overwrite=True)
    assert json.loads((tmp_path / "detection/detection.json").read_text())["scores"] == other
    stop(monkeypatch, run, tmp_path, data, after=1, name="other")
    with pytest.raises(UserError, match=r"started with other settings: train \(5 images .* before, 4 images"):
        run(tmp_path, data, name="other", limit=4)


def test_diverged_training_does_not_keep_others_from_being_written(tmp_path: Path, data: dict[str, CocoImages]) -> None:
    models = Models(FAMILY, spoiled=("16x1",))
    with pytest.raises(NotScored, match=r"1 of 2 networks could not be trained; the others are in .* 16x1: .* nan"):
        run(tmp_path, data, SETTINGS.changed(epochs=1), models=models)
    written = json.loads((tmp_path / "detection/detection.json").read_text())
    assert list(written["scores"]) == ["32x1"]
    assert "loss is nan" in written["failed"]["16x1"]


def test_processes_share_the_networks(
    tmp_path: Path, whole: tuple[Path, Scores], data: dict[str, CocoImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = Models(FAMILY)
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: 2)
        patch.setattr(distributed, "rank", lambda: 1)
        with pytest.raises(AssertionError):  # the other process's network is missing
            run(tmp_path, data, models=models)
    assert models.made == ["32x1"]
    assert run(tmp_path, data, models=models) == whole[1]
    assert models.made == ["32x1", "16x1"]


SLIM = SlimResNet(SearchSpace.grid([8, 16], [(1, 1, 1, 1)]), image_size=32)


def slim_model(name: str, *, num_classes: int, drop_path: float = 0.0) -> nn.Module:
    architecture, arguments = SLIM.timm_config(Size.parse(name))
    torch.manual_seed(len(name))
    model: nn.Module = timm.create_model(architecture, **{**arguments, "num_classes": num_classes})
    return model


def test_one_detector_for_all_widths(
    tmp_path: Path, data: dict[str, CocoImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tuple(map(str, SLIM.space.sizes))
    slim = source(tmp_path, family=SLIM, names=names, timm_model=slim_model, network=SLIM.build)

    def detect(**options: Any) -> Scores:
        return scores_of(detect_networks, slim, SETTINGS.changed(epochs=1), **{"together": True, **data, **options})

    with monkeypatch.context() as patch:
        plain = training.DetectionTask.assess
        patch.setattr(training.DetectionTask, "assess", lambda *a: interrupt() if a[1] == names[1] else plain(*a))

        def interrupt() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            detect()
    begun, plain_train = [], training.train
    monkeypatch.setattr(training, "train", lambda *a, **k: (begun.append(k["hooks"].start), plain_train(*a, **k))[1])
    found = detect()
    assert [start["epoch"] for start in begun] == [1]  # trained before
    assert list(found) == list(names)
    folder = tmp_path / "detection"
    assert not (folder / "work-detection").exists()
    heads = [load_file(folder / "models" / name / "head.safetensors") for name in names]
    shared = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(heads[0][shared], heads[1][shared])
    inner = "backbone.fpn.inner_blocks.3.0.weight"
    assert torch.equal(heads[0][inner], heads[1][inner][:, : heads[0][inner].shape[1]])
    fresh = slim_model(names[1], num_classes=0).state_dict()
    wide = load_file(folder / "models" / names[1] / "model.safetensors")
    assert not torch.equal(wide["stem.conv.weight"], fresh["stem.conv.weight"])
    assert json.loads((folder / "detection.json").read_text())["settings"]["together"] == list(names)
    assert detect() == found
    assert len(begun) == 1
    with pytest.raises(UserError, match=r"results made with other settings: together \(.* before, None now\)"):
        detect(together=False)


def test_one_detector_for_what_is_not_slimmable(
    tmp_path: Path, data: dict[str, CocoImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"needs the widths of a slimmable network \(SlimCLR\), got runs/mine"):
        run(tmp_path, data, together=True)
    slim = source(tmp_path, family=SLIM, names=tuple(map(str, SLIM.space.sizes)), timm_model=slim_model)
    with pytest.raises(UserError, match="needs at least two of them, got 8x1-1-1-1"):
        scores_of(detect_networks, slim, SETTINGS, sizes="8x1-1-1-1", together=True, **data)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match="with one process only, got 2"):
        scores_of(detect_networks, slim, SETTINGS, together=True, **data)


def test_widths_that_diverge_together(tmp_path: Path, data: dict[str, CocoImages]) -> None:
    def spoiled(name: str, *, num_classes: int, drop_path: float = 0.0) -> nn.Module:
        model: Any = slim_model(name, num_classes=num_classes)
        nn.init.constant_(model.stages[3].blocks[0].norm1.weight, torch.nan)
        return model  # type: ignore[no-any-return]

    slim = source(tmp_path, family=SLIM, names=tuple(map(str, SLIM.space.sizes)), timm_model=spoiled)
    with pytest.raises(NotScored, match="2 of 2 networks could not be trained"):
        scores_of(detect_networks, slim, SETTINGS.changed(epochs=1), together=True, **data)


def test_it_learns(tmp_path: Path) -> None:
    """A few images by heart, which is said; a backbone that stays as it was drawn is enough for coloured boxes."""
    given = CocoImages(*write_coco(tmp_path / "data", num_images=4))
    settings = SETTINGS.changed(
        epochs=25, batch_size=4, lr=1e-2, frozen=True, flip=0.0, channels=16, hidden=32, sides=(48,), clip=5.0
    )
    console = Console(file=io.StringIO(), width=200)
    found = run(tmp_path, {"train": given, "test": given}, settings, sizes="32x2", console=console)["32x2"]
    assert found["box_ap50"] > 20  # about 0 untrained
    assert found["mask_ap50"] > 20
    assert "All 4 test images are also among the training images: scores say how well" in console.file.getvalue()


def test_damaged_images_are_counted(tmp_path: Path) -> None:
    data = {part: CocoImages(*write_coco(tmp_path / part, num_images=4, seed=len(part))) for part in ("train", "test")}
    for part in data:
        (tmp_path / part / "images/1.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"^1 of 4 training images could not be read, such as '1.png'\. That is 25\.0%"):
        run(tmp_path / "out", data, SETTINGS.changed(epochs=1), sizes="16x1")
    run(tmp_path / "out", data, SETTINGS.changed(epochs=1), sizes="16x1", max_bad_share=0.25)
    written = json.loads((tmp_path / "out/detection/detection.json").read_text())
    assert written["bad_images"] == {"train": 1, "test": 1}
    assert written["details"]["16x1"]["test_images"] == 3


def test_wrong_requests(tmp_path: Path, data: dict[str, CocoImages]) -> None:
    train, test = data["train"], data["test"]
    bare, more = CocoImages(*write_coco(tmp_path / "bare", masks=False)), write_coco(tmp_path / "more")
    empty = CocoImages(train.images, changed(train.annotations, annotations=[]))
    models = Models(FAMILY)
    for options, text in (
        ({"save_every": 0}, "--save-every must be at least 1"),
        ({"name": "a/b"}, "without slashes, got 'a/b'"),
        ({"sizes": "64x1"}, "64x1"),
        ({"limit": 9}, "--limit must be from 1 to 5, the number of images in .* got 9"),
        ({"limit": 1}, "--batch-size 2 is larger"),
        ({"test": CocoImages(test.images, more[1])}, "3 of 6 images in .* are not in"),
        ({"train": bare}, "No object in .* has a usable mask"),
        ({"test": bare}, "No object in .* has a usable mask"),
        ({"train": empty, "test": empty}, "has no training images with objects"),
        ({"train": CocoImages(train.images, tmp_path / "none.json")}, "cannot be read"),
    ):
        with pytest.raises(UserError, match=text):
            run(tmp_path, models=models, **{"data": data, "sizes": "16x1", **_merged(data, options)})
    assert models.made == []
    assert not (tmp_path / "detection").exists()


def _merged(data: dict[str, CocoImages], options: dict[str, Any]) -> dict[str, Any]:
    parts = {name: value for name, value in options.items() if name in data}
    rest = {name: value for name, value in options.items() if name not in data}
    return {**rest, "data": {**data, **parts}}


def test_damaged_models_are_not_handed_out(
    tmp_path: Path, data: dict[str, CocoImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = detected.program
    monkeypatch.setattr(detected, "program", lambda: plain().replace("(0.5, 1.0, 2.0)", "(0.5, 1.0, 9.0)"))
    with pytest.raises(RuntimeError, match="not the one that was trained"):
        run(tmp_path, data, SETTINGS.changed(epochs=1), sizes="16x1")
    assert not list((tmp_path / "detection/models").iterdir())


def test_command(
    tmp_path: Path, whole: tuple[Path, Scores], data: dict[str, CocoImages], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(whole[0] / "detection/models/16x1")
    named = {
        "train_images": data["train"].images,
        "train_annotations": data["train"].annotations,
        "test_images": data["test"].images,
        "test_annotations": data["test"].annotations,
    }
    flags = Detection.model_validate(
        {"epochs": 1, "channels": 8, "hidden": 16, "sides": (32,), "test_side": 32, "longest": 48}
    )
    commands.detection(path, **named, flags=flags, options=Options(out=tmp_path))
    shown = capsys.readouterr()
    assert "1 image without objects (used as negatives)" in shown.err
    assert "16x1" in shown.out
    assert "box_ap" in shown.out
    for what in ("detection.csv", "detections", "models"):
        assert f"{tmp_path}/detection/{what}" in shown.out
    settings = json.loads((tmp_path / "detection/detection.json").read_text())["settings"]
    assert (settings["epochs"], settings["sides"], settings["lr"]) == (1, [32], Detection().lr)
    with pytest.raises(UserError, match="no preset 'mine'"):
        commands.detection(path, **named, preset="mine")


def test_flags() -> None:
    app = App()
    app.command(commands.detection)
    words = (
        "detection runs/mine --train-images a --train-annotations b.json --test-images c --test-annotations d.json "
        "--head cascade-mask-rcnn --sides 480 640 --test-side 640 --longest 1000 --milestones 8 11 --frozen "
        "--sizes 16x1 32x1 --together"
    )
    _, bound, _ = app.parse_args(words.split())
    flags = bound.arguments["flags"]
    given = {"head": "cascade-mask-rcnn", "sides": (480, 640), "test_side": 640, "longest": 1000, "milestones": (8, 11)}
    assert flags.model_dump(exclude_unset=True) == given | {"frozen": True}
    assert flags.over(SETTINGS.changed(epochs=12)) == SETTINGS.changed(**given, frozen=True, epochs=12)
    assert bound.arguments["options"].sizes == ("16x1", "32x1")
    assert bound.arguments["together"] is True
    with pytest.raises(CycloptsError):
        app.parse_args([*words.split(), "--warmup-lr", "1"], exit_on_error=False, print_error=False)
    path = results_file(source(Path("x"), branch="untrained"), "detection")
    assert path == Path("x/detection-untrained/detection.json")
