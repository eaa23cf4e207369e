import math

import pytest
import torch
from torch import nn

from conformance import filler
from poa.training.optimizer import Lars


def set_gradient(parameter: nn.Parameter, values: list[list[float]] | list[float]) -> None:
    parameter.grad = torch.tensor(values, dtype=parameter.dtype)


def test_by_hand() -> None:
    """Weights of norm 5; with their decay of 0.1 the gradient is (0.6, 0.8), of norm 1."""
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    bias = nn.Parameter(torch.tensor([2.0]))
    optimizer = Lars([weight, bias], lr=2.0, momentum=0.5, weight_decay=0.1, trust=0.01)
    set_gradient(weight, [[0.3, 0.4]])
    set_gradient(bias, [0.25])
    optimizer.step()
    torch.testing.assert_close(weight.data, torch.tensor([[3.0 - 2 * 0.05 * 0.6, 4.0 - 2 * 0.05 * 0.8]]))
    torch.testing.assert_close(bias.data, torch.tensor([1.5]))
    set_gradient(bias, [0.0])
    optimizer.step()
    torch.testing.assert_close(bias.data, torch.tensor([1.25]))  # half of the velocity is left


def test_equals_loops() -> None:
    """Five steps of a matrix, a kernel, a vector and a single number, in plain Python."""
    shapes = [(3, 2), (2, 2, 1, 2), (4,), ()]
    parameters = [nn.Parameter(filler(shape, number)) for number, shape in enumerate(shapes)]
    plain = [parameter.flatten().tolist() for parameter in parameters]
    velocity = [[0.0] * len(values) for values in plain]
    optimizer = Lars(parameters, lr=0.3, weight_decay=0.2)
    for step in range(5):
        optimizer.param_groups[0]["lr"] = 0.3 / (1 + step)
        for number, parameter in enumerate(parameters):
            gradient = filler(tuple(parameter.shape), 10 * step + number)
            parameter.grad = gradient.clone()
            values, slopes = plain[number], gradient.flatten().tolist()
            if parameter.ndim > 1:
                slopes = [slope + 0.2 * value for slope, value in zip(slopes, values, strict=True)]
                factor = 0.001 * math.hypot(*values) / math.hypot(*slopes)
                slopes = [factor * slope for slope in slopes]
            velocity[number] = [0.9 * v + slope for v, slope in zip(velocity[number], slopes, strict=True)]
            plain[number] = [value - 0.3 / (1 + step) * v for value, v in zip(values, velocity[number], strict=True)]
        optimizer.step()
    for parameter, values in zip(parameters, plain, strict=True):
        assert parameter.flatten().tolist() == pytest.approx(values, rel=1e-10)


def test_norms_of_zero_leave_the_gradient_as_it_is() -> None:
    weight = nn.Parameter(torch.zeros(1, 2))
    optimizer = Lars([weight], lr=1.0)
    set_gradient(weight, [[3.0, -4.0]])
    optimizer.step()
    assert weight.tolist() == [[-3.0, 4.0]]
    fresh = nn.Parameter(torch.ones(1, 2))
    set_gradient(fresh, [[0.0, 0.0]])
    Lars([fresh], lr=1.0).step()
    assert fresh.tolist() == [[1.0, 1.0]]


def test_the_length_of_the_gradient_does_not_matter() -> None:
    first, second = (nn.Parameter(torch.tensor([[1.0, 2.0]])) for _ in range(2))
    set_gradient(first, [[1.0, 3.0]])
    set_gradient(second, [[1000.0, 3000.0]])
    Lars([first, second], lr=1.0).step()
    torch.testing.assert_close(first, second)


def test_groups_have_their_own_settings() -> None:
    first, second = (nn.Parameter(torch.ones(2)) for _ in range(2))
    set_gradient(first, [1.0, 1.0])
    set_gradient(second, [1.0, 1.0])
    Lars([{"params": [("first", first)], "lr": 0.5, "lr_multiplier": 1.0}, {"params": [("second", second)]}]).step()
    assert first.tolist() == [0.5, 0.5]
    assert second.tolist() == [1.0, 1.0]  # the learning rate is 0 until it is set


def test_parameters_without_gradient_stand_still_and_have_no_velocity() -> None:
    parameter = nn.Parameter(torch.ones(2, 2))
    optimizer = Lars([parameter], lr=1.0, weight_decay=0.5)
    optimizer.step()
    assert parameter.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert not optimizer.state


def test_goes_on_where_it_was_saved() -> None:
    def train(parameter: nn.Parameter, optimizer: Lars, steps: range) -> None:
        for step in steps:
            parameter.grad = filler((2, 2), step)
            optimizer.step()

    straight = nn.Parameter(filler((2, 2), 50))
    train(straight, Lars([straight], lr=0.5), range(4))
    broken = nn.Parameter(filler((2, 2), 50))
    first = Lars([broken], lr=0.5)
    train(broken, first, range(2))
    second = Lars([broken], lr=0.1)
    second.load_state_dict(first.state_dict())
    train(broken, second, range(2, 4))
    assert torch.equal(straight, broken)


def test_closure() -> None:
    parameter = nn.Parameter(torch.tensor([2.0]))
    optimizer = Lars([parameter], lr=0.25)

    def closure() -> float:
        loss = parameter.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0
    assert parameter.item() == 1.0
