import re
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import nn

from poa.training.optimizer import build_optimizer, clip_gradients, parameter_groups, set_schedule
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


def test_official_swin_multipliers() -> None:
    """Blocks counted through stages of 2, 2, 18 and 2."""
    layers = {
        "stages.0.blocks.0.attn.w_msa.relative_position_bias_table": 1,
        "stages.0.downsample.reduction.weight": 3,
        "stages.3.blocks.1.ffn.fc1.weight": 24,
        "norm3.weight": None,
    }
    actual = multipliers(list(layers), layers.__getitem__, layers=24, decay=0.9)
    assert actual == pytest.approx([0.079766, 0.098477, 0.9, 1], rel=1e-4)


def test_official_resnet_multipliers() -> None:
    """Fifty blocks, of which the last has the full rate."""
    layers = {"conv1.weight": 0, "layer1.0.conv1.weight": 1, "layer4.2.conv3.weight": 50}
    actual = multipliers(list(layers), layers.__getitem__, layers=49, decay=0.95)
    assert actual == pytest.approx([0.07694, 0.08099, 1], rel=1e-4)


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
    optimizer = build_optimizer(groups)
    assert {group["lr"] for group in optimizer.param_groups} == {0.0}
    set_schedule(optimizer, VALUES)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    decays = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["param_names"]}
    assert rates["heads.0.weight_v"] == 0.1
    assert rates["heads.0.layers.0.weight"] == 0.5
    assert rates["backbone.model.patch_embed.proj.weight"] == pytest.approx(0.5 * 0.2 * 0.9**25)
    assert decays["backbone.model.cls_token"] == 0.2
    assert decays["backbone.model.norm.weight"] == 0.0


def test_step_is_adamw() -> None:
    """Three steps of the formula, in float64."""
    pairs = parameters(["heads.0.layers.0.weight"])
    parameter = pairs[0][1]
    optimizer = build_optimizer(parameter_groups(pairs, layer_of=vit_layer, num_layers=24, layer_decay=0.9))
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
