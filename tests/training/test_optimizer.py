import re
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import nn

from poa.config.pretraining import Config
from poa.models.registry import family_of
from poa.training.optimizer import (
    OPTIMIZERS,
    build_adamw,
    clip_gradients,
    norm_parameters,
    parameter_groups,
    set_schedule,
)
from poa.training.schedules import StepValues

VALUES = StepValues(lr=0.5, weight_decay=0.2, momentum=0.99, temperature=0.05, last_layer_lr=0.1)
VIT_NAMES = [
    "backbone.mask_token",
    "backbone.model.cls_token",
    "backbone.model.pos_embed",
    "backbone.model.patch_embed.proj.weight",
    "backbone.model.patch_embed.proj.bias",
    *(
        f"backbone.model.blocks.{i}.{name}"
        for i in (0, 23)
        for name in ("attn.qkv.weight", "norm1.weight", "ls1.gamma")
    ),
    "backbone.model.norm.weight",
    "heads.0.layers.0.weight",
    "heads.0.layers.0.bias",
    "heads.0.weight_g",
    "heads.0.weight_v",
]


def vit_layer(name: str) -> int | None:
    block = re.search(r"\.blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return None if name.startswith("backbone.model.norm.") else 0


def parameters(names: Iterable[str]) -> list[tuple[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    return [(name, nn.Parameter(torch.randn(3, generator=generator))) for name in names]


def multipliers(names: list[str], layer_of: Callable[[str], int | None], *, layers: int, decay: float) -> list[float]:
    groups = parameter_groups(parameters(names), layer_of=layer_of, num_layers=layers, layer_decay=decay)
    found = {name: group["lr_multiplier"] for group in groups for name, _ in group["params"]}
    return [found[name] for name in names]


def members(entry: str, value: float | bool) -> set[str]:
    groups = parameter_groups(parameters(VIT_NAMES), layer_of=vit_layer, num_layers=24, layer_decay=0.9)
    return {name for group in groups if group[entry] == value for name, _ in group["params"]}


def test_official_vit_multipliers() -> None:
    names = [VIT_NAMES[i] for i in (0, 1, 2, 3, 4, 5, 8, 11, 12, 14)]
    expected = [0.07179] * 3 + [0.014358] * 2 + [0.079766, 0.9, 1, 1, 1]
    assert multipliers(names, vit_layer, layers=24, decay=0.9) == pytest.approx(expected, rel=1e-4)


def of_family(name: str, *, decay: float, **model: Any) -> dict[str, dict[str, Any]]:
    """Entries of the group of each backbone parameter of a network, by the timm model's names."""
    family = family_of(Config.model_validate({"model": {"name": name, **model}}))
    with torch.device("meta"):
        student = nn.ModuleDict({"backbone": family.build(family.space.intact)})
    groups = parameter_groups(
        student.named_parameters(),
        layer_of=family.layer,
        num_layers=family.num_layers,
        layer_decay=decay,
        norms=norm_parameters(student),
    )
    found = {name: group for group in groups for name, _ in group["params"]}
    assert found.keys() == dict(student.named_parameters()).keys()
    return {name.removeprefix("backbone.").removeprefix("model."): group for name, group in found.items()}


OFFICIAL = {
    # Blocks are counted through stages of 2, 2, 18 and 2; what merges patches learns as the first block behind it.
    "swin": (
        0.9,
        {
            "mask_token": 0.071790,
            "patch_embed.proj.weight": 0.014358,
            "patch_embed.norm.bias": 0.014358,
            "layers.0.blocks.0.attn.relative_position_bias_table": 0.079766,
            "layers.0.blocks.1.mlp.fc2.weight": 0.088629,
            "layers.1.downsample.reduction.weight": 0.098477,
            "layers.1.downsample.norm.weight": 0.098477,
            "layers.1.blocks.0.norm1.weight": 0.098477,
            "layers.2.blocks.17.attn.qkv.bias": 0.729,
            "layers.3.downsample.reduction.weight": 0.81,
            "layers.3.blocks.1.mlp.fc1.weight": 0.9,
            "norm.weight": 1.0,
        },
    ),
    # Fifty blocks, of which the last has the full rate.
    "resnet": (
        0.95,
        {
            "mask_token": 0.07694,
            "conv1.weight": 0.07694,
            "bn1.weight": 0.07694,
            "layer1.0.conv1.weight": 0.08099,
            "layer1.0.downsample.0.weight": 0.08099,
            "layer2.0.conv2.weight": 0.08099 / 0.95**3,
            "layer3.35.bn2.weight": 0.95**3,
            "layer4.2.conv3.weight": 1.0,
        },
    ),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_multipliers(name: str) -> None:
    decay, expected = OFFICIAL[name]
    groups = of_family(name, decay=decay)
    found = {parameter: groups[parameter]["lr_multiplier"] for parameter in expected}
    assert found == pytest.approx(expected, rel=1e-4)


def test_convnext_multipliers() -> None:
    """Counted as a Swin's; the norm after pooling is beyond the last block."""
    groups = of_family("convnext", decay=0.5, depths=[1, 1, 2, 1], depth_min=[1])
    expected = {
        "mask_token": 1 / 64,
        "stem.0.weight": 1 / 64,
        "stages.0.blocks.0.gamma": 1 / 32,
        "stages.1.downsample.1.weight": 1 / 16,
        "stages.1.blocks.0.conv_dw.weight": 1 / 16,
        "stages.2.blocks.1.mlp.fc1.bias": 1 / 4,
        "stages.3.downsample.0.weight": 1 / 2,
        "stages.3.blocks.0.mlp.fc2.weight": 1 / 2,
        "head.norm.weight": 1.0,
    }
    assert {name: groups[name]["lr_multiplier"] for name in expected} == expected


@pytest.mark.parametrize(
    ("name", "decaying"),
    [
        ("vit", {"mask_token", "cls_token", "pos_embed"}),
        ("dinov3", {"mask_token", "cls_token", "reg_token"}),
        ("swin", {"mask_token", "relative_position_bias_table"}),
        ("resnet", {"mask_token"}),
        ("convnext", {"mask_token"}),
    ],
)
def test_matrices_tokens_and_tables_decay_and_nothing_else(name: str, decaying: set[str]) -> None:
    """No norm does. In the official code the scales of ResNet's `downsample.1` do, since their names lack `norm`."""
    groups = of_family(name, decay=0.9)
    for parameter, group in groups.items():
        member = dict(group["params"])[f"backbone.{'' if parameter == 'mask_token' else 'model.'}{parameter}"]
        is_matrix = parameter.endswith(".weight") and member.ndim > 1
        expected = is_matrix or parameter.split(".")[-1] in decaying
        assert group["weight_decay_multiplier"] == float(expected), parameter


def test_what_does_not_decay() -> None:
    assert members("weight_decay_multiplier", 0.0) == {
        "backbone.model.patch_embed.proj.bias",
        *(f"backbone.model.blocks.{i}.{name}" for i in (0, 23) for name in ("norm1.weight", "ls1.gamma")),
        "backbone.model.norm.weight",
        "heads.0.layers.0.bias",
    }


def test_last_layer() -> None:
    assert members("last_layer", True) == {"heads.0.weight_g", "heads.0.weight_v"}


def test_groups_are_fused_and_in_order() -> None:
    pairs = parameters(VIT_NAMES)
    pairs[1][1].requires_grad_(False)
    groups = parameter_groups(pairs, layer_of=vit_layer, num_layers=24, layer_decay=0.9)
    kinds = [(group["lr_multiplier"], group["weight_decay_multiplier"], group["last_layer"]) for group in groups]
    assert len(kinds) == len(set(kinds)) == 10
    assert [name for name, _ in groups[0]["params"]] == ["backbone.mask_token", "backbone.model.pos_embed"]


def test_set_schedule() -> None:
    groups = parameter_groups(parameters(VIT_NAMES), layer_of=vit_layer, num_layers=24, layer_decay=0.9)
    optimizer = build_adamw(groups)
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}
    set_schedule(optimizer, VALUES)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    decays = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["param_names"]}
    assert rates["heads.0.weight_v"] == 0.1
    assert rates["heads.0.layers.0.weight"] == 0.5
    assert rates["backbone.model.patch_embed.proj.weight"] == pytest.approx(0.5 * 0.2 * 0.9**25)
    assert decays["backbone.model.cls_token"] == 0.2
    assert decays["backbone.model.norm.weight"] == 0.0


def test_a_backbone_may_warm_up_longer_than_the_heads() -> None:
    """In groups of its own then; those of a checkpoint of an earlier commit have no entry for it."""
    layout: dict[str, Any] = {"layer_of": vit_layer, "num_layers": 24, "layer_decay": 0.9}
    together = parameter_groups(parameters(VIT_NAMES), **layout)
    optimizer = build_adamw(parameter_groups(parameters(VIT_NAMES), **layout, backbone_warms_up=True))
    assert len(optimizer.param_groups) == len(together) + 1, "the norm after the last block has the rate of the heads"
    set_schedule(optimizer, VALUES._replace(backbone=0.25))
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    assert rates["backbone.model.norm.weight"] == 0.125
    assert rates["backbone.model.blocks.23.norm1.weight"] == pytest.approx(0.125 * 0.9)
    assert rates["heads.0.layers.0.weight"] == 0.5
    assert rates["heads.0.weight_v"] == 0.1
    for group in optimizer.param_groups:
        del group["warms_up"]
    set_schedule(optimizer, VALUES)
    assert {group["lr"] for group in optimizer.param_groups if "heads.0.layers.0.weight" in group["param_names"]} == {
        0.5
    }


def test_step_is_adamw() -> None:
    """Three steps of the formula, in float64."""
    pairs = parameters(["heads.0.layers.0.weight"])
    parameter = pairs[0][1]
    optimizer = build_adamw(parameter_groups(pairs, layer_of=vit_layer, num_layers=24, layer_decay=0.9))
    set_schedule(optimizer, VALUES)
    expected = parameter.detach().double()
    first, second = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for step in range(1, 4):
        gradient = torch.tensor([0.3, -2.0, 1e-3]) * step
        parameter.grad = gradient.clone()
        optimizer.step()
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        update = first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        expected = expected * (1 - 0.5 * 0.2) - 0.5 * update
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_modules_are_clipped_separately() -> None:
    backbone, head, frozen = nn.Linear(2, 2, bias=False), nn.Linear(1, 2), nn.Linear(1, 1)
    backbone.weight.grad = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    head.weight.grad, head.bias.grad = torch.tensor([[0.0], [0.6]]), torch.tensor([0.8, 0.0])
    norms = clip_gradients([backbone, head, frozen], max_norm=1.5)
    assert [norm.item() for norm in norms] == pytest.approx([5.0, 1.0, 0.0])
    torch.testing.assert_close(backbone.weight.grad, torch.tensor([[0.9, 0.0], [0.0, 1.2]]))
    torch.testing.assert_close(head.weight.grad, torch.tensor([[0.0], [0.6]]))


def test_infinite_limit_only_measures() -> None:
    module = nn.Linear(1, 1, bias=False)
    module.weight.grad = torch.tensor([[7.0]])
    assert clip_gradients([module], max_norm=float("inf"))[0].item() == 7.0
    assert module.weight.grad.item() == 7.0


@pytest.mark.parametrize(
    ("kind", "published"),
    [
        ("adamw", {"betas": (0.9, 0.999), "eps": 1e-8}),
        ("sgd", {"momentum": 0.9, "nesterov": False}),
        ("lars", {"momentum": 0.9, "trust": 0.001}),
    ],
)
def test_constants_are_as_published(kind: str, published: dict[str, Any]) -> None:
    (group,) = OPTIMIZERS[kind]([{"params": [("weight", nn.Parameter(torch.zeros(2)))]}]).param_groups
    assert {name: group[name] for name in published} == published
