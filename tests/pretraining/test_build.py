import re
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

import poa
import tiny
from poa.config.pretraining import Config
from poa.data.index import open_index
from poa.elastic.space import Size
from poa.errors import UserError
from poa.models.registry import family_of
from poa.pretraining import build, loop
from poa.pretraining.build import (
    assemble,
    gains_by_bf16,
    in_parallel,
    memory_warning,
    method_of,
    suited,
    warnings_of,
)
from poa.pretraining.schedule import schedules_of, subnets_of
from trained import started


def config(**settings: Any) -> Config:
    return Config(data="digits", out="out", device="cpu", **settings)


AT_ONCE: dict[str, Any] = {
    "losses": {"ibot": 0.0, "teacher_temperature": (0.04, 0.04)},
    "optimizer": {"warmup_epochs": 0.0},
}
"""Nothing but the prototypes begins late."""


@pytest.mark.parametrize(
    ("settings", "images", "parts"),
    [
        ({"batch_size": 1024}, 1024, 4),
        ({"batch_size": 600, "accumulate": 2}, 300, 3),
        ({"batch_size": 1024, "devices": 2}, 512, 2),
        ({"batch_size": 6, "views": {"global_size": 4480}}, 6, 6),
    ],
)
def test_what_a_cpu_may_not_hold(settings: dict[str, Any], images: int, parts: int) -> None:
    warning = memory_warning(config(**settings))
    assert warning is not None
    assert f"Passes of {images} images" in warning
    assert f"--accumulate {parts}," in warning
    assert memory_warning(config(**{**settings, "accumulate": parts})) is None


@pytest.mark.parametrize("settings", [{"batch_size": 256}, {"batch_size": 1024, "views": {"global_size": 96}}])
def test_runs_of_usual_size_get_none(settings: dict[str, Any]) -> None:
    assert memory_warning(config(**settings)) is None


def test_it_is_said_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("poa.pretraining.build.MANY_PIXELS", 8 * 16**2)
    poa.pretrain(**tiny.settings(out=str(tmp_path / "run"), epochs=1, optimizer={"warmup_epochs": 0}))
    told = capsys.readouterr().err
    assert re.search(r"Note: Passes of 16 images .*--accumulate 2,.*step 1/", told, re.DOTALL)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": 10}, ["learning rate rises to the end", "does not reach 0.07", "no patches are ever masked"]),
        (
            {"epochs": 1, **AT_ONCE},
            ["With --epochs 1 prototypes never learn (--optimizer.freeze-last-layer-epochs 1). L"],
        ),
        ({"epochs": 2, **AT_ONCE}, []),
        ({"epochs": 31}, []),
        (
            {"epochs": 31, "optimizer": {"backbone_warmup_epochs": 31}},
            ["the backbone's learning rate rises to the end ("],
        ),
        ({"epochs": 30}, ["With --epochs 30 no patches are ever masked (--losses.ibot-start-epoch 30). Lower"]),
        ({"epochs": 29, "method": "single"}, ["(--losses.teacher-temperature-epochs 30); no patches"]),
        ({"epochs": 10, "method": "seed"}, ["With --epochs 10 the learning rate rises to the end (--opt"]),
        ({"epochs": 11, "method": "slimclr-simclr", "slim": {"slow_start_epochs": 11}}, ["only the full width learns"]),
        ({"epochs": 11, "method": "slimclr-simclr"}, []),
        ({"optimizer": {"final_lr": 0.01}, "lr": 0.005}, ["The learning rate rises to the end, from 0.005 to 0.01."]),
        ({"batch_size": 16}, ["Sinkhorn-Knopp sees only 16 images at a time"]),
        ({"batch_size": 16, "losses": {"centering": "moving-average"}}, []),
        (
            {"epochs": 31, "views": {"small_size": 96, "small_epochs": 31}},
            ["crops never have their full size (--views"],
        ),
    ],
)
def test_what_a_run_is_too_short_for(settings: dict[str, Any], said: list[str]) -> None:
    """Where settings are not those of a recipe, which would be shortened."""
    notes = warnings_of(config(**settings), num_images=10**6)
    assert len(notes) == bool(said)
    assert all(part in notes[0] for part in said)


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
        first = next(loop._batches(parts, config, index, start=0))[0]
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
        in_parallel(Mock(), config(parallel="fsdp", **settings), device=torch.device("cpu"))


@pytest.mark.parametrize("name", ["poa", "single"])
def test_settings_name_the_branch_that_is_exported(name: str) -> None:
    config = tiny.config(method=name)
    method = method_of(config, family_of(config))
    assert method.exported is method.get_submodule(config.exported_branch)


@pytest.mark.parametrize(
    ("capabilities", "gains"),
    [
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True}, False),
        ({"cpu_name": "Intel Xeon", "avx512_bf16": True, "amx_tile": True}, True),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": True}, True),
        ({"cpu_name": "AMD EPYC", "avx512_bf16": False}, False),
        ({}, False),
    ],
)
def test_processors_that_gain_by_bf16(capabilities: dict[str, Any], gains: bool) -> None:
    assert gains_by_bf16(capabilities) is gains


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
