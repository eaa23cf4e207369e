import math

import numpy as np
import pytest
import torch
from torch import nn

from conformance import filler
from poa.elastic.plan import Cut, SlicePlan
from poa.elastic.space import Size
from poa.elastic.switchable import SwitchableNetworks, state
from poa.errors import UserError
from poa.pretraining.gradients import SliceNorms, leading_singular_values, slice_norms


def plan(*cuts: tuple[str, tuple[int, ...]], groups: tuple[int, ...] = (1, 1), scale: float = 1.0) -> SlicePlan:
    return SlicePlan({name: Cut(name, shape, groups[: len(shape)], scale) for name, shape in cuts})


GRADIENTS = {
    "first": torch.tensor([[3.0, 4.0], [12.0, 84.0]]),
    "second": torch.tensor([[6.0, 8.0]]),
    "bias": torch.tensor([100.0, 100.0]),
}
FULL = plan(("first", (2, 2)), ("second", (1, 2)), ("bias", (2,)))
NARROW = plan(("first", (1, 2)), ("second", (1, 1)), ("bias", (1,)), scale=2.0)


def test_by_hand() -> None:
    """Norms 85.05... and 5 of the first, 10 and 6 of the second; of what is left, 84.85... and 8."""
    found = slice_norms(GRADIENTS, [FULL, NARROW])
    assert found.layers == ("first", "second")
    whole = math.sqrt(9 + 16 + 144 + 84**2)
    torch.testing.assert_close(found.norms, torch.tensor([[whole, 5.0], [10.0, 6.0]], dtype=torch.float64))
    assert found.means() == pytest.approx(((whole + 10) / 2, 5.5))
    assert found.rest_ratio(1) == pytest.approx((math.sqrt(144 + 84**2) + 8) / 11)
    assert found.rest_ratio(0) == 0.0


def test_groups_are_cut_as_the_plan_says() -> None:
    gradient = torch.arange(1.0, 5.0)[:, None]
    full, narrow = plan(("fused", (4, 1)), groups=(2, 1)), plan(("fused", (2, 1)), groups=(2, 1))
    assert slice_norms({"fused": gradient}, [full, narrow]).norms[0, 1] == pytest.approx(math.hypot(1.0, 3.0))


def test_layers_without_finite_gradient_are_left_out() -> None:
    broken = GRADIENTS | {"first": torch.tensor([[3.0, 4.0], [float("nan"), 0.0]])}
    assert slice_norms(broken, [FULL, NARROW]).layers == ("second",)
    absent = {name: value for name, value in GRADIENTS.items() if name != "second"}
    assert slice_norms(absent, [FULL, NARROW]).layers == ("first",)
    for nothing in ({}, {"bias": torch.ones(2)}):
        with pytest.raises(UserError, match="None of the weights has a gradient"):
            slice_norms(nothing, [FULL, NARROW])


def test_where_no_gradient_is_finite_there_are_no_numbers() -> None:
    found = slice_norms({"second": torch.tensor([[float("inf"), 1.0]])}, [FULL, NARROW])
    assert found.layers == ()
    assert all(map(math.isnan, (*found.means(), found.rest_ratio(1))))


def test_low_precision_is_measured_in_float64() -> None:
    gradients = {"first": torch.full((2, 2), 4e4, dtype=torch.float16), "second": torch.ones(1, 2)}
    assert slice_norms(gradients, [FULL, NARROW]).norms[0, 0] == pytest.approx(2 * float(torch.tensor(4e4).half()))


def build(size: Size) -> nn.Sequential:
    width = size.width
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))


def test_slices_of_real_networks() -> None:
    """Inputs of the first layer and outputs of the last are whole; what the narrow width leaves has no gradient."""
    nets = SwitchableNetworks(build, [Size(8, (1,)), Size(4, (1,)), Size(2, (1,))])
    torch.manual_seed(0)
    whole = nets.whole()
    nets.bind(nets.sizes[1], state(whole), training=True)(filler((6, 3)).float())[:, 0].sum().backward()
    gradients = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
    found = slice_norms(gradients, [nets.plan(size) for size in nets.sizes])
    assert found.layers == ("0.weight", "3.weight")
    assert torch.equal(found.norms[:, 0], found.norms[:, 1])
    assert found.rest_ratio(1) == 0.0
    expected = gradients["3.weight"][:, :2].double().norm()
    assert found.norms[1, 2] == pytest.approx(float(expected))
    assert found.norms[1, 2] < found.norms[1, 1]


def test_rounding_leaves_no_negative_rest() -> None:
    norms = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)
    assert SliceNorms(("a",), norms).rest_ratio(1) == 0.0


def test_singular_values() -> None:
    rotated = torch.tensor([[0.6, -0.8], [0.8, 0.6]]) @ torch.diag(torch.tensor([2.0, 5.0]))
    assert leading_singular_values(rotated) == pytest.approx((5.0, 2.0))
    gradient = filler((7, 4), 3)
    expected = np.linalg.svd(gradient.numpy(), compute_uv=False)
    assert leading_singular_values(gradient) == pytest.approx(expected[:2])
    assert leading_singular_values(gradient, number=9) == pytest.approx(expected)
    assert all(map(math.isnan, leading_singular_values(torch.full((2, 2), float("nan")))))
