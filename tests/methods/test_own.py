"""The method in CONTRIBUTING.md, from a module outside of this package."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

import poa
import tiny
from poa.errors import UserError
from poa.methods.own import own_method
from poa.pretraining.build import method_of
from poa.training.checkpoint import load_checkpoint
from poa.training.metrics import read_metrics
from trained import assert_same

(EXAMPLE,) = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(), re.DOTALL)


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(EXAMPLE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def test_it_trains_and_goes_on_as_if_it_had_never_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over: dict[str, Any] = {"limit": 32, "method": "own", "own": "mine:Contrast", "views": {"num_locals": 0}}

    def stop(step: int, _: Any) -> None:
        if step == 3:
            raise InterruptedError

    whole = poa.pretrain(**tiny.settings(out=str(tmp_path / "whole"), **over))
    with pytest.raises(UserError, match="on_step failed at step 3"):
        poa.pretrain(**tiny.settings(out=str(tmp_path / "run"), **over), on_step=stop)
    monkeypatch.delitem(sys.modules, "mine")  # as in a new process
    run = poa.pretrain(out=tmp_path / "run", resume=True)
    rows = read_metrics(run.paths.metrics)
    assert rows == read_metrics(whole.paths.metrics)
    assert {"intact/contrast", "elastic/contrast"} < rows[0].keys()
    assert_same(*(load_checkpoint(each.checkpoint)["method"] for each in (run, whole)))
    monkeypatch.delitem(sys.modules, "mine")
    assert poa.load(tmp_path / "run").extract("32x2", out=tmp_path / "model").is_dir()
    assert "mine" not in sys.modules


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", r"--method own needs --own MODULE:CLASS, such as mine:Contrast, got ''"),
        ("mine", r"needs --own MODULE:CLASS, .* got 'mine'"),
        (
            "nowhere:Contrast",
            r"nowhere:Contrast cannot be imported \(ModuleNotFoundError: .*put its folder into",
        ),
        ("mine:Contrasts", r"mine:Contrasts cannot be imported \(AttributeError: "),
        ("mine:contrast", r"mine:contrast is no subclass of poa\.methods\.base\.Method"),
    ],
)
def test_names_that_are_none(name: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        own_method(name)


def test_a_method_that_is_not_asked_for(tmp_path: Path) -> None:
    config = tiny.config(own="mine:Contrast")
    with pytest.raises(UserError, match=r"--own mine:Contrast has no effect with --method poa\. Add --method own"):
        method_of(config, poa.models.registry.family_of(config))
