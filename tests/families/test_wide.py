"""Linear layers that multiply in float32 under autocast."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.testing import assert_close

from families.networks import TINY
from poa.families.wide import WideLinear, WideMlp, widen


def autocast() -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16)


def pair(bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(24, 16, bias=bias)
    wide = nn.Linear(24, 16, bias=bias)
    wide.load_state_dict(plain.state_dict())
    wide.__class__ = WideLinear
    return plain, wide


@pytest.mark.parametrize("bias", [True, False])
def test_without_autocast_it_is_a_linear_layer_bit_for_bit(bias: bool) -> None:
    plain, wide = pair(bias)
    rows = torch.randn(3, 5, 24)
    assert torch.equal(wide(rows), plain(rows))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_products_are_of_float32_and_what_is_kept_is_of_low_precision(dtype: torch.dtype) -> None:
    plain, wide = pair()
    rows = torch.randn(3, 5, 24).to(dtype).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x), autocast():
        product = wide(rows)
    assert [each.dtype for each in kept] == [torch.bfloat16, torch.float32]  # inputs, weight
    expected = plain(rows.float())
    assert torch.equal(product, expected.bfloat16())
    given = torch.randn(3, 5, 16).bfloat16()
    with autocast():  # as compiled backward passes have it
        product.backward(given)
    of_rows, of_weight, of_bias = torch.autograd.grad(expected, (rows, plain.weight, plain.bias), given.float())
    assert_close(rows.grad, of_rows)
    assert_close(wide.weight.grad, of_weight, rtol=0.02, atol=0.02)  # inputs were rounded to 8 bits
    assert_close(wide.bias.grad, of_bias)


def test_an_mlp_keeps_its_hidden_layer_once_and_has_the_gradients_of_a_plain_one() -> None:
    torch.manual_seed(0)
    plain, mlp = Mlp(24, 32), Mlp(24, 32)
    mlp.load_state_dict(plain.state_dict())
    widen(mlp)
    assert type(mlp) is WideMlp
    rows = torch.randn(3, 5, 24)
    assert torch.equal(mlp(rows), plain(rows))
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x), autocast():
        made = mlp(rows)
    assert [tuple(each.shape) for each in kept if each.dtype == torch.bfloat16] == [(3, 5, 24), (3, 5, 32)]
    assert made.dtype == torch.bfloat16
    assert_close(made.float(), plain(rows), rtol=0.02, atol=0.02)
    given = torch.randn(3, 5, 24)
    made.backward(given.bfloat16())
    plain(rows).backward(given)
    for name, parameter in plain.named_parameters():
        assert_close(mlp.get_parameter(name).grad, parameter.grad, rtol=0.02, atol=0.05)


@pytest.mark.parametrize(
    "further", [{"act_layer": nn.ReLU}, {"norm_layer": nn.LayerNorm}, {"drop": 0.1}, {"use_conv": True}]
)
def test_other_mlps_stay_as_they_are(further: dict[str, Any]) -> None:
    mlp = Mlp(8, 16, **further)
    widen(mlp)
    assert type(mlp) is Mlp


def test_weights_without_gradient_get_none() -> None:
    _, wide = pair()
    rows = torch.randn(5, 24, requires_grad=True)
    with autocast():
        product = wide.requires_grad_(False)(rows)
    product.sum().backward()
    assert rows.grad is not None
    assert wide.weight.grad is wide.bias.grad is None


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_families_build_all_linear_layers_so_if_asked(name: str) -> None:
    with torch.device("meta"):
        plain, wide = (
            replace(TINY[name], wide_products=asked).build(TINY[name].space.intact) for asked in (False, True)
        )
    linear = [key for key, layer in plain.named_modules() if isinstance(layer, nn.Linear)]
    assert [key for key, layer in wide.named_modules() if type(layer) is WideLinear] == linear
    assert list(plain.state_dict()) == list(wide.state_dict())
