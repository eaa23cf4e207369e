import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

import poa
import tiny
from conformance import filler
from poa import files
from poa.config import resolve
from poa.data.images import image_tensor
from poa.data.resize import centre_crop
from poa.errors import UserError
from poa.models import opening
from poa.models.run import Run
from poa.models.source import model_source
from poa.training.checkpoint import load_checkpoint, save_checkpoint

SIZES = ("32x2", "32x3", "48x2", "48x3", "64x2", "64x3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    poa.pretrain(**tiny.settings(out=str(folder), epochs=1, seed=3))
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return poa.load(folder)


def images(number: int = 4, side: int = 16) -> Tensor:
    return ((filler((number, 3, side, side), 3) + 0.5) * 255).to(torch.uint8)


def test_the_public_names_need_no_torch_to_be_imported() -> None:
    assert {"UserError", "cut", "evaluate", "export_models", "finetune", "load", "pretrain"} < set(poa.__all__)
    program = (
        "import sys, poa; assert all(hasattr(poa, name) for name in poa.__all__); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=dict(os.environ))


def test_pretrain_returns_the_run(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("epochs: 1\nmodel: {depth_min: 3}\n")
    given = tiny.settings(out=tmp_path / "run")
    del given["epochs"]
    del given["model"]["depth_min"]
    run = poa.pretrain(config=tmp_path / "settings.yaml", **given)
    assert (run.step, run.sizes()) == (4, ("32x3", "48x3", "64x3"))
    assert poa.load(str(tmp_path / "run")).config == run.config


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_has_one_writer(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool) -> None:
    monkeypatch.setattr(files, "PATIENCE_SECONDS", 0.0)
    given = {"out": str(folder), "resume": True} if resume else tiny.settings(out=str(tmp_path / "new"))
    with (
        opening.writing(tiny.config(out=given["out"])),
        pytest.raises(UserError, match=f"{given['out']} is in use by process {os.getpid()} on "),
    ):
        poa.pretrain(**given)


def test_paths_anywhere_in_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poa.pretraining.launch.train", lambda config, **_: config)
    config: Any = poa.pretrain(data=Path("a"), monitor={"data": Path("b/c")}, distill={"teacher": Path("d")})
    assert (config.data, config.monitor.data, config.distill.teacher) == ("a", "b/c", "d")


def test_a_run_knows_its_sizes(run: Run) -> None:
    assert run.sizes() == SIZES
    assert str(run.space.intact) == SIZES[-1]
    assert run.step == 4
    assert run.config.seed == 3


def test_all_sizes_are_cut_out_of_the_teacher(run: Run) -> None:
    state = load_checkpoint(run.checkpoint)["method"]
    network = run.network("32x2")
    assert not network.training
    last = network.get_parameter("model.blocks.1.mlp.fc1.weight")
    assert torch.equal(last, state["teacher.backbone.model.blocks.2.mlp.fc1.weight"][:128, :32] * 2)
    whole = dict(run.network("64x3").named_parameters())
    assert all(torch.equal(value, state[f"teacher.backbone.{name}"]) for name, value in whole.items())
    assert not torch.equal(whole["model.pos_embed"], state["student.backbone.model.pos_embed"])


@pytest.mark.parametrize("size", SIZES)
def test_features_are_those_of_the_extracted_model(run: Run, size: str, tmp_path: Path) -> None:
    features = run.features(images(), size=size)
    assert features.shape == (4, int(size.split("x")[0]))
    model = timm.create_model(f"local-dir:{run.extract(size, out=tmp_path / size)}", pretrained=True).eval()
    mean, std = (torch.tensor(each)[:, None, None] for each in (run.config.views.mean, run.config.views.std))
    with torch.no_grad():
        assert torch.equal(features, model((images().float() / 255 - mean) / std))
    assert torch.equal(features, run.features(images(), size=run.space.find(size)))


def test_features_of_other_image_sizes(run: Run) -> None:
    assert run.features(images(2, 40), size="48x2").shape == (2, 48)


def test_features_of_images_in_other_forms(run: Run, tmp_path: Path) -> None:
    bytes_ = images(2)
    arrays = bytes_.permute(0, 2, 3, 1).numpy()
    expected = run.features(bytes_, size="48x2")
    for same in (arrays, [bytes_[0], arrays[1]], list(bytes_), arrays[:, :, ::-1][:, :, ::-1]):
        assert torch.equal(run.features(same, size="48x2"), expected)
    assert torch.equal(run.features(arrays[0], size="48x2"), run.features(bytes_[:1], size="48x2"))
    photo = Image.fromarray(np.asarray(filler((30, 50, 3), 5) * 255 + 127).astype(np.uint8))
    photo.save(tmp_path / "photo.png")
    cropped = centre_crop(image_tensor(photo), size=run.preprocessing.image_size, resize_to=run.preprocessing.resize)
    expected = run.features(cropped, size="48x2")
    for same in (photo, [photo], tmp_path / "photo.png", str(tmp_path / "photo.png")):
        assert torch.equal(run.features(same, size="48x2"), expected)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (torch.rand(1, 3, 16, 16), r"type uint8, got torch\.float32\. Multiply values"),
        (np.zeros((16, 16)), "got float64"),
        (np.zeros((16, 16), np.uint8), r"arrays of height x width x 3.*got 16 x 16\. Turn grey images into RGB"),
        (images(1, 15), r"size 15 is not a multiple of the patch size \d+\. Resize the images"),
        ([], "need the same size in pixels, got none"),
        ([images(1)[0], images(1, 24)[0]], r"got 16x16 and 24x24\. Give PIL images"),
        ("missing.png", r"missing\.png cannot be read: No such file"),
        (Image.fromarray(np.full((4, 4), 0.5, np.float32)), "The image cannot be used"),
    ],
)
def test_images_that_are_refused(run: Run, given: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        run.features(given, size="48x2")


def test_reading_a_run_consumes_no_random_numbers(folder: Path) -> None:
    before = torch.get_rng_state()
    run = poa.load(folder)
    run.features(images(), size="32x2")
    run.untrained("32x2")
    assert torch.equal(torch.get_rng_state(), before)


def test_untrained_networks_are_the_same_at_each_call(run: Run) -> None:
    torch.manual_seed(1)
    first = dict(run.untrained("48x3").named_parameters())
    torch.manual_seed(2)
    second = dict(run.untrained("48x3").named_parameters())
    trained = dict(run.network("48x3").named_parameters())
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not torch.equal(first["model.pos_embed"], trained["model.pos_embed"])
    assert first.keys() == trained.keys()
    assert not run.untrained("48x3").training


def test_models_go_into_the_run_unless_told_otherwise(run: Run, tmp_path: Path) -> None:
    assert run.extract("32x3") == run.folder / "models/32x3"
    assert (run.folder / "models/32x3/model.safetensors").exists()
    assert "step 4" in (run.folder / "models/32x3/README.md").read_text()
    assert run.extract("32x3") == run.folder / "models/32x3"  # which holds it
    (run.folder / "models/32x3/config.json").unlink()
    with pytest.raises(UserError, match="already exists"):
        run.extract("32x3")
    assert run.extract("32x3", out=str(tmp_path / "other")) == tmp_path / "other"


def test_sizes_can_be_scored(run: Run, tmp_path: Path) -> None:
    """And the scores of these weights, but not those of others, are on the model card."""
    digits = Path("digits")
    scores = poa.evaluate_knn(
        run.folder, train=digits / "train", test=digits / "test", sizes=["32x2", "64x3"], limit=200
    )
    assert set(map(str, scores)) == {"32x2", "64x3"}
    file = run.folder / "eval/knn/knn.json"
    found = json.loads(file.read_text())
    for name, content in (("damaged", "{"), ("other", json.dumps(found | {"settings": {"weights": "teacher"}}))):
        (run.folder / "eval" / name).mkdir()
        (run.folder / "eval" / name / "knn.json").write_text(content)
    card = (run.extract("32x2", out=tmp_path / "model") / "README.md").read_text()
    low, high = found["intervals"]["32x2"]["top1@20"]
    assert f"top1@20 {scores['32x2']['top1@20']:.1f} % ({low:.1f} to {high:.1f})" in card
    assert "- knn, train: digits/train, limited to 200 images (200 images); test: digits/test (445 images);" in card
    assert card.count("top1@20") == 1
    assert "| images | digits, 64 images, digest" in card
    assert "| length | 4 steps of 16 images, of a training of 1 epoch |" in card


def test_a_checkpoint_by_its_step(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "run"))
    later = load_checkpoint(copy / "checkpoints/step-00000004.pt")
    for value in later["method"].values():
        value += 1
    save_checkpoint(copy / "checkpoints", 8, later)
    newest, earlier = poa.load(copy), poa.load(copy, checkpoint=4)
    assert (newest.step, earlier.step, poa.load(copy, checkpoint=8).weights) == (8, 4, newest.weights)
    assert torch.equal(earlier.features(images(), size="32x2"), poa.load(folder).features(images(), size="32x2"))
    assert earlier.weights == poa.load(folder).weights == model_source(str(copy), checkpoint=4).weights
    assert earlier.weights != newest.weights
    metrics = copy / "metrics.jsonl"
    metrics.write_text('{"step": 4, "knn/64x3": 50.0}\n{"step": 8, "knn/64x3": 40.0}\n')
    assert model_source(str(copy), checkpoint="best").weights == earlier.weights
    metrics.write_text('{"step": 4, "knn/64x3": 50.0}\n{"step": 8, "knn/64x3": 99.0}\n')
    assert poa.load(copy, checkpoint="best").step == 8
    metrics.write_text('{"step": 5, "knn/64x3": 99.0}\n')
    with pytest.raises(UserError, match=r"No checkpoint of .* has k-NN scores .*one of 4, 8, or leave"):
        poa.load(copy, checkpoint="best")
    with pytest.raises(UserError, match=r"has no checkpoint of step 5\. It has those of 4, 8: choose one of them or `"):
        model_source(str(copy), checkpoint=5)
    with pytest.raises(UserError, match=r"names a step of a run, but branch untrained was not trained\. Leave out"):
        model_source(str(copy), branch="untrained", checkpoint=4)
    with pytest.raises(UserError, match=r"names a step of a run, but resnet18 is not the folder of a run\. Leave out"):
        model_source("resnet18", checkpoint=4)


def test_a_size_that_the_run_has_not(run: Run) -> None:
    for use in (run.network, run.untrained, run.extract, lambda size: run.features(images(), size=size)):
        with pytest.raises(UserError, match=r"has no size '40x2'\. Did you mean '32x2'"):
            use("40x2")


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not the folder of a run: it has no config\.yaml"):
        poa.load(tmp_path)
    (tmp_path / "config.yaml").write_text(resolve.to_yaml(tiny.config()))
    with pytest.raises(UserError, match="has no checkpoint yet"):
        poa.load(tmp_path).features(images(), size="64x3")


def test_files_of_another_run_and_damaged_ones(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "run"))
    (copy / "config.yaml").write_text((copy / "config.yaml").read_text().replace("width_max: 64", "width_max: 80"))
    with pytest.raises(UserError, match=r"other settings than those in config\.yaml: model\.width_max \(64 in the"):
        _ = poa.load(copy).teacher
    save_checkpoint(copy / "checkpoints", 99, {"settings": {}})
    with pytest.raises(UserError, match=r"step-00000099\.pt does not hold the network"):
        _ = poa.load(copy).teacher
    begun = poa.load(folder).config.changed(init="somewhere")
    (copy / "initial.safetensors").write_bytes(b"cut off")
    with pytest.raises(
        UserError, match=r"initial\.safetensors is damaged \(SafetensorError: .*Restore it, or leave out"
    ):
        Run(copy, begun).initial("32x2")


def test_models_carry_how_the_run_sees_images(folder: Path, tmp_path: Path) -> None:
    config = poa.load(folder).config.changed(evaluation={"resize": 20})
    written = Run(folder, config).extract("32x2", out=tmp_path / "model")
    seen = json.loads((written / "config.json").read_text())["pretrained_cfg"]
    assert (tuple(seen["mean"]), tuple(seen["std"])) == (config.views.mean, config.views.std)
    assert (seen["input_size"], seen["crop_pct"]) == ([3, 16, 16], 16 / 20)
