"""The commands that train models of tasks without test images: what they write, and what they say."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import poa as library
from command import poa
from poa.config.detection import Detection
from poa.config.finetune import Finetune
from poa.config.segmentation import Segmentation
from poa.errors import UserError
from poa.models.source import trained_folder
from poa.tasks import evaluate
from poa.tasks.detection import train as detection_training
from poa.tasks.detection.data import CocoImages
from poa.tasks.segmentation import train as segmentation_training
from poa.tasks.segmentation.masks import MaskedImages
from refusals import refused
from supervised import Models, family, scores_of, source_of_models
from tasks.detection.coco_images import write_coco
from tasks.segmentation.mask_images import write_pairs

FAMILY = family(image_size=24, patch_size=8)
KINDS = {"finetune": "finetune", "segment": "segmentation", "detect": "detection"}
"""The name of the files by command."""
WORDS = {
    "finetune": "--train digits/train --limit 32 --epochs 1 --batch-size 8",
    "segment": "--train DATA/pairs/images --masks DATA/pairs/masks --epochs 1 --batch-size 4",
    "detect": "--train DATA/coco/images --annotations DATA/coco/instances.json --epochs 1 --batch-size 2 --channels 8 "
    "--hidden 16 --regions 16 --sides 32 --test-side 32 --longest 48",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_pairs(root / "pairs", num_images=4)
    write_pairs(root / "test-pairs", num_images=2, seed=1)
    write_coco(root / "coco", num_images=4)
    write_coco(root / "test-coco", num_images=2, seed=1)
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[tuple[Path, dict[str, list[str]]]]:
    """Models of each command in a folder, and the names of the networks that were made for it."""
    out, made = tmp_path_factory.mktemp("trained"), dict[str, list[str]]()
    with pytest.MonkeyPatch.context() as patch:
        for command, words in WORDS.items():
            models = Models(FAMILY)
            patch.setattr(
                "poa.models.source.model_source",
                lambda *_, models=models, **given: source_of_models(given["out"] or Path("eval"), models),
            )
            for _ in range(2):  # what is there is not trained again
                line = f"{words} --sizes 16x1 --out {out}".replace("DATA", str(data))
                assert poa(command, "runs/mine", *line.split()) == 0
            made[command] = models.made
        yield out, made


def with_test(command: str, out: Path, data: Path) -> Any:
    """The same network trained by the function that also tests."""
    source = partial(source_of_models, out, Models(FAMILY))
    pairs = {part: MaskedImages(str(data / at / "images"), str(data / at / "masks")) for part, at in (
        ("train", "pairs"), ("test", "test-pairs"))}  # fmt: skip
    coco = {part: CocoImages(str(data / at / "images"), data / at / "instances.json") for part, at in (
        ("train", "coco"), ("test", "test-coco"))}  # fmt: skip
    detector = {"channels": 8, "hidden": 16, "regions": 16, "sides": (32,), "test_side": 32, "longest": 48}
    runs: dict[str, Callable[..., Any]] = {
        "finetune": partial(
            evaluate.finetune_networks, source(), Finetune(epochs=1, batch_size=8),
            train="digits/train", test="digits/test", limit=32,
        ),
        "segment": partial(evaluate.segment_networks, source(), Segmentation(epochs=1, batch_size=4), **pairs),
        "detect": partial(
            evaluate.detect_networks, source(), Detection(epochs=1, batch_size=2, **detector), **coco
        ),
    }  # fmt: skip
    return scores_of(lambda source, **options: runs[command](**options), source(), sizes="16x1")


@pytest.mark.parametrize("command", KINDS)
def test_models_are_those_of_a_training_with_test_images(
    trained: tuple[Path, dict[str, list[str]]],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    for module, sheet in ((segmentation_training, "mask_sheet"), (detection_training, "object_sheet")):
        monkeypatch.setattr(module, sheet, lambda *_, **__: None)
    scores = with_test(command, tmp_path, data)["16x1"]
    found, expected = (root / KINDS[command] / "models/16x1" for root in (trained[0], tmp_path))
    assert {path.name for path in found.iterdir()} == {path.name for path in expected.iterdir()}
    for file in expected.glob("*.safetensors"):
        weights = load_file(file)
        assert all(torch.equal(value, weights[name]) for name, value in load_file(found / file.name).items()), file
    if command == "finetune":  # what it says is what was scored
        rows = library.predict(found, "digits/test", out=tmp_path / "labels.csv").read_text().splitlines()[1:]
        right = [row.split("/")[0] == row.split(",")[1] for row in rows]
        assert 100 * sum(right) / len(right) == pytest.approx(scores["top1"])


@pytest.mark.parametrize("command", KINDS)
def test_files_without_scores(trained: tuple[Path, dict[str, list[str]]], command: str) -> None:
    out, made = trained
    kind = KINDS[command]
    assert made[command] == ["16x1"], "trained again, or not at all"
    assert {path.name for path in (out / kind).iterdir()} == {f"{kind}.csv", f"{kind}.json", "models"}
    written = json.loads((out / kind / f"{kind}.json").read_text())
    assert written["scores"] == {"16x1": {}}
    assert written["bad_images"] == {"train": 0}
    assert "test" not in written["settings"]
    assert written["details"]["16x1"]["training_loss"] > 0


def test_what_is_said(
    trained: tuple[Path, dict[str, list[str]]], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = trained[0]
    capsys.readouterr()
    assert poa("finetune", "runs/mine", *WORDS["finetune"].split(), "--sizes", "16x1", "--out", out) == 0
    first, use = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{out}/finetune/models/16x1: 32 training images, training loss ")
    assert use == f"Use it: poa predict {out}/finetune/models/16x1 IMAGES --out labels.csv"
    changed = refused(capsys, "finetune", "runs/mine", *WORDS["finetune"].split(), "--flip", "0", "--sizes", "16x1",
                      "--out", str(out))  # fmt: skip
    assert "finetune.json holds results made with other settings: flip (0.5 before, 0.0 now)" in changed
    assert "no labels" in refused(
        capsys, "finetune", "runs/mine", "--train", str(data / "coco/images"), "--out", str(out)
    )
    line = f"{WORDS['segment']} --classes {tmp_path}/none.txt".replace("DATA", str(data))
    assert "none.txt cannot be read" in refused(capsys, "segment", "runs/mine", *line.split())
    line = WORDS["detect"].replace("DATA", str(data)).replace("instances.json", "none.json")
    assert "none.json cannot be read" in refused(capsys, "detect", "runs/mine", *line.split())


def test_images_that_cannot_be_read(
    trained: tuple[Path, dict[str, list[str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, masks = write_pairs(tmp_path / "pairs", num_images=4)
    next(Path(images).iterdir()).write_bytes(b"damaged")
    words = f"--train {images} --masks {masks} --epochs 1 --batch-size 2 --sizes 16x1 --out {tmp_path}"
    assert "25.0%, more than --max-bad-share 0.01" in refused(capsys, "segment", "runs/mine", *words.split())
    assert poa("segment", "runs/mine", *words.split(), "--max-bad-share", "0.5") == 0
    assert "could not be read, such as '0.jpg'. The models were trained on the others." in capsys.readouterr().err


def test_old_names_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    for name, verb, words in (
        ("finetune", "finetune", "--train digits/train --test none"),
        ("transfer", "finetune", "--train digits/train --test none --preset cars-s"),
        ("segmentation", "segment", "--train none --train-masks none --test none --test-masks none"),
        ("detection", "detect", "--train-images a --train-annotations b --test-images c --test-annotations d"),
    ):
        assert poa("evaluate", name, "test_vit", "--branch", "untrained", *words.split()) == 2
        text = capsys.readouterr().err
        assert f"Note: This command trains and tests. To train the same models without test images, use `poa {verb}`." \
            in text  # fmt: skip


def test_the_library_does_as_the_commands(
    trained: tuple[Path, dict[str, list[str]]], data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the settings of the commands, so that nothing is trained again."""
    out, models = trained[0], Models(FAMILY)
    monkeypatch.setattr("poa.tasks.train.model_source", lambda *_, **given: source_of_models(given["out"], models))
    shared = {"sizes": "16x1", "out": out, "epochs": 1}
    coco, detector = data / "coco", {"channels": 8, "hidden": 16, "regions": 16, "sides": (32,), "test_side": 32}
    found = [
        library.finetune("runs/mine", train="digits/train", limit=32, batch_size=8, **shared),
        library.segment("runs/mine", train=data / "pairs/images", masks=data / "pairs/masks", batch_size=4, **shared),
        library.detect("runs/mine", train=coco / "images", annotations=coco / "instances.json", batch_size=2,
                       longest=48, **detector, **shared),
    ]  # fmt: skip
    assert found == [{"16x1": out / kind / "models/16x1"} for kind in KINDS.values()]
    assert models.made == []
    path = library.predict(found[0]["16x1"], data / "pairs/images", out=tmp_path / "labels.csv")
    assert path.read_text().count("\n") == 5
    with pytest.raises(UserError, match=r"Unknown setting '--epoch'\. Did you mean 'epochs'\?"):
        library.finetune("runs/mine", train="digits/train", epoch=1)


def test_where_models_go(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("epochs: 1\n")
    assert trained_folder(str(run)) == run / "trained"
    assert trained_folder(str(tmp_path)) == Path("trained", tmp_path.name)
    assert trained_folder("hf-hub:timm/resnet18") == Path("trained/resnet18")
