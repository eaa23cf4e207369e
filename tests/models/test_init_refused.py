"""Weights and folders that a run cannot start from, and what is told of them."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import poa
import tiny
from command import poa as command
from poa.config import resolve
from poa.errors import UserError
from poa.models import hub
from poa.models.registry import describe, family_of
from poa.models.weights import read
from refusals import truncate
from trained import made, randomise, saved, started, unreachable, written


def test_weights_of_another_network_are_refused_by_name(tmp_path: Path) -> None:
    deeper = saved(made(depth=5), tmp_path / "deeper")
    with pytest.raises(UserError) as told:
        started(init=deeper)
    assert re.fullmatch(
        rf"The weights of --init {deeper} do not fit the VisionTransformer of this run: this network has no "
        rf"blocks\.3\.\S+, blocks\.3\.\S+, blocks\.3\.\S+ and 25 more\. "
        rf"Train the network of these weights: --model {deeper}\.",
        str(told.value),
    )
    flatter = made(depth=2)
    file = written(flatter.state_dict(), tmp_path / "flatter.pth")
    with pytest.raises(UserError, match=r"they lack blocks\.2\.\S+, \S+, \S+ and 11 more\. Name the network of these"):
        started(init=file)
    narrow = written(made(embed_dim=32, num_heads=2).state_dict(), tmp_path / "narrow.pth")
    with pytest.raises(UserError, match=r"shapes differ of cls_token \(1x1x32 instead of 1x1x64\), pos_embed"):
        started(init=narrow)
    registers = written(made(reg_tokens=2).state_dict(), tmp_path / "registers.pth")
    with pytest.raises(UserError, match=r"this network has no reg_token\. Name the network"):
        started(init=registers)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_deeper_network_is_refused_in_every_family(family: str, tmp_path: Path) -> None:
    """Whatever timm's conversion stumbles over, the tensors are named."""
    deeper = family_of(tiny.config(family, model={"depth_max": (4, 4) if family == "resnet" else (4,)}))
    model = randomise(deeper.create(deeper.space.intact))
    with pytest.raises(UserError, match=r"this network has no [a-z]+\d?\.\S*[23]\.\S+, "):
        started(family, init=saved(model, tmp_path / "deeper"))


def test_a_run_names_its_network_by_flags(tmp_path: Path) -> None:
    run = poa.pretrain(**tiny.settings("swin", out=tmp_path / "run", epochs=1))
    with pytest.raises(UserError) as told:
        started("vit", init=str(run.folder))
    expected = (
        "Train the network of that run: --model.name swin --model.width-min 16 --model.width-max 32 "
        "--model.width-step 16 --model.depth-min 2 --model.depth-step 1 --model.depths 2 1 3 1 --model.patch-size 2 "
        "--model.head-dim 8 --model.window-size 2."
    )
    assert str(told.value).endswith(expected)
    # and these flags do it
    words = expected.removesuffix(".").split(": ")[1].split()
    words += ["--data", "digits", "--views.global-size", "16", "--views.local-size", "8", "--limit", "64"]
    words += [
        "--views.blur-kernel",
        "3",
        "--heads.prototypes",
        "16",
        "--init",
        str(run.folder),
        "--device",
        "cpu",
        "--batch-size",
        "16",
    ]
    assert command("pretrain", *words, "--dry-run") == 0


def test_weights_that_fit_in_shape_alone_are_refused(tmp_path: Path) -> None:
    folder = saved(made(num_heads=8), tmp_path / "heads")  # of 8 channels, not 16
    with pytest.raises(
        UserError,
        match=r"have the right shapes, but blocks\.0\.attn\.num_heads is 8 in .* and 4 in this one\. Train",
    ):
        started(init=folder)
    model = made(architecture="vit_base_patch16_clip_quickgelu_224")
    with pytest.raises(
        UserError,
        match=r"have the right shapes, but blocks\.0\.mlp\.act is \w+ in .* and GELU in this one\. Train",
    ):
        started(init=saved(model, tmp_path / "activation"), model={"name": "vit_base_patch16_clip_224"})
    with pytest.raises(UserError, match=r"this network has no norm_pre\.\w+, norm_pre\.\w+\."):
        started(init=str(tmp_path / "activation"))
    batch_norm = timm.create_model("resnet50", layers=(1, 2, 2, 1), channels=(16, 32, 64, 128), base_width=256)
    with pytest.raises(UserError, match=r"this network has no bn1\.\w+, "):
        started("resnet", init=saved(batch_norm, tmp_path / "batch-norm"))


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = made().state_dict()
    state["blocks.1.norm2.weight"][3] = torch.inf
    with pytest.raises(UserError, match=r"model\.blocks\.1\.norm2\.weight contains NaN or infinite values"):
        started(init=written(state, tmp_path / "a.pth"))


class Pickled(nn.Module):
    """Opening a file with this in it runs code."""


UNREADABLE: dict[str, tuple[Callable[[Path], str], str]] = {
    "nothing": (lambda at: str(at / "no.pth"), r"no\.pth: there is no such file or folder\. Give a folder that timm"),
    "neither": (lambda _: "resnet50_gm", r"no such file, folder or timm model\. Did you mean 'resnet50_gn'\? Or give"),
    "tag": (
        lambda _: "resnet50_gn.a1h_in2k",
        r"Invalid pretrained tag.*timm has these weights of it: resnet50_gn\.a1h_in1k\.",
    ),
    "untrained": (lambda _: "resnetblur18", r"No pretrained weights exist"),
    "empty folder": (str, r"is neither the folder of a run nor one with config\.json and model\.safetensors or pyt"),
    "ending": (lambda at: written({}, at / "a.tar"), r"are read from files that end in \.safetensors, \.pth, \.pt, \."),
    "garbage": (
        lambda at: str(Path(shutil.copy(__file__, at / "a.pth"))),
        r"a\.pth cannot be read as a file of weights \(\w+: .*Give a state dict",
    ),
    "no safetensors": (
        lambda at: str(Path(shutil.copy(__file__, at / "a.safetensors"))),
        r"a\.safetensors cannot be read as a file of weights \(SafetensorError: .*Give a state dict",
    ),
    "cut off": (
        lambda at: str(truncate(Path(written(made().state_dict(), at / "a.pth")))),
        r"a\.pth cannot be read as a file of weights",
    ),
    "code": (lambda at: written(Pickled(), at / "a.pt"), r"whole pickled models are refused, since"),
    "a number": (lambda at: written(3, at / "a.bin"), r"a\.bin cannot be read as a file of weights"),
    "no tensors": (lambda at: written({"epoch": 3}, at / "a.bin"), r"contains no named tensors"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read_is_told(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "urlopen", unreachable)
    source, told = UNREADABLE[case]
    name = source(tmp_path)
    with pytest.raises(UserError, match=told) as error:
        started(init=name)
    assert str(error.value).startswith(f"--init {name}")


def test_a_folder_that_timm_cannot_build_is_told(tmp_path: Path) -> None:
    folder = Path(saved(made(), tmp_path / "model"))
    for content in (
        "{",
        "{}",
        '{"architecture": "vit_nothing"}',
        '{"architecture": "resnet18", "model_args": {"a": 1}}',
    ):
        (folder / "config.json").write_text(content)
        for asked in ({"init": str(folder)}, {"model": {"name": str(folder)}}):
            with pytest.raises(
                UserError, match=r"^--(init|model) \S+: timm cannot build a model from \S+config\.json \("
            ):
                family_of(tiny.config(**asked)) if "model" in asked else read(str(folder))


def test_folders_that_are_not_what_a_family_builds_are_refused(tmp_path: Path) -> None:
    for number, (over, told) in enumerate(
        [
            ({"qkv_bias": False}, r"cannot be cut into sizes: qkv_bias=false is not supported"),
            ({"global_pool": "avg"}, r"its image feature is not the class token"),
        ]
    ):
        folder = saved(made(**over), tmp_path / str(number))
        with pytest.raises(UserError, match=told):
            describe(folder)
    windows = saved(made("swin", window_size=[2, 2, 2, 1]), tmp_path / "windows")
    with pytest.raises(UserError, match=r"window_size=\[2, 2, 2, 1\] is not supported"):
        describe(windows)


def test_weights_that_do_not_fit_leave_no_run_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(made(depth=5), tmp_path / "model")
    file = tmp_path / "tiny.yaml"
    file.write_text(resolve.to_yaml(tiny.config()))
    assert command("pretrain", "--config", file, "--out", tmp_path / "run", "--init", folder) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("poa: The weights of --init ")
    assert not (tmp_path / "run").exists()
