"""Bytes of networks in files and in memory."""

from pathlib import Path

import pytest
import torch
from torch import nn

import tiny
from poa.choice.memory import file_bytes, memory_bytes
from poa.export.timm import save_weights
from poa.models.registry import family_of


@pytest.mark.parametrize("family", ["vit", "swin", "resnet"])
def test_bytes_of_a_file_are_known_before_it_is_written(tmp_path: Path, family: str) -> None:
    made = family_of(tiny.config(family))
    model = made.build(made.space.intact).model
    save_weights(model.state_dict(), tmp_path / "model.safetensors")
    assert file_bytes(model) == (tmp_path / "model.safetensors").stat().st_size
    with torch.device("meta"):
        assert file_bytes(made.build(made.space.intact).model) == file_bytes(model)


class Wide(nn.Module):
    """Of 10 values it makes 1000, then 5 of these; its weights are 15,000 values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 1000, bias=False), nn.Linear(1000, 5, bias=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        wide = self.first(values)
        return self.second(wide.view(-1, 1000))  # a view takes nothing


def test_memory_is_what_there_is_at_once() -> None:
    network, values = Wide(), torch.zeros(8, 10)
    run = torch.inference_mode()(lambda: network(values))
    weights, at_most = 4 * 15_000, 4 * (8 * 1000 + 8 * 5)
    assert memory_bytes(network, run, inputs=[values]) == weights + values.nbytes + at_most
    assert memory_bytes(network, run, inputs=[values]) == weights + values.nbytes + at_most, "nothing is left over"
