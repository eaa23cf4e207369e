"""Networks larger than the memory are refused before they are built."""

from typing import Any

import pytest
import torch

import tiny
from poa.errors import UserError
from poa.models.registry import family_of
from poa.pretraining import memory, method
from poa.pretraining.memory import check_memory

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_parameters_are_those_of_the_student(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.config(family)
    student = method.method_of(config, family_of(config)).student
    exact = 4 * (5 + 4) * sum(parameter.numel() for parameter in student.parameters())
    for share, fits in ((1.0, True), (0.9, False)):
        monkeypatch.setattr(memory, "memory_of_machine", lambda there=int(share * exact): there)
        if fits:
            check_memory(config, family_of(config), CPU)
        else:
            with pytest.raises(UserError, match=r"million parameters of backbone and heads need 0 GB"):
                check_memory(config, family_of(config), CPU)


@pytest.mark.parametrize(
    ("over", "said"),
    [
        (
            {"model": {"widths": [2**16], "depth_min": 1000, "depth_max": 1000}},
            "million parameters of backbone and heads need 1,855,462 GB in training (weights, gradients, teacher, "
            "state of the optimizer, a copy for checkpoints), more than the memory of the machine, 8 GB. Lower "
            "--model.width-max or --model.depth-max, or choose another --model.",
        ),
        ({"heads": {"hidden": 10**6}}, "8 GB. Lower --heads.hidden, --heads.bottleneck or --heads.prototypes."),
        ({"method": "single", "devices": 2, "heads": {"hidden": 20_000}}, "for checkpoints; 2 processes), more than"),
        ({"devices": 2, "heads": {"hidden": 20_000}}, "need 22 GB in training"),
        ({"devices": 2, "heads": {"hidden": 20_000}, "parallel": "fsdp"}, "need 21 GB in training"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(over: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.config(**over)
    monkeypatch.setattr(memory, "memory_of_machine", lambda: 8 * 10**9)
    with pytest.raises(UserError) as told:
        check_memory(config, family_of(config), CPU)
    assert said in str(told.value)


def test_where_the_system_does_not_tell_all_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.config(heads={"hidden": 10**6})
    monkeypatch.setattr(memory, "memory_of_machine", lambda: None)
    check_memory(config, family_of(config), CPU)
