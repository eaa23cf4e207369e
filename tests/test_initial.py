"""Runs that start from trained weights: where these may come from, how they are fitted, and what is said of each."""

import json
import re
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError, URLError

import pytest
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from rich.console import Console
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

import poa
import tiny
from command import poa as command
from poa import initial, launch, settings, weights
from poa.data.index import open_index
from poa.dry_run import dry_run
from poa.elastic.network import SubNetworks
from poa.errors import UserError
from poa.initial import Listing, fit
from poa.networks import describe, explicit, family_of
from poa.run import Run
from poa.step import Parts, assemble
from poa.training.checkpoint import latest_checkpoint
from poa.training.metrics import read_metrics
from poa.weights import Source, read
from processes import run_processes

FAMILIES = tuple(tiny.FAMILIES)
CPU = torch.device("cpu")
State = dict[str, Tensor]


def randomise(network: nn.Module, *, seed: int = 7) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network


def made(family: str = "vit", /, **over: Any) -> Any:
    """A timm model with random weights and a classifier: the intact network of the tiny run, but for what is given."""
    chosen = family_of(tiny.config(family))
    architecture, arguments = chosen.timm_config(chosen.space.intact)
    architecture = over.pop("architecture", architecture)
    return randomise(timm.create_model(architecture, **{**arguments, "num_classes": 3, **over}))


def saved(model: Any, folder: Path, *, safe: bool = True) -> str:
    """A folder as timm writes it."""
    save_for_hf(model, str(folder), safe_serialization=safe)
    return str(folder)


def features_of(model: nn.Module) -> State:
    """All but the classifier."""
    classifier = model.pretrained_cfg["classifier"]
    assert isinstance(classifier, str)
    return {name: value for name, value in model.state_dict().items() if not name.startswith(f"{classifier}.")}


def started(family: str = "vit", /, **over: Any) -> Parts:
    config = tiny.config(family, **over)
    return assemble(config, open_index(config.data, limit=config.limit), device=CPU)


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in read_metrics(run.paths.metrics)]


# ---- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_timm_goes_into_student_and_teacher(family: str, tmp_path: Path) -> None:
    model = made(family)
    parts, scratch = started(family, init=saved(model, tmp_path / "model")), started(family)
    for network in (parts.method.student, parts.method.teacher):
        assert_same(network.backbone.model.state_dict(), features_of(model))
        assert torch.equal(network.backbone.mask_token, torch.zeros_like(network.backbone.mask_token))
    assert_same(parts.method.student.heads.state_dict(), scratch.method.student.heads.state_dict())
    assert parts.method.student.training
    assert not any(parameter.requires_grad for parameter in parts.method.teacher.parameters())
    assert scratch.listing is None
    listing = parts.listing
    assert listing is not None
    assert set(listing.loaded) == features_of(model).keys()
    assert (listing.resized, listing.fresh) == ((), ("mask_token",))
    assert set(listing.unused) == model.state_dict().keys() - features_of(model).keys() != set()


def wrappings(model: nn.Module) -> dict[str, tuple[str, Any]]:
    """Files of the same weights: a name, and what is in it."""
    state = model.state_dict()
    rest = {"head.mlp.0.weight": torch.ones(2), "dino_head.last.weight": torch.ones(2)}
    other = {name: value + 1 for name, value in state.items()}

    def with_prefix(prefix: str, state: State = state) -> State:
        return {f"{prefix}{name}": value for name, value in state.items()}

    return {
        "safetensors": ("a.safetensors", state),
        "half": ("half.pth", {name: value.half() for name, value in state.items()}),
        "pth": ("a.pth", state),
        "pt": ("a.pt", state),
        "bin": ("a.bin", state),
        "model": ("a.pth", {"model": state, "optimizer": {"lr": 0.1}, "epoch": 3}),
        "state_dict": ("a.pth", {"state_dict": with_prefix("module."), "epoch": 3}),
        "ema": ("a.pth", {"state_dict": other, "state_dict_ema": state}),
        "teacher": ("a.pth", {"student": with_prefix("module.backbone.", other), "teacher": with_prefix("backbone.")}),
        "student": ("a.pth", {"student": with_prefix("module.backbone.") | rest, "epoch": 3}),
        "both": ("a.pth", {"model": with_prefix("teacher.backbone.") | with_prefix("student.backbone.", other) | rest}),
        "compiled": ("a.pth", with_prefix("_orig_mod.model.")),
    }


@pytest.mark.parametrize("kind", wrappings(made()))
def test_a_file_is_unwrapped(kind: str, tmp_path: Path) -> None:
    model = made()
    name, content = wrappings(model)[kind]
    if name.endswith(".safetensors"):
        save_file(content, tmp_path / name)
    else:
        torch.save(content, tmp_path / name)
    parts = started(init=str(tmp_path / name))
    expected = features_of(model)
    if kind == "half":
        expected = {name: value.half().float() for name, value in expected.items()}
    assert_same(parts.method.teacher.backbone.model.state_dict(), expected)
    listing = parts.listing
    assert listing is not None
    assert {"head.weight", "head.bias"} <= set(listing.unused)
    if kind == "both":
        assert {"dino_head.last.weight", "student.backbone.blocks.0.norm1.bias"} <= set(listing.unused)
        assert any("student.* (" in line for line in listing.lines()), "a line for each tensor is not readable"


def test_old_folders_hold_a_pickled_file(tmp_path: Path) -> None:
    model = made()
    folder = saved(model, tmp_path / "model", safe=False)
    assert [path.name for path in sorted(Path(folder).iterdir())] == ["config.json", "pytorch_model.bin"]
    for name in (folder, f"local-dir:{folder}"):
        assert_same(dict(read(name).weights), model.state_dict())


def test_a_run_hands_on_its_teacher_with_its_mask_token(tmp_path: Path) -> None:
    run = poa.pretrain(**tiny.settings(out=tmp_path / "first", epochs=1))
    expected = run.teacher.state_dict()
    assert expected["mask_token"].any()
    newest = latest_checkpoint(run.paths.checkpoints)
    for name in (run.folder, newest, shutil.copy(newest, tmp_path / "a.pt")):
        parts = started(init=str(name))
        assert_same(parts.method.student.backbone.state_dict(), expected)
        assert_same(parts.method.teacher.backbone.state_dict(), expected)
        assert parts.listing is not None
        assert (parts.listing.fresh, parts.listing.resized, parts.listing.note) == ((), (), None)
    again = poa.pretrain(**tiny.settings(out=tmp_path / "second", epochs=1, init=tmp_path / "first"))
    assert_same(read(str(again.paths.initial)).weights, {k.removeprefix("model."): x for k, x in expected.items()})


def test_a_name_is_fetched_by_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = made(), []

    def create(name: str, **options: Any) -> nn.Module:
        asked.append((name, options, constants.HF_HUB_OFFLINE))
        return model

    monkeypatch.setattr(weights, "_why_unreachable", lambda: None)
    monkeypatch.setattr(weights, "timm", SimpleNamespace(create_model=create, is_model=timm.is_model))
    for name in ("vit_base_patch16_224.augreg_in21k", "hf-hub:someone/something"):
        source = read(name)
        assert_same(source.weights, model.state_dict())
        assert asked.pop() == (name, {"pretrained": True}, False)
        taken, listing = fit(source, family_of(tiny.config()).build(family_of(tiny.config()).space.intact))
        assert listing.source == name
        assert torch.equal(taken["model.cls_token"], model.cls_token)
    assert "--model vit_base_patch16_224." in source.remedy, "who owns a repository is no name of a network"


def unreachable(*_: object, **__: object) -> None:
    raise URLError(OSError(-2, "Name or service not known"))


def test_where_there_is_no_network_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "urlopen", unreachable)
    began = time.monotonic()
    with pytest.raises(UserError) as told:  # timm and its client are the real ones
        read("hf-hub:nobody-at-all/nothing-at-all")
    # the client alone tries six times, half a minute in all
    assert time.monotonic() - began < 10
    text = str(told.value)
    assert text.startswith("--init hf-hub:nobody-at-all/nothing-at-all: its weights cannot be fetched (https://")
    assert "does not answer: [Errno -2] Name or service not known" in text
    assert "What works without a network: a folder that timm loads" in text
    assert not constants.HF_HUB_OFFLINE, "left as it was not found"


def test_weights_that_were_fetched_before_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    model, offline = made(), []

    def create(*_: object, **__: object) -> nn.Module:
        offline.append(constants.HF_HUB_OFFLINE)
        if len(offline) == 2:
            raise LocalEntryNotFoundError("not among the files here")
        return model

    monkeypatch.setattr(weights, "urlopen", unreachable)
    monkeypatch.setattr(weights, "timm", SimpleNamespace(create_model=create, is_model=timm.is_model))
    assert_same(read("vit_base_patch16_224").weights, model.state_dict())
    with pytest.raises(UserError, match=r"cannot be fetched \(https://\S+ does not answer"):
        read("vit_base_patch16_224")
    assert offline == [True, True]


def test_a_server_that_answers_is_asked_for_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(request: Any, *, timeout: float) -> None:
        assert (request.get_method(), timeout) == ("HEAD", weights.PATIENCE_SECONDS)
        raise HTTPError(request.full_url, 405, "no", {}, None)  # type: ignore[arg-type]

    def create(*_: object, **__: object) -> nn.Module:
        assert not constants.HF_HUB_OFFLINE
        raise OSError("404 there is nothing\nmore of it")

    monkeypatch.setattr(weights, "urlopen", refuse)
    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(UserError, match=r"cannot be fetched \(OSError: 404 there is nothing\)\. What works"):
        read("hf-hub:nobody/nothing")


# ---- fitting ---------------------------------------------------------------------------------------------------------


def fitted(family: str, state: Mapping[str, Tensor], **over: Any) -> tuple[State, Listing]:
    """Weights by timm's names as a network takes them."""
    chosen = family_of(tiny.config(family, **over))
    taken, listing = fit(Source("given", state, (), "Do this."), chosen.build(chosen.space.intact))
    return {name.removeprefix("model."): value for name, value in taken.items()}, listing


def renamed(state: Mapping[str, Tensor], *rules: tuple[str, str]) -> State:
    def rename(name: str) -> str:
        for pattern, text in rules:
            name = re.sub(pattern, text, name)
        return name

    return {rename(name): value for name, value in state.items()}


def test_dinov2s_own_names() -> None:
    model = made(architecture="vit_small_patch14_reg4_dinov2", reg_tokens=4)
    expected = features_of(model)
    official = renamed(expected, (r"^reg_token$", "register_tokens"))
    of_class = torch.randn(1, 1, 64)
    official["pos_embed"] = torch.cat([of_class, expected["pos_embed"]], dim=1)
    official["mask_token"] = torch.randn(1, 64)
    over = {"model": {"name": "vit_small_patch14_reg4_dinov2", "width_min": None, "width_max": 64}}
    taken, listing = fitted("vit", official, **over)
    assert torch.equal(taken.pop("mask_token"), official["mask_token"][0])
    expected["cls_token"] = expected["cls_token"] + of_class  # timm has no position for it
    assert_same(taken, expected)
    assert (listing.fresh, listing.unused) == ((), ())
    del official["mask_token"]  # which others may have left out
    taken, listing = fitted("vit", official, **over)
    assert torch.equal(taken["reg_token"], expected["reg_token"])
    assert listing.fresh == ("mask_token",)


def test_gated_mlps_by_dinov2s_names(tmp_path: Path) -> None:
    over = {"model": {"name": "vit_giant_patch14_dinov2", "mlp_ratio": 3.0}}
    family = family_of(tiny.config(**over))
    architecture, arguments = family.timm_config(family.space.intact)
    model = randomise(timm.create_model(architecture, **arguments))
    official = renamed(model.state_dict(), (r"mlp\.fc1", "mlp.w12"), (r"mlp\.fc2", "mlp.w3"))
    taken, _ = fitted("vit", official, **over)
    assert_same({name: taken[name] for name in model.state_dict()}, model.state_dict())
    folder = saved(model, tmp_path / "gated")
    found = family_of(tiny.config().model_copy(update={"model": settings.ModelSettings(name=folder)}))
    assert found.arguments(found.space.intact) == family.arguments(family.space.intact)


def test_dinov3s_own_names() -> None:
    model = made("dinov3")
    expected = features_of(model)
    official = renamed(expected, (r"^reg_token$", "storage_tokens"), (r"\.gamma_([12])$", r".ls\1.gamma"))
    official |= {f"blocks.{i}.attn.qkv.bias": torch.zeros(192) for i in range(3)}
    official |= {f"blocks.{i}.attn.qkv.bias_mask": torch.full((192,), torch.nan) for i in range(3)}
    extra = {"rope_embed.periods": torch.ones(4), "mask_token": torch.randn(1, 64)}
    taken, listing = fitted("dinov3", official | extra)
    assert torch.equal(taken.pop("mask_token"), extra["mask_token"][0])
    assert_same(taken, expected)
    assert len(listing.unused) == 7
    official["blocks.1.attn.qkv.bias"][0] = 0.5
    with pytest.raises(UserError, match=r"no place for blocks\.1\.attn\.qkv\.bias\. Do this"):
        fitted("dinov3", official | extra)


def test_swins_own_names() -> None:
    model = made("swin")
    official = renamed(model.state_dict(), (r"^head\.fc\.", "head."))
    downsampling = {name: official.pop(name) for name in list(official) if ".downsample." in name}
    official |= renamed(downsampling, *((rf"layers\.{i}\.", f"layers.{i - 1}.") for i in (1, 2, 3)))
    official["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(4, 4, dtype=torch.int64)
    official["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 4)
    taken, listing = fitted("swin", official)
    del taken["mask_token"]
    assert_same(taken, features_of(model))
    assert sorted(name.rpartition(".")[2] for name in listing.unused) == [
        "attn_mask", "bias", "relative_position_index", "weight"
    ]  # fmt: skip


def test_convnexts_own_names() -> None:
    model = made("convnext")
    official = renamed(
        model.state_dict(),
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"\.blocks\.", "."),
        (r"conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
        (r"^head\.norm", "norm"),
        (r"^head\.fc", "head"),
    )
    taken, listing = fitted("convnext", official)
    del taken["mask_token"]
    assert_same(taken, features_of(model))
    assert set(listing.unused) == {"head.fc.weight", "head.fc.bias"}


RESIZED: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], list[str]]] = {
    "positions": (
        "vit",
        {"img_size": 48},
        {},
        {},
        ["  resized    pos_embed: 1x37x64 -> 1x5x64"],
    ),
    "rows and columns": (  # as many positions as a square table of 12 rows has
        "vit",
        {"img_size": (64, 144)},
        {},
        {},
        ["  resized    pos_embed: 1x145x64 -> 1x5x64"],
    ),
    "patches": (
        "vit",
        {"patch_size": 8},
        {"patch_size": 4},
        {"patch_size": 4},
        ["  resized    pos_embed: 1x5x64 -> 1x17x64", "  resized    patch_embed.proj.weight: 64x3x8x8 -> 64x3x4x4"],
    ),
    "windows": (
        "swin",
        {"window_size": 2},
        {"window_size": 4},
        {"window_size": 4},
        [
            "  resized    layers.*.blocks.*.attn.relative_position_bias_table (2 tensors): 9x4 -> 49x4",
            "  resized    layers.*.blocks.*.attn.relative_position_bias_table: 9x8 -> 49x8",
        ],
    ),
}


@pytest.mark.parametrize("case", RESIZED)
def test_tables_are_resized_exactly_as_timm_does(case: str, tmp_path: Path) -> None:
    family, given, asked, over, lines = RESIZED[case]
    folder = saved(made(family, **given), tmp_path / "model")
    parts = started(family, init=folder, model=over)
    chosen = parts.family.arguments(parts.family.space.intact)
    asked = {"img_size": parts.family.image_size, "num_classes": 0, **asked}
    assert asked.items() - {"num_classes": 0}.items() <= chosen.items()
    with warnings.catch_warnings(action="ignore"):  # timm interpolates windows by means that torch deprecates
        expected = timm.create_model(f"local-dir:{folder}", pretrained=True, **asked).state_dict()
    assert_same(parts.method.teacher.backbone.model.state_dict(), expected)
    assert parts.listing is not None
    said = [line for line in parts.listing.lines() if line.startswith("  resized")]
    assert sorted(said) == sorted(lines)


def test_mask_tokens_of_other_networks_stay_out() -> None:
    state = features_of(made())
    taken, listing = fitted("vit", state | {"mask_token": torch.ones(1, 1, 32)})
    assert not taken["mask_token"].any()
    assert (listing.fresh, listing.unused) == (("mask_token",), ("mask_token",))
    taken, listing = fitted("dinov3", features_of(made("dinov3")) | {"mask_token": torch.ones(1, 1, 64)})
    assert taken["mask_token"].all()
    assert (listing.fresh, listing.unused) == ((), ())


def test_the_listing_is_short_and_whole(tmp_path: Path) -> None:
    folder = saved(made("swin", window_size=4), tmp_path / "model")
    listing = started("swin", init=folder, views={"mean": (0.5, 0.5, 0.5)}).listing
    assert listing is not None
    assert listing.lines() == [
        f"Weights of {folder}: 106 tensors go into student and teacher.",
        "  resized    layers.*.blocks.*.attn.relative_position_bias_table (2 tensors): 49x4 -> 9x4",
        "  resized    layers.*.blocks.*.attn.relative_position_bias_table: 49x8 -> 9x8",
        "  fresh      mask_token, projection heads",
        "  not used   head.fc.bias, head.fc.weight",
        "  note       trained on images normalised otherwise; to keep to it: --views.mean 0.485 0.456 0.406 "
        "--views.std 0.229 0.224 0.225",
    ]


# ---- what does not fit -----------------------------------------------------------------------------------------------


def written(content: Any, file: Path) -> str:
    torch.save(content, file)
    return str(file)


def test_weights_of_another_network_are_refused_by_name(tmp_path: Path) -> None:
    deeper = saved(made(depth=5), tmp_path / "deeper")
    with pytest.raises(UserError) as told:
        started(init=deeper)
    assert re.fullmatch(
        rf"The weights of --init {deeper} do not fit the VisionTransformer of this run: there is no place for "
        rf"blocks\.3\.\S+, blocks\.3\.\S+, blocks\.3\.\S+ and 25 more\. "
        rf"Train the network of these weights: --model {deeper}\.",
        str(told.value),
    )
    flatter = made(depth=2)
    file = written(flatter.state_dict(), tmp_path / "flatter.pth")
    with pytest.raises(UserError, match=r"they lack blocks\.2\.\S+, \S+, \S+ and 11 more\. Name the network of these"):
        started(init=file)
    narrow = written(made(embed_dim=32, num_heads=2).state_dict(), tmp_path / "narrow.pth")
    with pytest.raises(UserError, match=r"of other shape are cls_token \(1x1x32 there, 1x1x64 here\), pos_embed"):
        started(init=narrow)
    registers = written(made(reg_tokens=2).state_dict(), tmp_path / "registers.pth")
    with pytest.raises(UserError, match=r"there is no place for reg_token\. Name the network"):
        started(init=registers)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_deeper_network_is_refused_in_every_family(family: str, tmp_path: Path) -> None:
    """Whatever timm's conversion stumbles over, the tensors are named."""
    deeper = family_of(tiny.config(family, model={"depth_max": (4, 4) if family == "resnet" else (4,)}))
    model = randomise(deeper.create(deeper.space.intact))
    with pytest.raises(UserError, match=r"there is no place for [a-z]+\d?\.\S*[23]\.\S+, "):
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
    with pytest.raises(UserError, match=r"fit in shape, but blocks\.0\.attn\.num_heads is 8 there and 4 here\. Train"):
        started(init=folder)
    model = made(architecture="vit_base_patch16_clip_quickgelu_224")
    with pytest.raises(UserError, match=r"fit in shape, but blocks\.0\.mlp\.act is \w+ there and GELU here\. Train"):
        started(init=saved(model, tmp_path / "activation"), model={"name": "vit_base_patch16_clip_224"})
    with pytest.raises(UserError, match=r"no place for norm_pre\.\w+, norm_pre\.\w+\."):
        started(init=str(tmp_path / "activation"))
    batch_norm = timm.create_model("resnet50", layers=(1, 2, 2, 1), channels=(16, 32, 64, 128), base_width=256)
    with pytest.raises(UserError, match=r"there is no place for bn1\.\w+, "):
        started("resnet", init=saved(batch_norm, tmp_path / "batch-norm"))


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = made().state_dict()
    state["blocks.1.norm2.weight"][3] = torch.inf
    with pytest.raises(UserError, match=r"model\.blocks\.1\.norm2\.weight holds values that are not finite"):
        started(init=written(state, tmp_path / "a.pth"))


class Pickled(nn.Module):
    """Opening a file with this in it runs code."""


UNREADABLE: dict[str, tuple[Callable[[Path], str], str]] = {
    "nothing": (lambda at: str(at / "no.pth"), r"no\.pth: there is no such file or folder\. Give a folder that timm"),
    "neither": (lambda _: "resnet50_gm", r"no such file, folder or timm model\. Did you mean 'resnet50_gn'\? Or give"),
    "tag": (lambda _: "resnet50_gn.a1h_in2k", r"Invalid pretrained tag.*timm has these of it: resnet50_gn\.a1h_in1k\."),
    "untrained": (lambda _: "vit_giant_patch14_224", r"No pretrained weights exist"),
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
        lambda at: str(Path(cut(written(made().state_dict(), at / "a.pth")))),
        r"a\.pth cannot be read as a file of weights",
    ),
    "code": (lambda at: written(Pickled(), at / "a.pt"), r"whole pickled models are not opened, since they can run"),
    "a number": (lambda at: written(3, at / "a.bin"), r"a\.bin cannot be read as a file of weights"),
    "no tensors": (lambda at: written({"epoch": 3}, at / "a.bin"), r"holds no tensors under names"),
}


def cut(file: str) -> str:
    content = Path(file).read_bytes()
    Path(file).write_bytes(content[: len(content) // 2])
    return file


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read_is_told(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "urlopen", unreachable)
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


# ---- a folder as network ---------------------------------------------------------------------------------------------


def from_folder(family: str, folder: str, **over: Any) -> dict[str, Any]:
    """Settings of a run of the network in a folder, from its weights."""
    given = tiny.settings(family, epochs=1, saving={"every_epochs": 0.5}, **over)
    return given | {"model": {"name": folder, "drop_path": 0.0}, "init": folder}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_goes_on_from_an_extracted_folder_and_outlives_it(family: str, tmp_path: Path) -> None:
    first = poa.pretrain(**tiny.settings(family, out=tmp_path / "first", epochs=1))
    model = first.extract(first.sizes()[-1], out=tmp_path / "model")
    given = timm.create_model(f"local-dir:{model}", pretrained=True).state_dict()
    whole = tmp_path / "whole"
    second = poa.pretrain(**from_folder(family, str(model), out=whole))
    assert second.config.model.name == describe(str(model))[1]["architecture"]
    assert second.family.arguments(second.space.intact) == first.family.arguments(first.space.intact)
    assert_same(second.initial(second.space.intact).model.state_dict(), given)

    shutil.rmtree(model)
    again = poa.load(whole)
    intact = again.family.build(again.space.intact)
    intact.model.load_state_dict(given)
    chosen = again.family
    networks = SubNetworks(chosen.build, chosen.space.intact, source=chosen.source, groups=chosen.groups)
    for size in (chosen.space.sizes[0], chosen.space.sizes[len(chosen.space.sizes) // 2]):
        expected = networks.extract(size, intact).state_dict()
        assert_same(again.initial(size).state_dict(), expected)
        assert not again.initial(str(size)).training

    expected_losses, newest = losses(again), latest_checkpoint(again.paths.checkpoints)
    assert newest is not None
    newest.unlink()
    poa.pretrain(out=whole, resume=True)
    assert losses(poa.load(whole)) == expected_losses


def test_what_is_set_besides_a_folder_counts(tmp_path: Path) -> None:
    folder = saved(made("swin"), tmp_path / "model")
    config = tiny.config("swin").model_copy(update={"model": settings.ModelSettings(name=folder, depths=(2, 1, 5, 2))})
    assert explicit(config) == explicit(explicit(config)) != config
    for each in (config, explicit(config)):
        family = family_of(each)
        assert family.depths == (2, 1, 5, 2)
        assert str(family.space.intact) == "32x5"
    assert explicit(config).model.name == "swin_base_patch4_window7_224"
    plain = tiny.config()
    assert explicit(plain) is plain
    wide = describe(saved(made("swin", window_size=10, mlp_ratio=3.0), tmp_path / "wide"))[1]  # wider than the maps
    assert (wide["window_size"], wide["mlp_ratio"]) == (10, 3.0)


def test_folders_that_are_not_what_a_family_builds_are_refused(tmp_path: Path) -> None:
    for number, (over, told) in enumerate(
        [
            ({"qkv_bias": False}, r"cannot be cut into sizes: a ViT has no qkv_bias of false here"),
            ({"in_chans": 1}, r"cannot be cut into sizes: a ViT has no in_chans of 1 here"),
            ({"global_pool": "avg"}, r"its image feature is not the class token"),
        ]
    ):
        folder = saved(made(**over), tmp_path / str(number))
        with pytest.raises(UserError, match=told):
            describe(folder)
    windows = saved(made("swin", window_size=[2, 2, 2, 1]), tmp_path / "windows")
    with pytest.raises(UserError, match=r"a Swin has no window_size of \[2, 2, 2, 1\] here"):
        describe(windows)


def test_names_of_networks_come_before_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved(made(), tmp_path / "resnet50_gn")
    assert describe("resnet50_gn")[0].__name__ == "ResNet"
    assert describe("./resnet50_gn")[0].__name__ == describe("local-dir:resnet50_gn")[0].__name__ == "ViT"
    assert_same(read("resnet50_gn").weights, made().state_dict())  # of weights, what is there comes first


# ---- the run ---------------------------------------------------------------------------------------------------------


def test_going_on_needs_the_source_only_before_the_first_checkpoint(tmp_path: Path) -> None:
    model = made()
    file = written(model.state_dict(), tmp_path / "a.pth")
    given = tiny.settings(out=tmp_path / "run", init=file, saving={"every_epochs": 0.5}, model={"drop_path": 0.2})
    run = poa.pretrain(**given)
    scratch = poa.pretrain(**{**given, "init": None, "out": tmp_path / "scratch"})
    expected = losses(run)
    assert len(expected) == 8
    assert not set(expected) & set(losses(scratch)), "what the run began with made no difference"
    assert not scratch.paths.initial.exists()
    begun = run.paths.initial.read_bytes()

    Path(file).rename(tmp_path / "away.pth")
    newest = latest_checkpoint(run.paths.checkpoints)
    assert newest is not None
    newest.unlink()
    assert command("pretrain", "--out", run.folder, "--resume", "--dry-run") == 0
    poa.pretrain(out=run.folder, resume=True)
    assert losses(run) == expected
    with pytest.raises(UserError, match=r"other settings: init \('\S+a\.pth' in the run, 'b\.pth' now\)"):
        poa.pretrain(**{**given, "init": "b.pth"}, resume=True)

    shutil.rmtree(run.paths.checkpoints)
    with pytest.raises(UserError, match=r"a\.pth: there is no such file or folder"):
        poa.pretrain(out=run.folder, resume=True)
    (tmp_path / "away.pth").rename(file)
    run.paths.initial.unlink()
    poa.pretrain(out=run.folder, resume=True)
    assert losses(run) == expected
    assert run.paths.initial.read_bytes() == begun
    assert_same(load_file(run.paths.initial), {f"model.{k}": x for k, x in features_of(model).items()} | {
        "mask_token": torch.zeros(64)
    })  # fmt: skip


def of_process(file: str) -> tuple[State, State, State, list[str]]:
    parts = started(init=file)
    assert parts.wrapped is not parts.method
    method = parts.method
    backbones = (method.student.backbone.state_dict(), method.teacher.backbone.state_dict())
    assert parts.listing is not None
    return *backbones, method.student.heads.state_dict(), parts.listing.lines()


def test_two_processes_start_equal(tmp_path: Path) -> None:
    model = made()
    file = written(model.state_dict(), tmp_path / "a.pth")
    first, second = run_processes(of_process, 2, file)
    for ours, theirs in zip(first[:3], second[:3], strict=True):
        assert_same(ours, theirs)
    assert first[3] == second[3]
    for state in first[:2]:
        del state["mask_token"]
        assert_same(state, {f"model.{name}": value for name, value in features_of(model).items()})


def test_two_processes_begin_a_run_from_a_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = made()
    folder = saved(model, tmp_path / "model")
    run = poa.pretrain(**from_folder("vit", folder, out=tmp_path / "run", devices=2))
    assert capfd.readouterr().err.count("tensors go into student and teacher") == 1
    assert_same(run.initial(run.space.intact).model.state_dict(), features_of(model))
    assert run.config.model.name == "vit_base_patch16_224"


def test_a_dry_run_tells_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(made(), tmp_path / "model")
    before = set(tmp_path.rglob("*"))
    config = tiny.config().model_copy(update={"init": folder, "model": settings.ModelSettings(name=folder)})
    assert dry_run(config, console=Console(stderr=True)).num_sizes == 6
    assert f"Weights of {folder}: 48 tensors go into student and teacher." in capsys.readouterr().err.splitlines()
    assert set(tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match="do not fit"):
        dry_run(tiny.config("dinov3", init=folder), console=Console(quiet=True))


def test_weights_that_do_not_fit_leave_no_run_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(made(depth=5), tmp_path / "model")
    file = tmp_path / "tiny.yaml"
    file.write_text(settings.to_yaml(tiny.config()))
    assert command("pretrain", "--config", file, "--out", tmp_path / "run", "--init", folder) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("poa: The weights of --init ")
    assert not (tmp_path / "run").exists()


AT_ONCE: dict[str, Any] = {"optimizer": {"teacher_momentum": (0.0, 0.0), "warmup_epochs": 0.0}}
"""The teacher is the student."""


def test_initial_sizes_are_scored_beside_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, images = tmp_path / "tiny.yaml", ("--train", "digits/train", "--test", "digits/test", "--limit", "60")
    file.write_text(settings.to_yaml(tiny.config(init=saved(made(), tmp_path / "model"), epochs=1, **AT_ONCE)))
    assert command("pretrain", "--config", file, "--out", tmp_path / "run") == 0
    for branch in ("untrained", "initial", "teacher"):
        assert command("evaluate", "knn", tmp_path / "run", *images, "--k", "20", "--branch", branch) == 0
    capsys.readouterr()
    assert command("sizes", tmp_path / "run", "--out", tmp_path / "sizes.csv") == 0
    heading = (tmp_path / "sizes.csv").read_text().splitlines()[0]
    assert heading.split(",")[7::2] == ["top1@20", "initial top1@20", "untrained top1@20"]
    assert capsys.readouterr().out.splitlines()[0].split() == ["initial", "untrained"]
    content = json.loads((tmp_path / "run/eval/initial/knn.json").read_text())
    assert content["settings"]["weights"] == f"initial, from {tmp_path / 'model'}"
    run = poa.load(tmp_path / "run")
    scores = {branch: json.loads((tmp_path / f"run/eval/{branch}/knn.json").read_text())["scores"] for branch in
              ("knn", "initial", "untrained")}  # fmt: skip
    assert scores["initial"] != scores["knn"]
    assert scores["initial"] != scores["untrained"]
    again = poa.evaluate_knn(
        run, train="digits/train", test="digits/test", limit=60, branch="initial", name="b", ks=(20,)
    )
    assert again == scores["initial"]
    run.paths.initial.unlink()
    with pytest.raises(UserError, match=r"initial\.safetensors is missing"):
        poa.load(run.folder).initial("32x2")


def test_a_run_from_scratch_has_no_initial_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = poa.pretrain(**tiny.settings(out=tmp_path / "run", epochs=1))
    with pytest.raises(UserError, match=r"did not begin with trained weights \(--init\), so it has no initial sizes"):
        run.initial("32x2")
    words = ("--train", "digits/train", "--test", "digits/test", "--branch", "initial")
    assert command("evaluate", "knn", run.folder, *words) == 2
    assert "did not begin with trained weights" in capsys.readouterr().err
    assert not run.paths.scores.exists()
    with pytest.raises(UserError, match=r"no branch 'student' to score\. Choose from teacher, initial, untrained"):
        poa.evaluate_knn(run, train="digits/train", test="digits/test", branch="student")


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match=r"initial\.safetensors cannot be written: No space left on device"):
        initial.write(nn.Linear(2, 2), tmp_path / "initial.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_launched_processes_are_told_of_the_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, told = saved(made(), tmp_path / "model"), []
    monkeypatch.setattr(launch, "_run_processes", lambda config, *_, **__: told.append(config.model.name))
    with pytest.raises(UserError, match="is not the folder of a run"):
        poa.pretrain(**from_folder("vit", folder, out=tmp_path / "run", devices=2))
    assert told == ["vit_base_patch16_224"]
