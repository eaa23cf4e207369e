import re
from pathlib import Path
from typing import Any

import pytest

import poa
import tiny
from poa.config.pretraining import Config
from poa.errors import UserError
from poa.models.registry import family_of
from poa.pretraining.build import memory_warning, method_of
from trained import started


def config(**settings: Any) -> Config:
    return Config(data="digits", out="out", device="cpu", **settings)


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


def test_crops_smaller_than_the_blur_are_refused() -> None:
    with pytest.raises(UserError, match="A blur kernel of 9 pixels is larger than a crop of 8"):
        started(views={"blur_kernel": 9})


@pytest.mark.parametrize("name", ["poa", "single"])
def test_settings_name_the_branch_that_is_exported(name: str) -> None:
    config = tiny.config(method=name)
    method = method_of(config, family_of(config))
    assert method.exported is method.get_submodule(config.exported_branch)
