"""Sizes cut out of weights of others, without any training."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import poa
from conformance import filler
from poa import cli
from poa.errors import UserError
from trained import made, randomise, saved

SPACE = {"width_min": 32, "depth_min": [2]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(made(), tmp_path_factory.mktemp("weights") / "theirs")


def test_sizes_are_cut_and_the_largest_is_the_whole(folder: str, tmp_path: Path) -> None:
    weights = poa.cut(folder, image_size=16, **SPACE)
    assert [str(size) for size in weights.space.sizes][:: len(weights.space.sizes) - 1] == ["32x2", "64x3"]
    images = filler((2, 3, 16, 16), 3).float()
    whole = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    same = timm.create_model(f"local-dir:{weights.extract('64x3', out=tmp_path / 'whole')}", pretrained=True).eval()
    small = load_file(weights.extract("32x2", out=tmp_path / "small") / "model.safetensors")
    with torch.inference_mode():
        assert torch.equal(same(images), whole(images))
    last = whole.state_dict()["blocks.2.norm1.weight"]
    assert torch.equal(small["blocks.1.norm1.weight"], last[:32])
    card = (tmp_path / "small/README.md").read_text()
    assert "| from | theirs, cut to 32x2 without any training |" in card
    assert "has lost most of what the whole network knew" in card
    assert "They derive from the weights of theirs, whose licence is not known here" in card


def test_the_command(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    uploaded: list[tuple[Path, str]] = []

    def upload(folder: Path, name: str) -> str:
        uploaded.append((folder, name))
        return f"https://hub/{name}"

    monkeypatch.setattr("poa.models.hub.upload", upload)
    words = ["extract", "--from", folder, "--model.width-min", "32", "--model.depth-min", "2", "--size", "32x2", "48x3"]
    with pytest.raises(SystemExit, match="0"):
        cli.main([*words, "--licence", "mit", "--push-to-hub", "me/x"])
    out, err = capsys.readouterr()
    folders = [Path("models/theirs/32x2"), Path("models/theirs/48x3")]
    assert [line.split(":")[0] for line in out.splitlines()[::2]] == list(map(str, folders))
    assert out.splitlines()[1::2] == ["Uploaded: https://hub/me/x-32x2", "Uploaded: https://hub/me/x-48x3"]
    assert uploaded == list(zip(folders, ("me/x-32x2", "me/x-48x3"), strict=True))
    assert "Note: A size that is cut without training has lost most of what" in err.replace("\n", " ")
    assert "\nlicense: mit\n" in Path("models/theirs/32x2/README.md").read_text()


def test_weights_that_cannot_be_cut(folder: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(load_file(Path(folder) / "model.safetensors"), file)
    with pytest.raises(UserError, match=r"is a file of weights, which does not name its network\. Add --model NAME\."):
        poa.cut(file)
    assert poa.cut(file, name=folder, **SPACE).intact is not None
    with pytest.raises(UserError, match=r"^--from nothing: there is no such file, folder or timm model\."):
        poa.cut("nothing")
    (tmp_path / "config.yaml").touch()
    with pytest.raises(UserError, match=r"is the folder of a run\. Extract its trained sizes: leave out --from\."):
        poa.cut(tmp_path)
    resnet = randomise(timm.create_model("resnetv2_50", layers=[1, 1, 1, 1], channels=[64, 128, 256, 512], stem_chs=16,
                                         preact=False))  # fmt: skip
    with pytest.raises(UserError, match="has BatchNorm, whose statistics hold for one width and cannot be cut"):
        poa.cut(saved(resnet, tmp_path / "resnet"), image_size=32).extract("16x1-1-1-1", out=tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "Give either the folder of a run, or --from WEIGHTS"),
        (["runs/mine", "--from", "x"], "Give either the folder of a run, or --from WEIGHTS"),
        (["runs/mine", "--image-size", "32"], "--model and --image-size go with --from"),
        (["--from", "x", "--checkpoint", "3"], "--checkpoint names a step of a run, and --from takes no run."),
        (["--from", "x", "--out", "y", "--size", "32x2"], "--out takes one size, got 2. Leave it out to write each to"),
    ],
)
def test_flags_that_do_not_go_together(words: Any, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["extract", *words, "--size", "48x2"])
    assert told in capsys.readouterr().err
