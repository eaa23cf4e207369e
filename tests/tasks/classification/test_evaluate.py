import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from cyclopts import App
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from poa import distributed
from poa.cli import tasks as commands
from poa.cli.evaluate import Images, Options
from poa.config.finetune import Finetune
from poa.data.augment import normalise
from poa.data.index import ImageIndex, open_index
from poa.data.loader import images_for_scoring
from poa.errors import UserError
from poa.evaluation.results import NotScored, Scores
from poa.models.source import ModelSource, model_source
from poa.tasks.classification import train as training
from poa.tasks.evaluate import finetune_networks
from poa.training import checkpoint
from supervised import MEAN, STD, Models, family, scores_of, source_of_models, stop

FAMILY = family(image_size=8, patch_size=4)
SETTINGS = Finetune(epochs=3, batch_size=16, crop_scale=(0.8, 1.0), flip=0.0, lr=3e-3)


def source(out: Path, models: Models | None = None, **options: Any) -> ModelSource:
    return source_of_models(out, models or Models(FAMILY), **options)


def run(out: Path, settings: Finetune = SETTINGS, models: Models | None = None, **options: Any) -> Scores:
    defaults = {"train": "digits/train", "test": "digits/test", "limit": 64, "sizes": ("16x1", "32x1")}
    return scores_of(finetune_networks, source(out, models), settings, **{**defaults, **options})


def folder(root: Path, *, classes: Sequence[str], seed: int = 0, per_class: int = 4) -> str:
    generator = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = generator.integers(256, size=(8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{seed}-{number}.png")
    return str(root)


def predicted(model: nn.Module, index: ImageIndex) -> float:
    (batch,) = images_for_scoring(index, size=8, resize=8, batch_size=1000)
    with torch.no_grad():
        found = model(normalise(batch.images, mean=MEAN, std=STD)).argmax(dim=1)
    return 100 * float((found == torch.from_numpy(index.labels())).double().mean())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Scores]:
    """Both networks, trained without a stop."""
    out = tmp_path_factory.mktemp("whole")
    return out, run(out, sizes=("32x1", "16x1"))


def test_files(whole: tuple[Path, Scores]) -> None:
    tmp_path, found = whole
    written = json.loads((tmp_path / "finetune/finetune.json").read_text())
    assert written["protocol"] == "finetune"
    assert written["scores"] == found
    assert list(written["scores"]) == ["16x1", "32x1"]
    assert list(written["scores"]["16x1"]) == ["top1", "top5"]
    assert written["bad_images"] == {"train": 0, "test": 0}
    assert written["settings"]["epochs"] == 3
    assert written["settings"]["weights"] == "teacher at step 5"
    assert written["settings"]["image_size"] == 8
    assert written["details"]["16x1"]["training_images"] == 64
    low, high = written["intervals"]["16x1"]["top1"]
    assert low < found["16x1"]["top1"] < high
    lines = list(csv.DictReader((tmp_path / "finetune/finetune.csv").read_text().splitlines()))
    assert [(line["size"], float(line["top1"])) for line in lines] == [
        (name, found[name]["top1"]) for name in ("16x1", "32x1")
    ]
    assert sorted(path.name for path in (tmp_path / "finetune").iterdir()) == [
        "finetune.csv",
        "finetune.json",
        "models",
    ]


def test_models_load_with_classifier_and_class_names(whole: tuple[Path, Scores]) -> None:
    tmp_path, found = whole
    path = tmp_path / "finetune/models/32x1"
    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    assert list(model.pretrained_cfg["label_names"]) == [str(digit) for digit in range(10)]
    assert (model.num_classes, tuple(model.pretrained_cfg["mean"])) == (10, MEAN)
    assert tuple(model.pretrained_cfg["input_size"]) == (3, 8, 8)
    assert predicted(model, open_index("digits/test")) == pytest.approx(found["32x1"]["top1"])
    card = (path / "README.md").read_text()
    assert "VisionTransformer, fine-tuned on 10 classes. " in card
    assert "| trained on | digits/train" in card
    assert f"top1 {found['32x1']['top1']:.1f} % (" in card


def test_two_layered_classifier_lies_beside_the_model(tmp_path: Path) -> None:
    found = run(tmp_path, SETTINGS.changed(head="mlp", epochs=1), sizes="32x1")
    path = tmp_path / "finetune/models/32x1"
    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    head = nn.Sequential(nn.Linear(32, 2048), nn.GELU(), nn.Linear(2048, 10))
    head.load_state_dict(load_file(path / "classifier.safetensors"))
    assert model.num_classes == 0
    assert predicted(nn.Sequential(model, head), open_index("digits/test")) == pytest.approx(found["32x1"]["top1"])


@pytest.mark.parametrize("after", [1, 3, 4])
def test_stopped_training_goes_on(
    tmp_path: Path, whole: tuple[Path, Scores], monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    stop(monkeypatch, run, tmp_path, after=after)
    assert (tmp_path / "finetune/work-finetune/16x1").exists() == (after < 4)
    models, begun, plain = Models(FAMILY), [], training.finetune
    monkeypatch.setattr(training, "finetune", lambda *a, **k: (begun.append(k["hooks"].start), plain(*a, **k))[1])
    assert run(tmp_path, models=models) == whole[1]
    assert models.made == (["32x1"] if after == 4 else ["16x1", "32x1"])
    assert models.drop_paths == {SETTINGS.drop_path}
    assert begun[0]["epoch"] == (1 if after == 4 else after)
    for name in ("16x1", "32x1"):
        file = Path("finetune/models", name, "model.safetensors")
        found, expected = load_file(tmp_path / file), load_file(whole[0] / file)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert not (tmp_path / "finetune/work-finetune").exists()


def test_checkpoints_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    plain = checkpoint.save_checkpoint
    monkeypatch.setattr(
        checkpoint, "save_checkpoint", lambda work, epoch, *a, **k: (saved.append(epoch), plain(work, epoch, *a, **k))
    )
    run(tmp_path, save_every=2, sizes="16x1")
    assert saved == [2, 3]


def test_finished_networks_are_not_trained_again(tmp_path: Path) -> None:
    settings = SETTINGS.changed(epochs=1)
    first = run(tmp_path, settings, sizes="16x1")
    models = Models(FAMILY)
    both = run(tmp_path, settings, models=models)
    assert models.made == ["32x1"]
    assert both["16x1"] == first["16x1"]
    assert run(tmp_path, settings, models=models) == both
    assert models.made == ["32x1"]


def test_other_settings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SETTINGS.changed(epochs=1)
    run(tmp_path, settings, sizes="16x1")
    with pytest.raises(UserError, match=r"lr \(0.003 before, 0.01 now\).*another --name.*--overwrite"):
        run(tmp_path, settings.changed(lr=1e-2))
    found = run(tmp_path, settings.changed(lr=1e-2), sizes="16x1", overwrite=True)
    assert json.loads((tmp_path / "finetune/finetune.json").read_text())["scores"] == found
    stop(monkeypatch, run, tmp_path, settings, after=1, name="other")
    with pytest.raises(UserError, match=r"started with other settings: train \(64 images"):
        run(tmp_path, settings, name="other", limit=80)
    assert run(tmp_path, settings, name="other", limit=80, overwrite=True)


def test_diverged_training_does_not_keep_others_from_being_written(tmp_path: Path) -> None:
    models = Models(FAMILY, spoiled=("16x1",))
    with pytest.raises(NotScored, match=r"1 of 2 networks could not be fine-tuned; the others are in .* 16x1: .* nan"):
        run(tmp_path, SETTINGS.changed(epochs=1), models=models)
    written = json.loads((tmp_path / "finetune/finetune.json").read_text())
    assert list(written["scores"]) == ["32x1"]
    assert "loss is nan" in written["failed"]["16x1"]


def test_bad_images_are_counted(tmp_path: Path) -> None:
    train = folder(tmp_path / "train", classes=("ant", "bee"))
    test = folder(tmp_path / "test", classes=("ant", "bee"), seed=1)
    (tmp_path / "train/ant/0-2.png").write_bytes(b"damaged")
    (tmp_path / "test/bee/1-1.png").write_bytes(b"damaged")
    run(
        tmp_path / "out",
        SETTINGS.changed(batch_size=4),
        train=train,
        test=test,
        limit=None,
        sizes="16x1",
        max_bad_share=0.2,
    )
    written = json.loads((tmp_path / "out/finetune/finetune.json").read_text())
    assert written["bad_images"] == {"train": 1, "test": 1}


def test_processes_share_the_networks(
    tmp_path: Path, whole: tuple[Path, Scores], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = Models(FAMILY)
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "world_size", lambda: 2)
        patch.setattr(distributed, "rank", lambda: 1)
        with pytest.raises(AssertionError):  # the other process's network is missing
            run(tmp_path, models=models)
    assert models.made == ["32x1"]
    assert run(tmp_path, models=models) == whole[1]
    assert models.made == ["32x1", "16x1"]


def test_folders_can_be_fine_tuned(tmp_path: Path, whole: tuple[Path, Scores]) -> None:
    again = model_source(str(whole[0] / "finetune/models/16x1"), out=tmp_path / "again")
    options = {"train": "digits/train", "test": "digits/test", "limit": 64}
    (name,) = finetune_networks(again, SETTINGS.changed(epochs=1), **options).scores
    assert name == "16x1"
    assert timm.create_model(f"local-dir:{tmp_path}/again/finetune/models/16x1", pretrained=True).num_classes == 10


@pytest.mark.parametrize("name", ["resnet10t", "test_vit"])
def test_timm_networks(tmp_path: Path, name: str) -> None:
    plain = model_source(name, branch="untrained", image_size=32, out=tmp_path)
    options = {"train": "digits/train", "test": "digits/test", "limit": 32}
    found = finetune_networks(plain, SETTINGS.changed(epochs=1, drop_path=0.0), **options).scores
    assert list(found) == [name]
    model = timm.create_model(f"local-dir:{tmp_path}/finetune-untrained/models/{name}", pretrained=True)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_command(tmp_path: Path, whole: tuple[Path, Scores], capsys: pytest.CaptureFixture[str]) -> None:
    path, data = str(whole[0] / "finetune/models/16x1"), {"images": Images("digits/train", "digits/test")}
    flags, options = Finetune(epochs=1, batch_size=16), Options(limit=64, out=tmp_path)
    commands.finetune(path, **data, flags=flags, options=options)
    shown = capsys.readouterr().out
    assert "16x1" in shown
    assert f"Scores: {tmp_path}/finetune/finetune.csv" in shown
    assert f"Models: {tmp_path}/finetune/models" in shown
    settings = json.loads((tmp_path / "finetune/finetune.json").read_text())["settings"]
    assert (settings["epochs"], settings["batch_size"], settings["lr"]) == (1, 16, Finetune().lr)
    commands.transfer(path, **data, preset="cifar10-s", flags=flags, options=options)
    settings = json.loads((tmp_path / "transfer/finetune.json").read_text())["settings"]
    assert (settings["epochs"], settings["lr"], settings["repeats"]) == (1, 8e-6, 3)
    with pytest.raises(UserError, match="no preset 'imagenet-vit-s'"):
        commands.transfer(path, **data, preset="imagenet-vit-s")
    with pytest.raises(UserError, match="no preset 'mine'"):
        commands.finetune(path, **data, preset="mine")


def test_flags() -> None:
    app = App()
    app.command(commands.finetune)
    words = "finetune runs/mine --train a --test b --crop-scale 0.2 0.9 --rand-augment none --sizes 16x1 --share 0.1"
    _, bound, _ = app.parse_args(words.split())
    flags = bound.arguments["flags"]
    given = {"crop_scale": (0.2, 0.9), "rand_augment": "none", "share": 0.1}
    assert flags.model_dump(exclude_unset=True) == given
    assert flags.over(SETTINGS) == SETTINGS.changed(**given)
    assert bound.arguments["options"].sizes == ("16x1",)
    arguments = app["finetune"].assemble_argument_collection()
    names = {name for argument in arguments if argument.parse for name in argument.names}
    assert {f"--{name.replace('_', '-')}" for name in Finetune.model_fields} - names == {"--warmup-lr"}


def test_wrong_requests(tmp_path: Path) -> None:
    train = folder(tmp_path / "train", classes=("ant", "bee"))
    for options, words in (
        ({"save_every": 0}, "--save-every must be at least 1"),
        ({"name": "a/b"}, "without slashes, got 'a/b'"),
        ({"sizes": "64x1"}, "64x1"),
        ({"limit": 15}, "--batch-size 16 is larger than the number of images, 15"),
        ({"settings": SETTINGS.changed(per_class=9)}, "9 images per class is not possible"),
        ({"settings": SETTINGS.changed(share=0.01)}, "--batch-size 16 is larger than the number of images, 10"),
        ({"settings": SETTINGS.changed(rand_augment="nonsense")}, "--rand-augment nonsense"),
        ({"train": folder(tmp_path / "flat", classes=(".",)), "limit": None}, "flat have no labels"),
        ({"train": folder(tmp_path / "one", classes=("1",)), "limit": None}, "the same label '1'"),
        ({"train": train, "limit": None}, "classes that the training images lack: '0', '1'"),
    ):
        models = Models(FAMILY)
        with pytest.raises(UserError, match=words):
            run(tmp_path / "out", models=models, **{"sizes": "16x1", **options})
        assert models.made == []
    assert not (tmp_path / "out").exists()
