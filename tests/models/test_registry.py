"""From the name of a network to its sizes: families, timm's models, what is refused, and recipes that name another."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from torch import Tensor, nn

import tiny
from command import dashed, poa
from conformance import filler
from poa.config import resolve
from poa.config.pretraining import Config
from poa.config.running import OptimizerSettings
from poa.elastic.space import Size
from poa.errors import UserError
from poa.families.base import Family
from poa.models.registry import FAMILIES, drop_path_of, family_of


def config_of(model: dict[str, Any], **views: Any) -> Config:
    return Config.model_validate({"model": model, "views": views})


def named(name: str, **model: Any) -> Family:
    """For images of 224 pixels, which suit every patch."""
    return family_of(config_of({"name": name, **model}, num_locals=0))


def test_every_family_has_a_tiny_run() -> None:
    assert tiny.FAMILIES.keys() == FAMILIES.keys() - {"slim-resnet"}  # which POA cannot train: test_slim_run.py


@pytest.mark.parametrize(
    ("name", "smallest", "intact", "number", "drop_path"),
    [
        ("vit", "384x12", "1024x24", 143, 0.2),
        ("swin", "96x6", "128x18", 39, 0.2),
        ("resnet", "64x4-6", "128x8-36", 465, 0.0),
        ("convnext", "96x9", "128x27", 57, 0.2),
        ("dinov3", "384x6", "768x12", 49, 0.2),
    ],
)
def test_a_family_is_its_published_network(
    name: str, smallest: str, intact: str, number: int, drop_path: float
) -> None:
    family = named(name)
    assert type(family) is FAMILIES[name]
    assert (str(family.space.sizes[0]), str(family.space.intact), len(family.space.sizes)) == (smallest, intact, number)
    assert drop_path_of(config_of({"name": name}).model) == drop_path
    assert drop_path_of(config_of({"name": name, "drop_path": 0.05}).model) == 0.05


def test_vit_is_the_default() -> None:
    assert named("vit").space == family_of(Config()).space


# ---- timm's models ---------------------------------------------------------------------------------------------------

KNOWN: dict[str, tuple[str, str, int]] = {  # smallest and intact size, and the number of sizes
    "vit_tiny_patch16_224": ("128x6", "192x12", 14),
    "vit_small_patch14_reg4_dinov2.lvd142m": ("192x6", "384x12", 28),
    "vit_small_patch16_dinov3.lvd1689m": ("192x6", "384x12", 28),
    "vit_giant_patch14_dinov2": ("768x20", "1536x40", 273),
    "vit_base_patch32_clip_224": ("384x6", "768x12", 49),
    "vit_wee_patch16_reg1_gap_256": ("128x7", "256x14", 24),
    "vit_base_patch16_siglip_gap_224": ("384x6", "768x12", 49),
    "deit_tiny_patch16_224": ("128x6", "192x12", 14),
    "deit3_small_patch16_224": ("192x6", "384x12", 28),
    "swin_tiny_patch4_window7_224": ("64x3", "96x6", 8),
    "swin_s3_small_224": ("64x9", "96x18", 20),
    "swin_base_patch4_window12_384": ("64x9", "128x18", 30),
    "resnet50_gn": ("32x2-3", "64x4-6", 24),
    "convnextv2_atto": ("32x3", "40x6", 8),
    "convnext_atto_ols": ("32x3", "40x6", 8),
    "convnext_tiny": ("48x5", "96x9", 20),
}
SMALL = [name for name in KNOWN if re.search("tiny|small|atto|50", name) and "s3" not in name]


@pytest.mark.parametrize("name", KNOWN)
def test_search_spaces_of_timms_models(name: str) -> None:
    """Down to half the width, in steps of a head (or what suits the family), and to half the depth."""
    space = named(name).space
    assert (str(space.sizes[0]), str(space.intact), len(space.sizes)) == KNOWN[name]


def structure(model: nn.Module) -> dict[str, tuple[str, str]]:
    """Kind and settings of every layer, but for what drops."""
    return {
        name: (type(module).__name__, module.extra_repr())
        for name, module in model.named_modules()
        if "drop" not in name
    }


@pytest.mark.parametrize("name", KNOWN)
def test_the_intact_network_is_timms_model(name: str) -> None:
    """Layer by layer; position tables and windows as the run's images need them."""
    family = named(name)
    side = {"img_size": 224} if takes_image_size(name) else {}
    with torch.device("meta"):
        ours = family.build(family.space.intact).model
        theirs = timm.create_model(name.partition(".")[0], num_classes=0, **side)
    assert structure(ours) == structure(theirs)
    shapes = [{key: value.shape for key, value in model.named_parameters()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


def takes_image_size(name: str) -> bool:
    return not name.startswith(("resnet", "convnext"))


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_the_intact_network_computes_what_timms_model_does(name: str) -> None:
    family = named(name)
    side = {"img_size": 224} if takes_image_size(name) else {}
    theirs = timm.create_model(name.partition(".")[0], num_classes=0, **side).eval()
    ours = family.build(family.space.intact).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    ours.model.load_state_dict(theirs.state_dict())
    images = filler((1, 3, 224, 224)).float()
    expected: Tensor = theirs.forward_features(images)[:, 0] if "dinov3" in name else theirs(images)
    assert torch.equal(ours(images).cls, expected)


def test_weights_of_an_architecture_share_its_network() -> None:
    assert named("vit_small_patch14_reg4_dinov2.lvd142m") == named("vit_small_patch14_reg4_dinov2")


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        ({"name": "vit_tiny_patch16_224", "width_min": 64, "depth_min": 11}, "64x11 64x12 128x11 128x12 192x11 192x12"),
        (
            {"name": "vit_tiny_patch16_224", "depth_step": 4, "width_step": 128},
            "128x6 128x10 128x12 192x6 192x10 192x12",
        ),
        ({"name": "vit_tiny_patch16_224", "width_max": 128, "depth_max": 3}, "64x2 64x3 128x2 128x3"),
        ({"name": "vit_tiny_patch16_224", "head_dim": 96, "depth_min": 12}, "96x12 192x12"),
        ({"name": "swin_tiny_patch4_window7_224", "depths": [1, 1, 2, 1]}, "64x1 64x2 96x1 96x2"),
        ({"name": "swin_tiny_patch4_window7_224", "depths": [1, 1, 9, 1], "depth_max": 2}, "64x1 64x2 96x1 96x2"),
        ({"name": "resnet50_gn", "depths": [1, 1, 2, 1]}, "32x1-1 32x1-2 64x1-1 64x1-2"),
        ({"name": "resnet50_gn", "depth_min": [4, 5], "width_min": 64}, "64x4-5 64x4-6"),
        ({"name": "slim-resnet", "widths": [64, 16, 24, 64]}, "16x3-4-6-3 24x3-4-6-3 64x3-4-6-3"),
        ({"name": "vit_tiny_patch16_224", "widths": 64, "width_min": 128, "depth_min": 11}, "64x11 64x12"),
        ({"name": "convnextv2_atto", "width_step": 20, "depth_min": [5]}, "20x5 20x6 40x5 40x6"),
    ],
)
def test_what_is_set_wins_over_what_the_network_has(model: dict[str, Any], sizes: str) -> None:
    """The largest width and depth are always among the sizes, whatever the steps."""
    assert " ".join(map(str, named(**model).space.sizes)) == sizes


def test_depths_of_all_stages_reach_the_network() -> None:
    family = named("resnet50_gn", depths=[2, 1, 2, 1])
    assert [len(getattr(family.build(Size(32, (1, 2))).model, f"layer{stage}")) for stage in range(1, 5)] == [
        2,
        1,
        2,
        1,
    ]


# ---- what cannot be --------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "BatchNorm": ({"name": "resnet50"}, r"--model resnet50 cannot be cut.* no group norm.*; use resnet50_gn\."),
    "grouped convolutions": ({"name": "resnext50_32x4d"}, r"cannot be cut into sizes: .*group norm"),
    "attention pooling": ({"name": "vit_base_patch16_siglip_224"}, r"its image feature is not the class token"),
    "patches of a network": ({"name": "vit_small_r26_s32_224"}, r"its patches come from a network of its own"),
    "other blocks": ({"name": "vit_small_patch16_18x2_224"}, r"its blocks are not plain ones"),
    "windows": ({"name": "swin_s3_tiny_224"}, r"cannot be cut into sizes: its windows differ from stage to stage\."),
    "widths": ({"name": "test_convnext"}, r"its widths do not double from stage to stage"),
    "another family": ({"name": "efficientnet_b0"}, r"EfficientNet, which cannot be cut.*vit, swin, resnet, c"),
    "distillation token": ({"name": "deit_tiny_distilled_patch16_224"}, r"VisionTransformerDistilled, which cannot"),
    "version 2": ({"name": "swinv2_tiny_window8_256"}, r"SwinTransformerV2, which cannot be cut"),
    "mistyped model": ({"name": "resnt50_gn"}, r"there is no such .*timm model\. Did you mean 'resnet50_gn'\?"),
    "mistyped family": ({"name": "swinn"}, r"--model swinn: there is no such family.* Did you mean 'swin'\?"),
    "windows of a ViT": (
        {"name": "vit", "window_size": 7},
        r"--model\.window-size has no effect on a ViT\. Leave it out",
    ),
    "stages of a ViT": ({"name": "vit", "depths": [2, 2, 6, 2]}, r"--model\.depths has no effect on a ViT"),
    "registers of a Swin": (
        {"name": "swin", "register_tokens": 4},
        r"--model\.register-tokens has no effect on a Swin",
    ),
    "heads of a ResNet": ({"name": "resnet", "head_dim": 16}, r"--model\.head-dim has no effect on a ResNet"),
    "channels of a ConvNeXt": ({"name": "convnext", "channels": 32}, r"--model\.channels has no effect on a ConvNeXt"),
    "SwiGLU of a DINOv3": ({"name": "dinov3", "swiglu": True}, r"--model\.swiglu has no effect on a DINOv3"),
    "one depth": (
        {"name": "resnet", "depth_min": 4},
        r"--model\.depth-min takes one number for each elastic stage, here 2, got 1",
    ),
    "two depths": (
        {"name": "swin", "depth_max": [4, 6]},
        r"--model\.depth-max takes one .* elastic stage, here 1, got 2\.",
    ),
    "three stages": (
        {"name": "swin", "depths": [2, 2, 6]},
        r"--model\.depths takes 4 numbers, one for each stage, got 3",
    ),
    "one stage": ({"name": "resnet", "depths": 4}, r"--model\.depths takes 4 numbers, one for each stage, got 1"),
    "five stages": ({"name": "convnext", "depths": [3, 3, 9, 3, 3]}, r"--model\.depths takes 4 numbers.* got 5"),
    "too shallow": (
        {"name": "swin", "depths": [2, 2, 4, 2]},
        r"smallest depth 6 is above the largest, 4\. Lower --model\.d",
    ),
    "too narrow": (
        {"name": "swin", "width_max": 64},
        r"smallest width 96 is above the largest, 64\. Lower --model\.width",
    ),
    "heads": (
        {"name": "swin", "head_dim": 24},
        r"Widths are multiples of the head dimension 24, got 128\. Change --model",
    ),
    "norm groups": (
        {"name": "resnet", "width_min": 48},
        r"multiples of the number of norm groups, 32, got 48\. Change",
    ),
    "channels": ({"name": "resnet", "channels": 24}, r"--model\.channels of a ResNet must be 16, 32, 64, 128…, got 24"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    model, told = REFUSED[case]
    with pytest.raises(UserError, match=told):
        named(**model)


@pytest.mark.parametrize(
    ("name", "views", "told"),
    [
        (
            "convnext",
            {"global_size": 16},
            r"Images of 16 pixels are too small .* ConvNeXt\. Set --views\.global-size to .* 32",
        ),
        (
            "convnext",
            {"local_size": 16},
            r"too small .* ConvNeXt\. Set --views\.local-size to .* 32, or --views\.num-locals to 0\.",
        ),
        (
            "resnet",
            {"local_size": 16},
            r"Images of 16 pixels are too small .* ResNet\. Set --views\.local-size to .* 17",
        ),
        (
            "swin",
            {"global_size": 222},
            r"image size 222 is not a multiple .* 4\. Set --views\.global-size to 220 or 224",
        ),
        ("dinov3", {"local_size": 90}, r"image size 90 is not a multiple .* 16\. Set --views\.local-size to 80 or 96"),
        (
            "vit_small_patch14_dinov2",
            {},
            r"image size 96 is not a multiple .* 14\. Set --views\.local-size to 84 or 98",
        ),
    ],
)
def test_image_sizes_that_do_not_fit(name: str, views: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        family_of(config_of({"name": name}, **views))
    if "local_size" in views:
        family_of(config_of({"name": name}, **views, num_locals=0))


def test_the_mlps_of_an_architecture_stay_as_they_are() -> None:
    """Gated ones need an architecture that has them; the published ViT can be had with both."""
    for name, swiglu in (("vit_tiny_patch16_224", True), ("vit_giant_patch14_dinov2", False)):
        family = named(name, swiglu=swiglu)
        with pytest.raises(UserError, match=rf"--model\.swiglu cannot change the MLPs of {name}\. Leave it out\."):
            family.build(family.space.sizes[0])
    with torch.device("meta"):
        gated = named("vit", swiglu=True).build(Size(384, (12,)))
    assert "blocks.0.mlp.fc1.weight" in dict(gated.model.named_parameters())


def test_a_resnet_is_trained_without_drop_path() -> None:
    family = named("resnet")
    with pytest.raises(UserError, match=r"--model\.drop-path: a ResNet is trained without drop path\. Leave it out\."):
        family.build(family.space.sizes[0], drop_path=0.1)


# ---- recipes and files -----------------------------------------------------------------------------------------------


def model_of(config: Config) -> dict[str, Any]:
    """What is said about the network."""
    return {name: value for name, value in config.model.model_dump().items() if value is not None}


def test_another_network_leaves_the_recipes_settings_behind(tmp_path: Path) -> None:
    """Those of the network only; the rest of the recipe stays."""
    recipe = resolve.resolve(recipe="vit-small-data")
    assert model_of(recipe)["patch_size"] == 8
    for given in ("swin", {"name": "swin"}):
        found = resolve.resolve({"model": given}, recipe="vit-small-data")
        assert model_of(found) == {"name": "swin", "depth_step": 1}
        usual = {"small_size": None, "small_epochs": 0.0, "drop_patches": 0.0}  # what suits its patches goes with it
        assert recipe.views.small_size == 24
        assert found.views == recipe.views.model_copy(update=usual)
        assert (found.heads, found.optimizer) == (recipe.heads, recipe.optimizer)
    assert resolve.resolve({"model": "swin"}, recipe="vit-96").views.drop_patches == 0.0
    file = tmp_path / "mine.yaml"
    file.write_text("views: {small_size: 16, small_epochs: 2}\n")
    found = resolve.resolve({"model": "swin"}, recipe="vit-small-data", file=file)
    assert (found.views.small_size, found.views.small_epochs) == (16, 2.0), "what a user has set is kept"
    given = {"name": "resnet50_gn", "depth_min": [2, 2]}
    assert model_of(resolve.resolve({"model": given}, recipe="swin-small-data")) == {**given, "depth_step": 1} | {
        "depth_min": (2, 2)
    }


@pytest.mark.parametrize("given", [{"name": "vit"}, {}])
def test_the_same_network_keeps_them(given: dict[str, Any]) -> None:
    """Also where the recipe does not name it, since ViT goes without saying."""
    before = resolve.resolve(recipe="vit-small-data").model
    after = resolve.resolve({"model": {**given, "depth_max": 5}}, recipe="vit-small-data").model
    assert after == before.model_copy(update={"depth_max": (5,), "name": "vit"})


def test_an_architecture_is_another_network_than_its_family() -> None:
    found = resolve.resolve({"model": "vit_tiny_patch16_224"}, recipe="vit-small-data")
    assert model_of(found) == {"name": "vit_tiny_patch16_224", "depth_step": 1}


def test_a_recipe_may_build_on_another_with_another_network() -> None:
    """`recipe: convnext-small-data` in the recipe itself: all but the network, and what it states, is taken over."""
    content = resolve.read_recipe("swin-small-data")
    assert "recipe" not in content
    convnext, swin = resolve.resolve(recipe="convnext-small-data"), resolve.resolve(recipe="swin-small-data")
    assert model_of(swin).keys() >= {"window_size", "depths"}
    assert swin.model.register_tokens is swin.model.resize_positions is None
    assert swin.heads == convnext.heads
    assert swin.optimizer.clip == convnext.optimizer.clip != OptimizerSettings().clip


def test_files_and_flags_are_laid_over_one_another(tmp_path: Path) -> None:
    """Each may name another network, by its name alone too; dashes or not."""
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: swin-small-data\nmodel: convnextv2_atto\n")
    assert model_of(resolve.resolve(file=file)) == {"name": "convnextv2_atto", "depth_step": 1}
    file.write_text("recipe: swin-small-data\nmodel: {window-size: 2}\n")
    kept = resolve.resolve(file=file).model
    assert kept == resolve.resolve(recipe="swin-small-data").model.model_copy(update={"window_size": 2})
    file.write_text("recipe: vit-small-data\nmodel: {name: swin, head-dim: 8, depth-step: 2}\n")
    over = resolve.resolve({"model": {"depth_step": 3}}, file=file)
    assert model_of(over) == {"name": "swin", "head_dim": 8, "depth_step": 3}
    away = resolve.resolve({"model": {"name": "resnet", "depth_step": 3}}, file=file)
    assert model_of(away) == {"name": "resnet", "depth_step": 3}
    back = resolve.resolve({"model": "vit"}, file=file)
    assert model_of(back) == {"name": "vit", "depth_step": 1}, "what the recipe said was left behind before"


@pytest.mark.parametrize("recipe", resolve.recipes())
def test_every_recipe_has_a_network_that_fits_its_images(recipe: str) -> None:
    assert 20 < len(resolve.recipe_summary(recipe)) < 200
    config = resolve.resolve(recipe=recipe)
    family = family_of(config)
    assert len(family.space.sizes) > 1
    assert family.mask_grid(config.views.global_size) > 1
    with torch.device("meta"):
        for size in (family.space.sizes[0], family.space.intact):
            family.build(size, drop_path=drop_path_of(config.model))


# ---- the command -----------------------------------------------------------------------------------------------------


def test_model_is_short_for_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    words = "pretrain --recipe vit-small-data --model swin --model.head-dim 8 --model.depths 1 1 2 1 --print-config"
    assert poa(*words.split()) == 0
    found = yaml.safe_load(capsys.readouterr().out)["model"]
    expected = {"name": "swin", "head_dim": 8, "depths": [1, 1, 2, 1], "depth_step": 1}
    assert {name: value for name, value in found.items() if value is not None} == expected


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_dry_run_writes_nothing(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(dashed(tiny.settings(family))))
    assert poa("pretrain", "--config", "tiny.yaml", "--dry-run") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (lines["images"], int(lines["sizes"])) == ("64", len(family_of(tiny.config(family)).space.sizes))
    assert lines["time"].endswith("for 8 steps")
