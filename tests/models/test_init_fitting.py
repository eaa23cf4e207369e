"""How weights are fitted to the network of a run, and what is said of each."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

import tiny
from poa.config.network import ModelSettings
from poa.errors import UserError
from poa.models.init import LoadReport, fit
from poa.models.registry import family_of
from poa.models.weights import TrainedWeights
from trained import State, assert_same, features_of, made, randomise, saved, started


def fitted(family: str, state: Mapping[str, Tensor], **over: Any) -> tuple[State, LoadReport]:
    """Weights by timm's names as a network takes them."""
    chosen = family_of(tiny.config(family, **over))
    taken, report = fit(TrainedWeights("given", state, (), "Do this."), chosen.build(chosen.space.intact))
    return {name.removeprefix("model."): value for name, value in taken.items()}, report


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
    taken, report = fitted("vit", official, **over)
    assert torch.equal(taken.pop("mask_token"), official["mask_token"][0])
    expected["cls_token"] = expected["cls_token"] + of_class  # timm has no position for it
    assert_same(taken, expected)
    assert (report.fresh, report.unused) == ((), ())
    del official["mask_token"]  # which others may have left out
    taken, report = fitted("vit", official, **over)
    assert torch.equal(taken["reg_token"], expected["reg_token"])
    assert report.fresh == ("mask_token",)


def test_gated_mlps_by_dinov2s_names(tmp_path: Path) -> None:
    over = {"model": {"name": "vit_giant_patch14_dinov2", "mlp_ratio": 3.0}}
    family = family_of(tiny.config(**over))
    architecture, arguments = family.timm_config(family.space.intact)
    model = randomise(timm.create_model(architecture, **arguments))
    official = renamed(model.state_dict(), (r"mlp\.fc1", "mlp.w12"), (r"mlp\.fc2", "mlp.w3"))
    taken, _ = fitted("vit", official, **over)
    assert_same({name: taken[name] for name in model.state_dict()}, model.state_dict())
    folder = saved(model, tmp_path / "gated")
    found = family_of(tiny.config().model_copy(update={"model": ModelSettings(name=folder)}))
    assert found.arguments(found.space.intact) == family.arguments(family.space.intact)


def test_dinov3s_own_names() -> None:
    model = made("dinov3")
    expected = features_of(model)
    official = renamed(expected, (r"^reg_token$", "storage_tokens"), (r"\.gamma_([12])$", r".ls\1.gamma"))
    official |= {f"blocks.{i}.attn.qkv.bias": torch.zeros(192) for i in range(3)}
    official |= {f"blocks.{i}.attn.qkv.bias_mask": torch.full((192,), torch.nan) for i in range(3)}
    extra = {"rope_embed.periods": torch.ones(4), "mask_token": torch.randn(1, 64)}
    taken, report = fitted("dinov3", official | extra)
    assert torch.equal(taken.pop("mask_token"), extra["mask_token"][0])
    assert_same(taken, expected)
    assert len(report.unused) == 7
    official["blocks.1.attn.qkv.bias"][0] = 0.5
    with pytest.raises(UserError, match=r"this network has no blocks\.1\.attn\.qkv\.bias\. Do this"):
        fitted("dinov3", official | extra)


def test_swins_own_names() -> None:
    model = made("swin")
    official = renamed(model.state_dict(), (r"^head\.fc\.", "head."))
    downsampling = {name: official.pop(name) for name in list(official) if ".downsample." in name}
    official |= renamed(downsampling, *((rf"layers\.{i}\.", f"layers.{i - 1}.") for i in (1, 2, 3)))
    official["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(4, 4, dtype=torch.int64)
    official["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 4)
    taken, report = fitted("swin", official)
    del taken["mask_token"]
    assert_same(taken, features_of(model))
    assert sorted(name.rpartition(".")[2] for name in report.unused) == [
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
    taken, report = fitted("convnext", official)
    del taken["mask_token"]
    assert_same(taken, features_of(model))
    assert set(report.unused) == {"head.fc.weight", "head.fc.bias"}


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
    assert parts.report is not None
    said = [line for line in parts.report.lines() if line.startswith("  resized")]
    assert sorted(said) == sorted(lines)


def test_mask_tokens_of_other_networks_stay_out() -> None:
    state = features_of(made())
    taken, report = fitted("vit", state | {"mask_token": torch.ones(1, 1, 32)})
    assert not taken["mask_token"].any()
    assert (report.fresh, report.unused) == (("mask_token",), ("mask_token",))
    taken, report = fitted("dinov3", features_of(made("dinov3")) | {"mask_token": torch.ones(1, 1, 64)})
    assert taken["mask_token"].all()
    assert (report.fresh, report.unused) == ((), ())


def test_the_listing_is_short_and_whole(tmp_path: Path) -> None:
    folder = saved(made("swin", window_size=4), tmp_path / "model")
    report = started("swin", init=folder, views={"mean": (0.5, 0.5, 0.5)}).report
    assert report is not None
    assert report.lines() == [
        f"Weights of {folder}: 106 tensors loaded.",
        "  resized    layers.*.blocks.*.attn.relative_position_bias_table (2 tensors): 49x4 -> 9x4",
        "  resized    layers.*.blocks.*.attn.relative_position_bias_table: 49x8 -> 9x8",
        "  fresh      mask_token, projection heads",
        "  not used   head.fc.bias, head.fc.weight",
        "  note       the weights were trained with another normalisation; to use it: --views.mean 0.485 0.456 0.406 "
        "--views.std 0.229 0.224 0.225",
    ]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_rgb_weights_are_adapted_to_other_channels(family: str) -> None:
    state = features_of(made(family))
    (name,) = (each for each, value in state.items() if value.ndim == 4 and value.shape[1] == 3 and "attn" not in each)
    red, green, blue = state[name].unbind(1)
    grey, report = fitted(family, state, channels=1)
    assert torch.allclose(grey[name][:, 0], red + green + blue, atol=1e-6)
    assert name in [each.name for each in report.resized]
    five, _ = fitted(family, state, channels=5)
    assert torch.allclose(five[name], 0.6 * torch.stack([red, green, blue, red, green], dim=1), atol=1e-6)
    again, report = fitted(family, five, channels=5)
    assert torch.equal(again[name], five[name])
    assert not report.resized
    with pytest.raises(UserError, match=f"shapes differ of {name}"):
        fitted(family, five, channels=4)
