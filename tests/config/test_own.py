"""The method, family, loss and augmentation in CONTRIBUTING.md, from a module outside of this package."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

import poa
import tiny
from poa.config.own import is_own, own_class, own_function
from poa.data.index import open_index
from poa.data.views import SampleCrops, changed
from poa.errors import UserError
from poa.evaluation.headings import data_name, heading_of_run
from poa.families.base import Family
from poa.methods.base import Method
from poa.models.registry import describe, family_name, family_of
from poa.pretraining.build import assemble
from poa.pretraining.method import method_of
from poa.training.checkpoint import load_checkpoint
from poa.training.metrics import read_metrics
from steps import batches_of, parts_of
from trained import assert_same

EXAMPLES = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(), re.DOTALL)
WRONG = """
def shorter(crops, generator):
    return crops[1:]

def failing(crops, generator):
    raise ValueError("no such colour")

def list_of(crops, generator):
    return [*crops]
"""
GLOBALS = 32  # of 16 images


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("\n".join([*EXAMPLES, WRONG]))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)


def test_method_and_augmentation_train_and_go_on_as_if_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = {"num_locals": 0, "own": "mine:cut_out"}
    over: dict[str, Any] = {"limit": 32, "method": "own", "own": "mine:Contrast", "views": views}

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
    opened = poa.load(tmp_path / "run")
    assert opened.extract("32x2", out=tmp_path / "model").is_dir()
    assert heading_of_run(opened) == "mine:Contrast on digits"
    assert data_name(("a/b/c.zip/d", "e")) == "c.zip/d and e"
    assert "mine" not in sys.modules


def test_family_and_loss_train_and_give_models_that_timm_loads_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {"kind": "own", "own": "mine:InfoNCE"}
    over: dict[str, Any] = {"limit": 16, "sampling": "sandwich", "elastic_samples": 2, "losses": losses}
    over |= {"model": {"name": "mine:SiLUViT"}, "monitor": {"num_images": 8}}
    run = poa.pretrain(**tiny.settings(out=str(tmp_path / "run"), **over))
    terms = ("global", "ibot", "local")
    named = {*(f"{branch}/{term}" for branch in ("intact", "elastic") for term in terms), "elastic/same_local"}
    assert named < read_metrics(run.paths.metrics)[0].keys()
    monkeypatch.delitem(sys.modules, "mine")
    opened = poa.load(tmp_path / "run")
    assert [row["size"] for row in poa.sizes(opened)] == ["32x2", "32x3", "48x2", "48x3", "64x2", "64x3"]
    model = timm.create_model(f"local-dir:{opened.extract('32x2', out=tmp_path / 'model')}", pretrained=True).eval()
    assert isinstance(model.blocks[0].mlp.act, torch.nn.SiLU)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(model(images), opened.network("32x2").eval()(images).cls)


def test_a_family_from_outside_is_told_by_the_one_it_is_derived_from() -> None:
    assert family_name(describe("mine:SiLUViT")[0]) == "vit"
    assert family_name(Family) == ""
    assert not is_own("local-dir:models/mine")


def test_an_augmentation_changes_crops_by_numbers_of_their_image() -> None:
    """So two processes see what one does."""
    plain, config = (tiny.config(limit=16, views={"own": own}) for own in ("", "mine:cut_out"))
    parts = parts_of(config)
    ((before,),), ((after,),) = batches_of(plain, parts_of(plain)), batches_of(config, parts)
    cut = (before.globals != after.globals).any(1)
    assert cut.flatten(1).any(1).sum() > GLOBALS // 2  # digits have empty places
    assert (cut.any(1).sum(1) <= 8).all()
    assert (before.locals != after.locals).any()
    assert torch.equal(before.global_parameters, after.global_parameters)
    assert torch.equal(before.masks, after.masks)
    ((second,),) = batches_of(config, parts, rank=1, world_size=2)
    assert torch.equal(second.globals, after.globals.view(2, 16, 3, 16, 16)[:, 8:].flatten(0, 1))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "shorter",
            r"shorter has to return torch\.uint8 \[2, 3, 8, 8\], as given, got torch\.uint8 \[1, 3, 8, 8\]",
        ),
        ("failing", r"--views\.own mine:failing failed: ValueError: no such colour\."),
        ("list_of", "as given, got list"),
    ],
)
def test_augmentations_that_fail(name: str, told: str) -> None:
    crops = SampleCrops(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(0, 3, 8, 8), np.zeros((2, 11), "f4"))
    with pytest.raises(UserError, match=told):
        changed(crops, own=f"mine:{name}", generator=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", r"--own needs MODULE:NAME, such as mine:Contrast, got ''"),
        ("mine", r"needs MODULE:NAME, .* got 'mine'"),
        (
            "nowhere:Contrast",
            r"nowhere:Contrast cannot be imported \(ModuleNotFoundError: .*put its folder into",
        ),
        ("mine:Contrasts", r"mine:Contrasts cannot be imported \(AttributeError: "),
        ("mine:contrast", r"mine:contrast is no subclass of poa\.methods\.base\.Method"),
        (
            "poa.methods.base:Method",
            r"--own \S+:Method does not define forward, update_teacher, weights",
        ),
    ],
)
def test_names_that_are_no_method(name: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        own_class(name, flag="--own", kind=Method)


@pytest.mark.parametrize(
    ("over", "told"),
    [
        ({"own": "mine:Contrast"}, r"--own mine:Contrast has no effect with --method poa\. Add --method own"),
        ({"losses": {"own": "mine:InfoNCE"}}, "no effect with --losses.kind prototypes. Add --losses.kind own"),
        ({"losses": {"kind": "own"}}, "--losses.own needs MODULE:NAME"),
        (
            {"losses": {"kind": "own", "own": "mine:SiLUViT"}},
            r"--losses.own mine:SiLUViT is no subclass of poa\.",
        ),
        ({"losses": {"kind": "own"}, "method": "distill"}, "works with --method poa or single, got distill"),
        ({"model": {"name": "mine:InfoNCE"}}, r"--model mine:InfoNCE is no subclass of poa\.families\.base\.Family"),
    ],
)
def test_settings_that_do_not_fit(over: dict[str, Any], told: str) -> None:
    config = tiny.config(**over)
    with pytest.raises(UserError, match=told):
        method_of(config, family_of(config))


def test_an_augmentation_is_looked_for_before_the_first_step() -> None:
    config = tiny.config(limit=16, views={"own": "mine:InfoNCE"})
    with pytest.raises(UserError, match=r"--views\.own mine:InfoNCE is no function"):
        assemble(config, open_index("digits", limit=16), device=torch.device("cpu"))
    assert own_function("mine:cut_out", flag="--views.own").__name__ == "cut_out"
