"""Measurements on disk."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from choice.sizes import PREPROCESSING, sizes_of
from poa.choice.measured import FOLDER, Measured, Measurement, Setup, load, machine_of, save
from poa.elastic.space import Size
from poa.errors import UserError
from poa.evaluation.cost import costs_of
from poa.models.source import ModelSource

SETUP = Setup(machine_of("cpu"), "cpu", "torch", "2.14.0", threads=1, batch=1, image_size=16)
ONE = Measurement(0.5, 0.75, 30, 2000.0, 4096, 1024, 250, 1000, "2026-01-02T03:04:05+00:00", interrupted=2)


def single(folder: Path, width: int) -> ModelSource:
    network = nn.Linear(width, 1)
    known = ("name", ("model",), lambda _: network, nn.Module, "", PREPROCESSING)
    return ModelSource(*known, out=folder / "eval" / "model")


def test_measurements_are_read_as_they_were_written(tmp_path: Path) -> None:
    mine = sizes_of(tmp_path)
    assert load(mine) == []
    path = save(mine, Measured(SETUP, {"64x3": ONE, "32x2": replace(ONE, memory_bytes=None, macs=None)}))
    assert path.parent == tmp_path / "eval" / FOLDER
    (found,) = load(mine)
    assert found.setup == SETUP
    assert found.networks == {"32x2": replace(ONE, memory_bytes=None, macs=None), "64x3": ONE}
    assert list(found.networks) == ["32x2", "64x3"]
    assert found.date == ONE.date


def test_later_measurements_take_the_place_of_earlier_ones_of_the_same_networks(tmp_path: Path) -> None:
    mine, later = sizes_of(tmp_path), replace(ONE, ms=0.25)
    first = save(mine, Measured(SETUP, {"32x2": ONE, "64x3": ONE}))
    assert save(mine, Measured(SETUP, {"64x3": later})) == first
    assert [each.networks for each in load(mine)] == [{"32x2": ONE, "64x3": later}]


def test_setups_have_files_of_their_own_and_those_of_this_machine_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("a GPU is asked for where none was measured"))
    mine = sizes_of(tmp_path)
    later = replace(ONE, date="2026-02-02T00:00:00+00:00")
    latest = replace(ONE, date="2026-03-03T00:00:00+00:00")
    for setup, each in (
        (SETUP, ONE),
        (replace(SETUP, threads=2), later),
        (replace(SETUP, machine="another processor, 64 cores"), latest),
    ):
        save(mine, Measured(setup, {"32x2": each}))
    assert [each.date for each in load(mine)] == [later.date, ONE.date, latest.date]


def test_measurements_of_another_network_of_the_same_name_do_not_count(tmp_path: Path) -> None:
    deeper = sizes_of(tmp_path, model={"depth_max": 4})
    save(sizes_of(tmp_path), Measured(SETUP, {"32x2": ONE}))
    assert load(deeper) == []
    save(deeper, Measured(SETUP, {"64x3": ONE}))
    assert [each.networks for each in load(deeper)] == [{"64x3": ONE}]


def test_measurements_outlive_changes_of_our_code(tmp_path: Path) -> None:
    mine = sizes_of(tmp_path)
    assert mine.family is not None
    same = replace(mine, family=replace(mine.family, fused_attention=False))  # no matter of what timm builds
    right = costs_of(mine.family, mine.family.image_size)[Size(32, (2,))].parameters
    for parameters, is_known in ((right, True), (right + 1, False)):
        networks = {"32x2": replace(ONE, parameters=parameters)}
        path = save(mine, Measured(SETUP, networks))
        assert [each.networks for each in load(same)] == [networks]
        path.write_text(re.sub(r'"architecture": "\w+"', '"architecture": "of-an-earlier-version"', path.read_text()))
        assert load(mine) == ([Measured(SETUP, networks)] if is_known else [])


def test_a_folder_is_known_by_the_shapes_of_its_network(tmp_path: Path) -> None:
    save(single(tmp_path, 8), Measured(SETUP, {"model": ONE}))
    assert len(load(single(tmp_path, 8))) == 1
    assert load(single(tmp_path, 16)) == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"setup": {}, "networks": {"32x2": {"ms": 1}}}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    mine = sizes_of(tmp_path)
    path = save(mine, Measured(SETUP, {"32x2": ONE}))
    path.write_text(content, encoding="utf-8")
    for read in (lambda: load(mine), lambda: save(mine, Measured(SETUP, {"32x2": ONE}))):
        with pytest.raises(UserError, match=rf"^{path} is damaged or not a file of measurements\. Delete it"):
            read()


def test_setups_are_told_in_words() -> None:
    machine = replace(SETUP, machine="Some processor, 2 cores")
    assert str(machine) == "PyTorch 2.14.0 on Some processor, 2 cores, 1 thread, batch 1, 16 pixels"
    onnx = replace(machine, runtime="onnx", version="1.20", device="cuda", machine="Some GPU", batch=64)
    assert str(onnx) == "ONNX Runtime 1.20 on Some GPU, batch 64, 16 pixels"
