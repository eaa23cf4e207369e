"""Networks larger than the memory are refused before they are built."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import poa
import tiny
from poa.config.pretraining import Config
from poa.config.resolve import resolve
from poa.errors import UserError
from poa.models.registry import family_of
from poa.pretraining import memory, method
from poa.pretraining.memory import check_memory, kept_for_backward
from poa.training.health import MemoryRanOut

CPU = torch.device("cpu")


def refusal(config: Config, there: float, monkeypatch: pytest.MonkeyPatch) -> UserError | None:
    """What is said on a machine of so many bytes."""
    monkeypatch.setattr(memory, "memory_of_machine", lambda: int(there))
    try:
        check_memory(config, family_of(config), CPU, torch.float32)
    except UserError as error:
        return error
    return None


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_parameters_are_those_of_the_student(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.config(family)
    student = method.method_of(config, family_of(config)).student
    monkeypatch.setattr(memory, "_check_images", lambda *_: None)
    exact = 4 * (5 + 4) * sum(parameter.numel() for parameter in student.parameters())
    assert refusal(config, 1.001 * exact, monkeypatch) is None
    assert "million parameters of backbone and heads need 0 GB" in str(refusal(config, 0.999 * exact, monkeypatch))


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
        check_memory(config, family_of(config), CPU, torch.float32)
    assert said in str(told.value)


def test_where_the_system_does_not_tell_all_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.config(heads={"hidden": 10**6})
    monkeypatch.setattr(memory, "memory_of_machine", lambda: None)
    check_memory(config, family_of(config), CPU, torch.float32)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_a_crop_keeps_follows_from_shallow_networks(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of so many bytes just fit, and are refused with a thousandth less, as the whole student keeps them."""
    monkeypatch.setattr(memory, "_check_weights", lambda *_: None)
    config = tiny.config(family, batch_size=512)
    views, student = config.views, method.method_of(config, family_of(config)).student.train()
    sides = [views.global_size] * 2 + [views.local_size] * views.num_locals
    by_side = {side: kept_for_backward(student.backbone, torch.zeros(4, 3, side, side)) / 4 for side in set(sides)}
    exact = 512 * sum(by_side[side] for side in sides)
    assert refusal(config, 1.001 * exact, monkeypatch) is None
    assert str(refusal(config, 0.999 * exact, monkeypatch)).startswith("Of 512 images at a time, with 2 crops of ")
    monkeypatch.setattr(memory, "memory_of_machine", lambda: int(1.999 * exact))
    warning = check_memory(config, family_of(config), CPU, torch.float32)
    assert warning is not None, "the elastic student keeps about as much"
    assert re.search(
        r"of each, the backward pass keeps \d+\.\d GB or more, and the memory .* Add --accumulate ", warning
    )
    monkeypatch.setattr(memory, "memory_of_machine", lambda: int(2.001 * exact))
    assert check_memory(config, family_of(config), CPU, torch.float32) is None


def test_each_tensor_that_is_kept_counts_once_and_weights_do_not() -> None:
    """Of a linear layer the input, of a GELU its input, of an addition and of a view nothing."""

    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(8, 16)

        def forward(self, crops: torch.Tensor, mask: None) -> torch.Tensor:
            hidden = self.layer(crops)
            return (torch.nn.functional.gelu(hidden) + 1 + self.layer(crops)).view(-1)

    assert kept_for_backward(Small(), torch.zeros(4, 8)) == 4 * (4 * 8 + 4 * 16)  # type: ignore[arg-type]


def test_images_that_do_not_fit_on_a_cpu_are_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_of_machine", lambda: 8 * 10**9)
    config = tiny.config(batch_size=2**16)
    with pytest.raises(MemoryRanOut) as told:  # for which a plan splits the batch
        check_memory(config, family_of(config), CPU, torch.float32)
    assert str(told.value) == (
        "Of 65536 images at a time, with 2 crops of 16 pixels and 2 of 8 of each, the backward pass keeps 13.5 GB or "
        "more, but the memory of the machine has 8.0 GB. Add --accumulate 8 or --checkpointing, lower --batch-size or "
        "the size of crops, or train on a GPU."
    )
    for over in ({"accumulate": 8}, {"checkpointing": True}, {"batch_size": 2**15}):
        fits = tiny.config(**{"batch_size": 2**16, **over})
        check_memory(fits, family_of(fits), CPU, torch.float32)
    check_memory(config, family_of(config), torch.device("mps"), torch.float32)  # whose errors can be caught
    slimmable = resolve({"batch_size": 2**20}, recipe="slimclr-small-data")  # which cannot be split
    with pytest.raises(MemoryRanOut, match=r"GB\. Add --checkpointing, lower --batch-size"):
        check_memory(slimmable, family_of(slimmable), CPU, torch.float32)


def test_a_warning_is_shown_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "_check_images", lambda *_: "Images may not fit.")
    poa.pretrain(**tiny.settings(out=str(tmp_path / "run"), epochs=1, optimizer={"warmup_epochs": 0}))
    assert re.search(r"Note: Images may not fit\..*step 1/", capsys.readouterr().err, re.DOTALL)
