import copy

import pytest
import torch
from torch import nn

from poa.training.schedules import update_ema


def _network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_equals_the_formula() -> None:
    student = _network(0)
    teacher = copy.deepcopy(student).requires_grad_(False)
    expected = {name: parameter.clone() for name, parameter in teacher.named_parameters()}
    for step in range(3):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        student(torch.randn(5, 3))  # moves the running statistics
        update_ema(teacher, student, momentum=0.9 + 0.03 * step)
        for name, parameter in student.named_parameters():
            expected[name] = (0.9 + 0.03 * step) * expected[name] + (0.1 - 0.03 * step) * parameter.detach()
    for name, parameter in teacher.named_parameters():
        torch.testing.assert_close(parameter, expected[name])
        assert not parameter.requires_grad
    for ours, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_student_stays() -> None:
    student, teacher = _network(0), _network(1)
    before = copy.deepcopy(student.state_dict())
    update_ema(teacher, student, momentum=0.5)
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())


def test_wants_the_same_names() -> None:
    with pytest.raises(AssertionError, match="bias"):
        update_ema(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), momentum=0.5)
