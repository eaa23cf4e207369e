from typing import Any
from unittest.mock import Mock

import pytest
import torch

import tiny
from poa.data.index import open_index
from poa.elastic.space import Size
from poa.errors import UserError
from poa.models.registry import family_of
from poa.pretraining import build, process
from poa.pretraining.build import assemble, in_parallel, suited
from poa.pretraining.schedule import schedules_of, subnets_of
from trained import started


def test_the_backbone_warms_up_as_long_as_is_set() -> None:
    config = tiny.config(epochs=4, optimizer={"backbone_warmup_epochs": 1.25, "warmup_epochs": 0.5})
    curves = schedules_of(config, steps_per_epoch=4)
    assert [curves.at(step).backbone for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert {schedules_of(tiny.config(), steps_per_epoch=4).at(step).backbone for step in range(8)} == {1.0}


def test_the_seed_decides_on_sizes_images_and_weights() -> None:
    def drawn(seed: int) -> tuple[list[tuple[Size, ...]], int, float]:
        config = tiny.config(seed=seed)
        subnets = subnets_of(config, family_of(config), steps_per_epoch=4)
        index = open_index(config.data, limit=config.limit)
        parts = assemble(config, index, device=torch.device("cpu"))
        assert parts.seed == seed, "of drop path"
        first = next(process._batches(parts, config, index, start=0))[0]
        weights = float(parts.method.student.backbone.get_parameter("model.blocks.0.attn.qkv.weight").detach().sum())
        return [subnets(step, rank=0) for step in range(12)], int(first.globals.long().sum()), weights

    assert drawn(0) == drawn(0)
    assert all(mine != other for mine, other in zip(drawn(0), drawn(1), strict=True))


def test_crops_smaller_than_the_blur_are_refused() -> None:
    with pytest.raises(UserError, match="A blur kernel of 9 pixels is larger than a crop of 8"):
        started(views={"blur_kernel": 9})


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"method": "slimclr-simclr"}, "--method slimclr-simclr"),
        ({"method": "own", "compile": True}, "--method own and --compile"),
    ],
)
def test_what_fsdp_cannot_do_is_refused(settings: dict[str, Any], refused: str) -> None:
    with pytest.raises(UserError, match=f"^--parallel fsdp does not support {refused}. Use --parallel ddp.$"):
        in_parallel(Mock(), tiny.config(parallel="fsdp", **settings), device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("dtype", "device", "gains", "fused", "wide"),
    [
        (torch.float32, "cpu", False, True, False),
        (torch.bfloat16, "cuda", False, True, False),
        (torch.bfloat16, "cpu", True, False, False),
        (torch.bfloat16, "cpu", False, False, True),
    ],
)
def test_layers_suit_precision_and_processor(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, device: str, gains: bool, fused: bool, wide: bool
) -> None:
    monkeypatch.setattr(build, "gains_by_bf16", lambda _: gains)
    family = suited(family_of(tiny.config()), dtype, torch.device(device))
    assert (family.fused_attention, family.wide_products) == (fused, wide)
    if device == "cpu":
        settings = tiny.config(precision="bf16" if dtype == torch.bfloat16 else "fp32")
        parts = assemble(settings, Mock(__len__=lambda _: 64), device=torch.device(device))
        assert parts.family == family
