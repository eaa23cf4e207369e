"""What networks of these tests begin with."""

import pytest
import torch


@pytest.fixture
def uninitialised(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that do not look at initial values, whose drawing takes most of the time of building a network."""
    drawn = (
        "timm.layers.weight_init._trunc_normal_",
        "torch.nn.init.kaiming_normal_",
        "torch.nn.init.kaiming_uniform_",
        "torch.nn.init.uniform_",
    )
    for name in drawn:
        monkeypatch.setattr(name, lambda tensor, *_, **__: tensor)


@pytest.fixture
def same_random_numbers() -> None:
    torch.manual_seed(0)
