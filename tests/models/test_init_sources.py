"""Where the weights that a run starts from may come from."""

import shutil
import socket
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.error import HTTPError

import pytest
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import nn

import poa
import tiny
from poa.errors import UserError
from poa.models import hub
from poa.models.init import fit
from poa.models.registry import family_of
from poa.models.source import model_source
from poa.models.weights import read
from poa.training.checkpoint import latest_checkpoint
from trained import State, assert_same, features_of, made, saved, started, unreachable


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_folder_of_timm_goes_into_student_and_teacher(family: str, tmp_path: Path) -> None:
    model = made(family)
    parts, scratch = started(family, init=saved(model, tmp_path / "model")), started(family)
    for network in (parts.method.student, parts.method.teacher):
        assert_same(network.backbone.model.state_dict(), features_of(model))
        assert torch.equal(network.backbone.mask_token, torch.zeros_like(network.backbone.mask_token))
    assert_same(parts.method.student.heads.state_dict(), scratch.method.student.heads.state_dict())
    assert parts.method.student.training
    assert not any(parameter.requires_grad for parameter in parts.method.teacher.parameters())
    assert scratch.report is None
    report = parts.report
    assert report is not None
    assert set(report.loaded) == features_of(model).keys()
    assert (report.resized, report.fresh) == ((), ("mask_token",))
    assert set(report.unused) == model.state_dict().keys() - features_of(model).keys() != set()


def wrappings(model: nn.Module) -> dict[str, tuple[str, Any]]:
    """Files of the same weights: a name, and what is in it."""
    state = model.state_dict()
    rest = {"head.mlp.0.weight": torch.ones(2), "dino_head.last.weight": torch.ones(2)}
    other = {name: value + 1 for name, value in state.items()}

    def with_prefix(prefix: str, state: State = state) -> State:
        return {f"{prefix}{name}": value for name, value in state.items()}

    return {
        "safetensors": ("a.safetensors", state),
        "half": ("half.pth", {name: value.half() for name, value in state.items()}),
        "pth": ("a.pth", state),
        "pt": ("a.pt", state),
        "bin": ("a.bin", state),
        "model": ("a.pth", {"model": state, "optimizer": {"lr": 0.1}, "epoch": 3}),
        "state_dict": ("a.pth", {"state_dict": with_prefix("module."), "epoch": 3}),
        "ema": ("a.pth", {"state_dict": other, "state_dict_ema": state}),
        "teacher": ("a.pth", {"student": with_prefix("module.backbone.", other), "teacher": with_prefix("backbone.")}),
        "student": ("a.pth", {"student": with_prefix("module.backbone.") | rest, "epoch": 3}),
        "both": ("a.pth", {"model": with_prefix("teacher.backbone.") | with_prefix("student.backbone.", other) | rest}),
        "compiled": ("a.pth", with_prefix("_orig_mod.model.")),
    }


@pytest.mark.parametrize("kind", wrappings(made()))
def test_a_file_is_unwrapped(kind: str, tmp_path: Path) -> None:
    model = made()
    name, content = wrappings(model)[kind]
    if name.endswith(".safetensors"):
        save_file(content, tmp_path / name)
    else:
        torch.save(content, tmp_path / name)
    parts = started(init=str(tmp_path / name))
    expected = features_of(model)
    if kind == "half":
        expected = {name: value.half().float() for name, value in expected.items()}
    assert_same(parts.method.teacher.backbone.model.state_dict(), expected)
    report = parts.report
    assert report is not None
    assert {"head.weight", "head.bias"} <= set(report.unused)
    if kind == "both":
        assert {"dino_head.last.weight", "student.backbone.blocks.0.norm1.bias"} <= set(report.unused)
        assert any("student.* (" in line for line in report.lines()), "a line for each tensor is not readable"


def test_old_folders_hold_a_pickled_file(tmp_path: Path) -> None:
    model = made()
    folder = saved(model, tmp_path / "model", safe=False)
    assert [path.name for path in sorted(Path(folder).iterdir())] == ["config.json", "pytorch_model.bin"]
    for name in (folder, f"local-dir:{folder}"):
        assert_same(dict(read(name).weights), model.state_dict())


def test_a_run_hands_on_its_teacher_with_its_mask_token(tmp_path: Path) -> None:
    run = poa.pretrain(**tiny.settings(out=tmp_path / "first", epochs=1))
    expected = run.teacher.state_dict()
    assert expected["mask_token"].any()
    newest = latest_checkpoint(run.paths.checkpoints)
    for name in (run.folder, newest, shutil.copy(newest, tmp_path / "a.pt")):
        parts = started(init=str(name))
        assert_same(parts.method.student.backbone.state_dict(), expected)
        assert_same(parts.method.teacher.backbone.state_dict(), expected)
        assert parts.report is not None
        assert (parts.report.fresh, parts.report.resized, parts.report.note) == ((), (), None)
    again = poa.pretrain(**tiny.settings(out=tmp_path / "second", epochs=1, init=tmp_path / "first"))
    assert_same(read(str(again.paths.initial)).weights, {k.removeprefix("model."): x for k, x in expected.items()})


def test_a_name_is_fetched_by_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = made(), []

    def create(name: str, **options: Any) -> nn.Module:
        asked.append((name, options, constants.HF_HUB_OFFLINE))
        return model

    monkeypatch.setattr(hub, "_why_unreachable", lambda: None)
    monkeypatch.setattr(timm, "create_model", create)
    for name in ("vit_base_patch16_224.augreg_in21k", "hf-hub:someone/something"):
        source = read(name)
        assert_same(source.weights, model.state_dict())
        assert asked.pop() == (name, {"pretrained": True}, False)
        taken, report = fit(source, family_of(tiny.config()).build(family_of(tiny.config()).space.intact))
        assert report.source == name
        assert torch.equal(taken["model.cls_token"], model.cls_token)
    assert "--model vit_base_patch16_224." in source.remedy, "who owns a repository is no name of a network"


def test_where_there_is_no_network_it_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "urlopen", unreachable)
    # the client alone tries six times, half a minute in all
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("the client waits for another try"))
    with pytest.raises(UserError) as told:  # timm and its client are the real ones
        read("hf-hub:nobody-at-all/nothing-at-all")
    text = str(told.value)
    assert text.startswith("--init hf-hub:nobody-at-all/nothing-at-all: its weights cannot be downloaded (https://")
    assert "does not answer: [Errno -2] Name or service not known" in text
    assert "Without internet access give a folder that timm loads" in text
    assert not constants.HF_HUB_OFFLINE, "left as it was not found"


def test_weights_that_were_fetched_before_need_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    model, offline = made(), []

    def create(*_: object, **__: object) -> nn.Module:
        offline.append(constants.HF_HUB_OFFLINE)
        if len(offline) == 2:
            raise LocalEntryNotFoundError("not among the files here")
        return model

    asked = Mock(side_effect=unreachable)
    monkeypatch.setattr(hub, "urlopen", asked)
    monkeypatch.setattr(timm, "create_model", create)
    assert_same(read("vit_base_patch16_224").weights, model.state_dict())
    with pytest.raises(UserError, match=r"cannot be downloaded \(https://\S+ does not answer"):
        read("vit_base_patch16_224")
    assert offline == [True, True]
    assert asked.call_count == 1
    later = time.monotonic() + hub.VALID_SECONDS
    monkeypatch.setattr(time, "monotonic", lambda: later)
    read("vit_base_patch16_224")
    assert asked.call_count == 2, "a network may come back while a program runs"


def test_a_server_that_answers_is_asked_for_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(request: Any, *, timeout: float) -> None:
        assert (request.get_method(), timeout) == ("HEAD", hub.PATIENCE_SECONDS)
        raise HTTPError(request.full_url, 405, "no", {}, None)  # type: ignore[arg-type]

    def create(*_: object, **__: object) -> nn.Module:
        assert not constants.HF_HUB_OFFLINE
        raise OSError("404 there is nothing\nmore of it")

    monkeypatch.setattr(hub, "urlopen", refuse)
    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(UserError, match=r"cannot be downloaded \(OSError: 404 there is nothing\)\. Without"):
        read("hf-hub:nobody/nothing")


def test_downloads_can_be_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variable set, no server is asked: the tests fail where one is."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    names = (
        "vit_base_patch16_224.augreg_in21k",
        "hf-hub:nobody/nothing",
        "gcvit_xxtiny.in1k",
    )  # the last from elsewhere
    for name in names:
        with pytest.raises(
            UserError, match=r"cannot be downloaded \(HF_HUB_OFFLINE is set, and .*\)\. Without internet"
        ):
            read(name)
    with pytest.raises(
        UserError, match=r"^hf-hub:nobody/nothing: its settings cannot be downloaded \(HF_HUB_OFFLINE is"
    ):
        model_source("hf-hub:nobody/nothing", branch="untrained")


def test_the_network_is_closed() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"a connection to example\.org"):
        socket.create_connection(("example.org", 80))
    with pytest.raises(pytest.fail.Exception, match=r"a connection to 192\.0\.2\.1"), socket.socket() as asked:
        asked.connect(("192.0.2.1", 80))
