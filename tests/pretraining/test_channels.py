"""Runs on images of other channels and more bits than 8-bit RGB, from the files to what is handed on."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from rich.console import Console

import poa
import tiny
from poa.config.channels import Values
from poa.config.pretraining import Config
from poa.data.index import open_index
from poa.errors import UserError
from poa.export.about import read_about
from poa.models.run import Run
from poa.pretraining.channels import with_channels
from poa.training.checkpoint import checkpoints, load_checkpoint
from poa.training.metrics import read_metrics
from trained import assert_same_state

GIVEN: dict[str, Any] = {"limit": None, "epochs": 1, "batch_size": 8, "saving": {"every_epochs": 0.5}}


def write_set(folder: Path, channels: int) -> Path:
    """Two classes, of twelve bits in 16: grey PNGs, or arrays."""
    drawn = np.random.default_rng(0)
    for number in range(24):
        image = drawn.integers(0, 2000, (16, 16, channels)) + 2000 * (number % 2)
        file = folder / f"{number // 16}-{number % 2}" / f"{number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if channels == 1:
            Image.fromarray(image[:, :, 0].astype(np.uint16)).save(f"{file}.png")
        else:
            np.save(file, image.astype(np.uint16))
    return folder


def labelled(images: Path, part: int) -> str:
    """A list of the first or the last images, with their classes."""
    files = sorted(each for each in images.rglob("*.*") if each.parent.name[0] == str(part) and each.suffix != ".csv")
    file = images.parent / f"{part}.csv"
    file.write_text("".join(f"{each},{each.parent.name[-1]}\n" for each in files))
    return str(file)


@pytest.fixture(scope="module", params=[1, 8])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("channels")
    images = write_set(folder / "images", request.param)
    of_images = {"data": str(images), "out": str(folder / "run"), "channels": request.param}
    return poa.pretrain(**tiny.settings("vit", **GIVEN, **of_images))


def test_mean_and_deviation_are_measured_and_kept(run: Run) -> None:
    views, number = run.config.views, run.config.channels
    assert number is not None
    assert views.mean == pytest.approx((2000 / 65535,) * number, rel=0.05)
    assert views.std == pytest.approx((np.sqrt(2000**2 / 12 + 1000**2) / 65535,) * number, rel=0.05)
    assert run.preprocessing.values == Values(number)
    weights = run.teacher.model.patch_embed.proj.weight  # type: ignore[union-attr]
    assert weights.shape == (64, number, 8, 8)


def test_it_goes_on_as_if_it_had_not_stopped(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    _, *later = checkpoints(tmp_path / "run/checkpoints")
    for file in later:
        file.unlink()
    settings = {"data": run.config.data, "channels": run.config.channels, "out": str(tmp_path / "run")}
    again = poa.pretrain(resume=True, **tiny.settings("vit", **GIVEN, **settings))
    assert read_metrics(again.paths.metrics) == read_metrics(run.paths.metrics)
    assert_same_state(load_checkpoint(later[-1]), load_checkpoint(run.checkpoint))


def test_its_sizes_are_scored_extracted_and_loaded(run: Run, tmp_path: Path) -> None:
    number, images = run.preprocessing.values.number, Path(run.config.data)
    sets = {"train": labelled(images, 0), "test": labelled(images, 1)}
    scores = poa.evaluate(run, **sets, ks=(1,), sizes="32x2")["32x2"]
    assert scores["top1@1"] == 100
    folder = run.extract("32x2")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    known = timm.data.resolve_model_data_config(model)
    assert known["input_size"] == (number, 16, 16)
    assert (tuple(known["mean"]), tuple(known["std"])) == (run.config.views.mean, run.config.views.std)
    stored = np.full((number, 16, 16), 1000, np.uint16)
    expected = run.features(torch.from_numpy(stored), size="32x2")
    mean, std = (np.float32(known[each]).reshape(-1, 1, 1) for each in ("mean", "std"))
    by_hand = (stored.astype(np.float32) / 65535 - mean) / std
    assert torch.allclose(model(torch.from_numpy(by_hand)[None]), expected, atol=1e-4)
    assert poa.evaluate(folder, **sets, ks=(1,), out=tmp_path / "eval")["32x2"] == scores


@pytest.mark.parametrize("run", [8], indirect=True)  # one takes seconds
def test_an_exported_size_takes_its_channels(run: Run, tmp_path: Path) -> None:
    (file,) = poa.export_models(run, sizes="32x2", out=tmp_path).files
    session = onnxruntime.InferenceSession(file.file)
    normalised = torch.randn(3, 8, 16, 16)
    (found,) = session.run(None, {"images": normalised.numpy()})
    assert np.allclose(found, run.network("32x2")(normalised).cls.numpy(), atol=1e-4)
    about = json.loads(session.get_modelmeta().custom_metadata_map["poa"])
    assert about["input"] == "images: 8 channels, float32, normalised, batch x 8 x height x width"
    assert about["preprocessing"]["channels"] == 8
    assert read_about(session.get_modelmeta().custom_metadata_map, file="").preprocessing == run.preprocessing
    pixels = poa.export_models(run, sizes="32x2", out=tmp_path, pixels=True)
    assert "sees 8 channels with all their bits. Leave out --with-preprocessing" in pixels.refused["32x2-pixels.onnx"]


@pytest.mark.parametrize(
    ("over", "said"),
    [
        (
            {"channels": 2, "views": {"mean": [0.1], "std": [0.1]}},
            "--views.mean has 1 value and .*std 1, but .* 2 c",
        ),
        ({"channels": 2, "views": {"mean": [0.1] * 2}}, "--views.mean has 2 values and --views.std 3"),
        ({"value_range": [0, 1]}, "--value-range 0 1 needs --channels, and two different values"),
        ({"channels": 2, "value_range": [5, 5]}, "--value-range 5 5 needs"),
        ({"views": {"mean": [0.5] * 4, "std": [0.5] * 4}}, "--views.mean has 4 values .* but images have 3 channels"),
        (
            {"channels": 2},
            r"No image tried in .*\(not supported: it has 1 channel, and --channels is 2",
        ),
    ],
)
def test_channels_that_do_not_fit_are_refused(over: dict[str, Any], said: str, tmp_path: Path) -> None:
    index = open_index(write_set(tmp_path / "images", 1), cache=tmp_path / "cache")
    with pytest.raises(UserError, match=said):
        with_channels(Config.model_validate(over), index, Console(quiet=True))


def test_what_is_given_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = open_index(write_set(tmp_path / "images", 1), cache=tmp_path / "cache")
    console = Console(stderr=True, width=200)
    given = Config(channels=1, views={"mean": [0.1], "std": [0.2]})  # type: ignore[arg-type]
    assert with_channels(given, index, console) == given
    assert "Saturation, hue and conversion to grey are left out" in capsys.readouterr().err
    for usual in (Config(), Config(channels=3)):
        assert with_channels(usual, index, console) is usual
    assert not capsys.readouterr().err
