"""What others may have written into config.json, and numbers that no network is built from."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from poa.config.channels import USUAL, Values
from poa.config.network import ModelSettings
from poa.errors import UserError
from poa.models import folder as folders
from poa.models.folder import Made, check_arguments, check_memory, made_for, values_of
from poa.models.registry import describe, family_of
from poa.models.source import model_source

SIZES = {"img_size": 16, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "deep": ({"depth": 10**7}, r"its depth of 1e\+07 must be a number up to 1000"),
    "wide": ({"embed_dim": 10**9}, r"its embed_dim of 1e\+09 must be a number up to 65536"),
    "infinite": ({"mlp_ratio": float("nan")}, r"its mlp_ratio of nan must be a number up to 65536"),
    "no heads": ({"num_heads": 0}, r"ZeroDivisionError: "),
    "no patches": ({"patch_size": 0}, r"ZeroDivisionError: "),
    "large": (
        {"embed_dim": 2**16},
        r"parameters need [\d,]+ GB of memory, the machine has 1 GB",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_numbers_that_no_network_is_built_from(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "memory_of_machine", lambda: 10**9)
    arguments, told = WRONG[case]
    content = {"architecture": "vit_base_patch16_224", "model_args": SIZES | arguments, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"^--model \S+: timm cannot build a model from \S+ \(.*{told}"):
        describe(str(tmp_path))
    with pytest.raises(UserError, match=told):
        model_source(str(tmp_path), branch="untrained")


def test_parts_that_no_model_of_timm_has(tmp_path: Path) -> None:
    for arguments in ({"depth": 0}, {"num_heads": -1}, {"init_values": -1.0}):
        content = {"architecture": "vit_base_patch16_224", "model_args": SIZES | arguments, "pretrained_cfg": {}}
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"^--model \S+ cannot be cut into sizes: "):
            describe(str(tmp_path))


def test_numbers_in_lists_and_tables() -> None:
    check_arguments({"depths": [2, 2, 18, 2], "window_size": [7, None], "drop_path_rate": 0.1, "class_token": True})
    with pytest.raises(UserError, match=r"its depths of 1001 "):
        check_arguments({"depths": [2, 1001]})
    with pytest.raises(UserError, match=r"its cfg\.num_blocks of 1001 "):
        check_arguments({"cfg": {"num_blocks": 1001}})


def model(**over: Any) -> Any:
    known = {"input_size": (3, 16, 16), "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9, "classifier": "head"}
    return SimpleNamespace(pretrained_cfg=known | over)


def test_what_timm_knows_of_the_images() -> None:
    assert made_for(model(), name="a") == (16, 0.9, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    for wrong in (
        {"input_size": None},
        {"input_size": (3, 0, 0)},
        {"input_size": (3, 10**6, 10**6)},
        {"mean": [0.5]},
        {"mean": [0.5, 0.5, float("nan")]},
        {"std": [0.0, 0.5, 0.5]},
        {"crop_pct": 0},
        {"classifier": 5},
    ):
        with pytest.raises(UserError, match=r"^a: its pretrained_cfg "):
            made_for(model(**wrong), name="a")


def test_networks_larger_than_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        network = nn.Linear(1000, 250, bias=False)
    check_memory(network)
    monkeypatch.setattr(folders, "memory_of_machine", lambda: 10**6)
    check_memory(network)
    with pytest.raises(UserError, match=r"^its 0 million parameters need 0 GB of memory, the machine has 0 GB$"):
        check_memory(network, copies=2)


def test_settings_of_a_network_have_bounds() -> None:
    for given in ({"width_max": 10**9}, {"depth_max": 10**7}, {"widths": (64, 10**9)}, {"window_size": 10**6}):
        with pytest.raises(UserError, match=r"less than or equal to "):
            ModelSettings(**given)
    with pytest.raises(
        UserError, match=r"^These are 65,536,000 sizes, and at most 10,000 are possible\. Raise --model"
    ):
        family_of(
            tiny.config(model={"width_min": 1, "width_max": 2**16, "width_step": 1, "depth_min": 1, "depth_max": 1000})
        )


def test_channels_of_a_folder(tmp_path: Path) -> None:
    eight, three = (Made(16, 0.9, (0.5,) * number, (0.5,) * number) for number in (8, 3))
    assert values_of(tmp_path, three) == USUAL, "as timm writes folders"
    assert values_of(tmp_path, eight) == Values(8)
    file = tmp_path / "config.json"
    file.write_text('{"values": {"channels": 8, "range": [0, 4095]}}')
    assert values_of(tmp_path, eight) == Values(8, (0.0, 4095.0))
    with pytest.raises(UserError, match=r"does not fit the 3 channels of the network. Correct it."):
        values_of(tmp_path, three)
    file.write_text('{"values": [1, 2]}')
    with pytest.raises(UserError, match=r"config.json: values \[1, 2\] does not fit the 8 channels"):
        values_of(tmp_path, eight)
