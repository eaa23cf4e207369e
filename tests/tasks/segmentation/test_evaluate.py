import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from cyclopts import App
from PIL import Image
from safetensors.torch import load_file

from poa import distributed
from poa.cli import tasks as commands
from poa.cli.evaluate import Options
from poa.config.segmentation import Segmentation
from poa.data.augment import normalise
from poa.errors import UserError
from poa.evaluation.results import NotScored, Scores, results_file
from poa.models.source import ModelSource, model_source
from poa.plots.overlays import class_colours, coloured
from poa.tasks.evaluate import segment_networks
from poa.tasks.segmentation import folder as segmented
from poa.tasks.segmentation import train as training
from poa.tasks.segmentation.masks import MaskedImages
from supervised import MEAN, STD, Models, family, scores_of, source_of_models, stop
from tasks.segmentation.mask_images import write_pairs

FAMILY = family(image_size=24, patch_size=8)
SETTINGS = Segmentation(epochs=2, batch_size=4, lr=1e-2, scale=(0.8, 1.2))


@pytest.fixture(autouse=True)
def plain_pictures(whole: tuple[Path, Scores], monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn in earnest for the networks of ``whole`` alone, as it takes half a second each."""
    monkeypatch.setattr(training, "mask_sheet", lambda rows, **options: options["out"].write_bytes(b""))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, MaskedImages]:
    root = tmp_path_factory.mktemp("data")
    return {
        "train": MaskedImages(*write_pairs(root / "train", num_images=9)),
        "test": MaskedImages(*write_pairs(root / "test", num_images=5, seed=1)),
    }


def source(out: Path, models: Models | None = None, **options: Any) -> ModelSource:
    return source_of_models(out, models or Models(FAMILY), **options)


def run(
    out: Path,
    data: dict[str, MaskedImages],
    settings: Segmentation = SETTINGS,
    models: Models | None = None,
    **options: Any,
) -> Scores:
    return scores_of(segment_networks, source(out, models), settings, **{"sizes": ("16x1", "32x1"), **data, **options})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: dict[str, MaskedImages]) -> tuple[Path, Scores]:
    """Both networks, trained without a stop."""
    out = tmp_path_factory.mktemp("whole")
    return out, run(out, data, sizes=("32x1", "16x1"))


def test_files(whole: tuple[Path, Scores]) -> None:
    root, found = whole
    folder = root / "segmentation"
    written = json.loads((folder / "segmentation.json").read_text())
    assert written["protocol"] == "segmentation"
    assert written["scores"] == found
    assert {name: list(scores) for name, scores in found.items()} == {
        name: ["miou", "pixel_accuracy"] for name in ("16x1", "32x1")
    }
    assert written["bad_images"] == {"train": 0, "test": 0}
    settings, details = written["settings"], written["details"]["16x1"]
    assert (settings["crop"], settings["stride"], settings["epochs"], settings["ignore"]) == (24, 16, 2, 255)
    assert settings["classes"] == ["0", "1", "2"]
    assert settings["weights"] == "teacher at step 5"
    low, high = written["intervals"]["16x1"]["miou"]
    assert low < found["16x1"]["miou"] < high
    assert np.mean([details[f"iou {number}"] for number in range(3)]) == pytest.approx(found["16x1"]["miou"])
    assert (details["training_images"], details["test_images"], details["head_parameters"]) == (9, 5, 32 + 51)
    lines = list(csv.reader((folder / "classes.csv").read_text().splitlines()))
    assert lines[0] == ["class", "16x1", "32x1"]
    assert [line[0] for line in lines[1:]] == ["0", "1", "2"]
    assert float(lines[2][1]) == details["iou 1"]
    expected = ["classes.csv", "models", "pictures", "segmentation.csv", "segmentation.json"]
    assert sorted(path.name for path in folder.iterdir()) == expected
    with Image.open(folder / "pictures/16x1.png") as picture:
        assert min(picture.size) > 400


def predicted(scores: torch.Tensor) -> torch.Tensor:
    return scores.argmax(dim=1)


def test_linear_models_load_as_their_card_says(
    whole: tuple[Path, Scores], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = whole[0] / "segmentation/models/32x1"
    card = (folder / "README.md").read_text()
    assert "with a linear head for 3 classes. " in card
    assert f"miou {whole[1]['32x1']['miou']:.1f} % (" in card
    assert "/" not in re.search(r"trained on \| (.*), \d+ images", card)[1]
    monkeypatch.chdir(shutil.copytree(folder, tmp_path / "copy"))
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    images = torch.randn(2, 3, 24, 48)
    names = {"images": images}
    with torch.no_grad():
        exec(code[1], names)
    assert names["scores"].shape == (2, 3, 24, 48)
    # and by hand
    vit = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    (weight,) = [value for name, value in load_file(folder / "head.safetensors").items() if name == "1.weight"]
    assert weight.shape == (3, 32, 1, 1)
    assert torch.equal(vit.state_dict()["norm.weight"], names["backbone"].state_dict()["norm.weight"])
    about = json.loads((folder / "segmentation.json").read_text())
    assert about["classes"] == ["0", "1", "2"]
    assert (about["indices"], about["window"], about["multiple"], about["mean"]) == ([0], 24, 8, list(MEAN))


def test_loaded_model_scores_the_same(
    whole: tuple[Path, Scores], data: dict[str, MaskedImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = whole[0] / "segmentation/models/16x1"
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"images": torch.zeros(1, 3, 24, 24)}
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    hits = total = 0
    for file in sorted(Path(data["test"].images).iterdir()):
        values = normalise(torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None], mean=MEAN, std=STD)
        scores = torch.zeros(3, 24, 32)
        for left in (0, 8):
            names["images"] = values[:, :, :, left : left + 24]
            with torch.no_grad():
                exec(code, names)
            scores[:, :, left : left + 24] += names["scores"][0]
        scores[:, :, 8:24] /= 2
        truth = np.array(Image.open(Path(data["test"].masks) / f"{file.stem}.png"))
        kept = truth != 255
        hits += int((scores.argmax(dim=0).numpy() == truth)[kept].sum())
        total += int(kept.sum())
    assert 100 * hits / total == pytest.approx(whole[1]["16x1"]["pixel_accuracy"])


def test_upernet_models_load_as_a_program(
    tmp_path: Path, data: dict[str, MaskedImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.changed(head="upernet", channels=4, frozen=False, epochs=1)
    run(tmp_path, data, settings, sizes="16x1")
    folder = tmp_path / "segmentation/models/16x1"
    names: dict[str, Any] = {"images": torch.randn(3, 3, 24, 24)}
    monkeypatch.chdir(folder)
    with torch.no_grad():
        exec(re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1], names)
    assert names["scores"].shape == (3, 3, 24, 24)
    fresh = Models(FAMILY)("16x1", num_classes=0).state_dict()
    backbone = timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    assert any(not torch.equal(value, fresh[name]) for name, value in backbone.items())  # fine-tuned


@pytest.mark.parametrize("after", [1, 2, 3])
def test_stopped_training_goes_on(
    tmp_path: Path,
    whole: tuple[Path, Scores],
    data: dict[str, MaskedImages],
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    stop(monkeypatch, run, tmp_path, data, after=after)
    assert (tmp_path / "segmentation/work-segmentation/16x1").exists() == (after < 3)
    models, begun, plain = Models(FAMILY), [], training.train
    monkeypatch.setattr(training, "train", lambda *a, **k: (begun.append(k["hooks"].start), plain(*a, **k))[1])
    assert run(tmp_path, data, models=models) == whole[1]
    assert models.made == (["32x1"] if after == 3 else ["16x1", "32x1"])
    assert begun[0]["epoch"] == (1 if after == 3 else after)
    for name in ("16x1", "32x1"):
        file = Path("segmentation/models", name, "head.safetensors")
        found, expected = load_file(tmp_path / file), load_file(whole[0] / file)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert not list((tmp_path / "segmentation").glob("work-segmentation/*"))


def test_finished_networks_are_not_trained_again_and_other_settings_are_refused(
    tmp_path: Path, data: dict[str, MaskedImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.changed(epochs=1)
    first = run(tmp_path, data, settings, sizes="16x1")
    models = Models(FAMILY)
    assert run(tmp_path, data, settings, models=models, sizes="16x1") == first
    assert models.made == []
    with pytest.raises(UserError, match=r"lr \(0.01 before, 0.02 now\).*another --name.*--overwrite"):
        run(tmp_path, data, settings.changed(lr=0.02), sizes="16x1")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(map(str, range(256))))
    with pytest.raises(UserError, match=r"ignore \(255 before, 2 now\)"):
        run(tmp_path, data, settings, sizes="16x1", ignore=2, classes=names)
    other = run(tmp_path, data, settings.changed(lr=0.02), sizes="16x1", overwrite=True)
    assert json.loads((tmp_path / "segmentation/segmentation.json").read_text())["scores"] == other
    stop(monkeypatch, run, tmp_path, data, after=1, name="other")
    with pytest.raises(UserError, match=r"started with other settings: train \(9 images .* before, 8 images"):
        run(tmp_path, data, name="other", limit=8)


def test_diverged_training_does_not_keep_others(tmp_path: Path, data: dict[str, MaskedImages]) -> None:
    models = Models(FAMILY, spoiled=("16x1",))
    with pytest.raises(NotScored, match=r"1 of 2 networks could not be trained; the others are in .* 16x1: .* nan"):
        run(tmp_path, data, SETTINGS.changed(epochs=1), models=models)
    written = json.loads((tmp_path / "segmentation/segmentation.json").read_text())
    assert list(written["scores"]) == ["32x1"]
    assert "loss is nan" in written["failed"]["16x1"]


def test_processes_share_the_networks(
    tmp_path: Path, whole: tuple[Path, Scores], data: dict[str, MaskedImages], monkeypatch: pytest.MonkeyPatch
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


def test_bad_images_are_counted_and_classes_named(tmp_path: Path) -> None:
    train, test = (MaskedImages(*write_pairs(tmp_path / part, seed=i)) for i, part in enumerate(("a", "b")))
    (tmp_path / "a/images/2.jpg").write_bytes(b"damaged")
    names = tmp_path / "names.txt"
    names.write_text("=ground\n$\\red{$\n_green\nblue\n")  # what spreadsheets and matplotlib take for theirs
    data, settings = {"train": train, "test": test}, SETTINGS.changed(epochs=1)
    run(tmp_path / "out", data, settings, classes=names, sizes="16x1", max_bad_share=0.2)
    written = json.loads((tmp_path / "out/segmentation/segmentation.json").read_text())
    assert written["bad_images"] == {"train": 1, "test": 0}
    assert written["details"]["16x1"]["training_images"] == 7
    named = [name for name in written["details"]["16x1"] if name.startswith("iou")]
    assert named[:3] == ["iou =ground", "iou $\\red{$", "iou _green"]  # blue is not true anywhere, but may be predicted
    lines = (tmp_path / "out/segmentation/classes.csv").read_text().splitlines()
    assert lines[1].startswith("'=ground,")
    assert lines[-1].startswith("blue,")


@pytest.mark.parametrize(
    ("over", "text"),
    [
        (
            {"crop": 32},
            r"'0.jpg' has 24 pixels, less than the window of 32.*at most 24",
        ),
        ({"crop": 24, "resize": 16}, r"has 16 pixels after --resize.*--resize 24"),
        ({"stride": 25}, r"With --stride 25, windows of 24 pixels leave gaps. Set --stride to at most 24"),
        ({"batch_size": 10}, r"--batch-size 10 is larger than the number of images, 9"),
    ],
)
def test_settings_that_do_not_suit_the_images(
    tmp_path: Path, data: dict[str, MaskedImages], over: dict[str, Any], text: str
) -> None:
    models = Models(FAMILY)
    with pytest.raises(UserError, match=text):
        run(tmp_path, data, SETTINGS.changed(**over), models=models)
    assert models.made == []
    assert not (tmp_path / "segmentation").exists()


def test_wrong_requests(tmp_path: Path, data: dict[str, MaskedImages]) -> None:
    for options, text in (
        ({"save_every": 0}, "--save-every must be at least 1"),
        ({"name": "a/b"}, "without slashes, got 'a/b'"),
        ({"sizes": "64x1"}, "64x1"),
        ({"limit": 99}, "--limit 99 is more than the number of images in .* 9:"),
        ({"test": data["train"]}, "All 9 test images .* are also among the training images"),
        ({"train": MaskedImages(data["train"].images, data["test"].masks)}, "9 images in .* have no mask in .*'5.jpg'"),
        ({"classes": tmp_path / "none.txt"}, "class names in .* cannot be read"),
        ({"ignore": 2}, "only 3 of the ids from 0 to 255"),
    ):
        with pytest.raises(UserError, match=text):
            scores_of(segment_networks, source(tmp_path), SETTINGS, **{**data, "sizes": "16x1", **options})
    assert not (tmp_path / "segmentation").exists()


def test_last_map_of_a_short_transformer(tmp_path: Path, data: dict[str, MaskedImages]) -> None:
    run(tmp_path, data, SETTINGS.changed(epochs=1, taps="last"), sizes="16x2")
    about = json.loads((tmp_path / "segmentation/models/16x2/segmentation.json").read_text())
    assert about["indices"] == [1]
    assert about["levels"] == [[16, 8.0]] * 4


def test_damaged_models_are_not_handed_out(
    tmp_path: Path, data: dict[str, MaskedImages], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmented, "_indices", lambda network: [0])  # of blocks 0 and 1
    with pytest.raises(RuntimeError, match="not the one that was trained"):
        run(tmp_path, data, SETTINGS.changed(epochs=1, taps="last"), sizes="16x2")
    assert not list((tmp_path / "segmentation/models").iterdir())


def test_networks_of_one_image_size(tmp_path: Path, data: dict[str, MaskedImages]) -> None:
    mixer = model_source("mixer_s32_224", branch="untrained", out=tmp_path, image_size=None)
    with pytest.raises(UserError, match=r"cannot process images of 32x32 pixels"):
        segment_networks(mixer, SETTINGS.changed(crop=24), **data)


def test_whole_images_and_scales(tmp_path: Path, data: dict[str, MaskedImages]) -> None:
    settings = SETTINGS.changed(epochs=1, whole=True, test_scales=(0.75, 1.0), test_flip=True, crop=16)
    found = run(tmp_path, data, settings, sizes="16x1")
    windows = run(tmp_path / "windows", data, settings.changed(whole=False), sizes="16x1")
    assert found != windows


def test_command(
    tmp_path: Path, whole: tuple[Path, Scores], data: dict[str, MaskedImages], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(whole[0] / "segmentation/models/16x1")
    named = {f"{part}{what}": value for part, each in data.items() for what, value in (
        ("", each.images), ("_masks", each.masks))}  # fmt: skip
    commands.segmentation(path, **named, flags=Segmentation(epochs=1, crop=16), options=Options(out=tmp_path))
    shown = capsys.readouterr().out
    assert "16x1" in shown
    assert "miou" in shown
    assert "±: half of the 95 % interval" in shown
    for what in ("segmentation.csv", "classes.csv", "models", "pictures"):
        assert f"{tmp_path}/segmentation/{what}" in shown
    settings = json.loads((tmp_path / "segmentation/segmentation.json").read_text())["settings"]
    assert (settings["epochs"], settings["crop"], settings["lr"]) == (1, 16, Segmentation().lr)
    with pytest.raises(UserError, match="no preset 'mine'"):
        commands.segmentation(path, **named, preset="mine")


def test_flags() -> None:
    app = App()
    app.command(commands.segmentation)
    words = (
        "segmentation runs/mine --train a --train-masks b --test c --test-masks d --ignore 11 --no-frozen "
        "--scale 0.5 1.5 --test-scales 0.75 1 --whole --sizes 16x1"
    )
    _, bound, _ = app.parse_args(words.split())
    flags = bound.arguments["flags"]
    given = {"frozen": False, "scale": (0.5, 1.5), "test_scales": (0.75, 1.0), "whole": True}
    assert flags.model_dump(exclude_unset=True) == given
    assert flags.over(SETTINGS) == SETTINGS.changed(**given)
    assert bound.arguments["options"].sizes == ("16x1",)
    assert bound.arguments["ignore"] == 11
    arguments = app["segmentation"].assemble_argument_collection()
    names = {name for argument in arguments if argument.parse for name in argument.names}
    assert {f"--{name.replace('_', '-')}" for name in Segmentation.model_fields} - names == {"--warmup-lr"}


def test_colours() -> None:
    colours = class_colours(150)
    assert colours.shape == (150, 3)
    assert len(np.unique(colours.round(6), axis=0)) == 150
    picture = coloured(np.array([[0, -1], [149, 255]]), colours)
    assert np.array_equal(picture[0, 0], colours[0])
    assert np.array_equal(picture[1, 0], colours[149])
    assert (picture[:, 1] == 0).all()
    path = results_file(source(Path("x"), branch="untrained"), "segmentation")
    assert path == Path("x/segmentation-untrained/segmentation.json")
