"""Runs that start from trained weights, or of the network in a folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

import poa
import tiny
from command import poa as command
from poa.config import resolve
from poa.config.network import ModelSettings
from poa.elastic.network import SubNetworks
from poa.errors import UserError
from poa.models import init
from poa.models.registry import describe, explicit, family_of
from poa.models.run import Run
from poa.models.weights import read
from poa.pretraining import launch
from poa.pretraining.dry_run import dry_run
from poa.training.checkpoint import latest_checkpoint, load_checkpoint
from poa.training.metrics import read_metrics
from trained import assert_same, features_of, from_folder, made, saved, written


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in read_metrics(run.paths.metrics)]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_run_goes_on_from_an_extracted_folder_and_outlives_it(family: str, tmp_path: Path) -> None:
    first = poa.pretrain(**tiny.settings(family, out=tmp_path / "first", epochs=1, limit=16))
    model = first.extract(first.sizes()[-1], out=tmp_path / "model")
    given = timm.create_model(f"local-dir:{model}", pretrained=True).state_dict()
    whole = tmp_path / "whole"
    second = poa.pretrain(**from_folder(family, str(model), out=whole, limit=32))
    assert second.config.model.name == describe(str(model))[1]["architecture"]
    assert second.family.arguments(second.space.intact) == first.family.arguments(first.space.intact)
    assert_same(second.initial(second.space.intact).model.state_dict(), given)

    shutil.rmtree(model)
    again = poa.load(whole)
    intact = again.family.build(again.space.intact)
    intact.model.load_state_dict(given)
    chosen = again.family
    networks = SubNetworks(chosen.build, chosen.space.intact, source=chosen.source, groups=chosen.groups)
    for size in (chosen.space.sizes[0], chosen.space.sizes[len(chosen.space.sizes) // 2]):
        expected = networks.extract(size, intact).state_dict()
        assert_same(again.initial(size).state_dict(), expected)
        assert not again.initial(str(size)).training

    expected_losses, newest = losses(again), latest_checkpoint(again.paths.checkpoints)
    assert newest is not None
    newest.unlink()
    poa.pretrain(out=whole, resume=True)
    assert losses(poa.load(whole)) == expected_losses


def test_what_is_set_besides_a_folder_counts(tmp_path: Path) -> None:
    folder = saved(made("swin"), tmp_path / "model")
    config = tiny.config("swin").model_copy(update={"model": ModelSettings(name=folder, depths=(2, 1, 5, 2))})
    assert explicit(config) == explicit(explicit(config)) != config
    for each in (config, explicit(config)):
        family = family_of(each)
        assert family.depths == (2, 1, 5, 2)
        assert str(family.space.intact) == "32x5"
    assert explicit(config).model.name == "swin_base_patch4_window7_224"
    plain = tiny.config()
    assert explicit(plain) is plain
    wide = describe(saved(made("swin", window_size=10, mlp_ratio=3.0), tmp_path / "wide"))[1]  # wider than the maps
    assert (wide["window_size"], wide["mlp_ratio"]) == (10, 3.0)


def test_names_of_networks_come_before_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved(made(), tmp_path / "resnet50_gn")
    assert describe("resnet50_gn")[0].__name__ == "ResNet"
    assert describe("./resnet50_gn")[0].__name__ == describe("local-dir:resnet50_gn")[0].__name__ == "ViT"
    assert_same(read("resnet50_gn").weights, made().state_dict())  # of weights, what is there comes first


def test_going_on_needs_the_source_only_before_the_first_checkpoint(tmp_path: Path) -> None:
    model = made()
    file = written(model.state_dict(), tmp_path / "a.pth")
    """Also where its network, as it was, is a frozen teacher too."""
    over: dict[str, Any] = {
        "saving": {"every_epochs": 0.5},
        "model": {"drop_path": 0.2},
        "distill": {"teacher": "init"},
    }
    given = tiny.settings(out=tmp_path / "run", init=file, **over)
    run = poa.pretrain(**given)
    scratch = poa.pretrain(**{**given, "init": None, "distill": {}, "out": tmp_path / "scratch"})
    expected = losses(run)
    assert len(expected) == 8
    assert not set(expected) & set(losses(scratch)), "what the run began with made no difference"
    assert not scratch.paths.initial.exists()
    begun = run.paths.initial.read_bytes()

    Path(file).rename(tmp_path / "away.pth")
    newest = latest_checkpoint(run.paths.checkpoints)
    assert newest is not None
    trained, before = load_checkpoint(newest)["method"], load_file(run.paths.initial)
    assert_same({name: trained[f"frozen.network.{name}"] for name in before}, before)
    assert any(not torch.equal(trained[f"student.backbone.{name}"], value) for name, value in before.items())
    newest.unlink()
    assert command("pretrain", "--out", run.folder, "--resume", "--dry-run") == 0
    poa.pretrain(out=run.folder, resume=True)
    assert losses(run) == expected
    with pytest.raises(UserError, match=r"other settings: init \('\S+a\.pth' in the run, 'b\.pth' now\)"):
        poa.pretrain(**{**given, "init": "b.pth"}, resume=True)

    shutil.rmtree(run.paths.checkpoints)
    with pytest.raises(UserError, match=r"a\.pth: there is no such file or folder"):
        poa.pretrain(out=run.folder, resume=True)
    (tmp_path / "away.pth").rename(file)
    run.paths.initial.unlink()
    poa.pretrain(out=run.folder, resume=True)
    assert losses(run) == expected
    assert run.paths.initial.read_bytes() == begun
    assert_same(load_file(run.paths.initial), {f"model.{k}": x for k, x in features_of(model).items()} | {
        "mask_token": torch.zeros(64)
    })  # fmt: skip


def test_a_dry_run_tells_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(made(), tmp_path / "model")
    before = set(tmp_path.rglob("*"))
    config = tiny.config().model_copy(update={"init": folder, "model": ModelSettings(name=folder)})
    assert dry_run(config, console=Console(stderr=True)).measured.num_sizes == 6
    assert f"Weights of {folder}: 48 tensors loaded." in capsys.readouterr().err.splitlines()
    assert set(tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match="do not fit"):
        dry_run(tiny.config("dinov3", init=folder), console=Console(quiet=True))


AT_ONCE: dict[str, Any] = {"optimizer": {"teacher_momentum": (0.0, 0.0), "warmup_epochs": 0.0}}
"""The teacher is the student."""


def test_initial_sizes_are_scored_beside_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, images = tmp_path / "tiny.yaml", ("--train", "digits/train", "--test", "digits/test", "--limit", "60")
    file.write_text(resolve.to_yaml(tiny.config(init=saved(made(), tmp_path / "model"), epochs=1, **AT_ONCE)))
    assert command("pretrain", "--config", file, "--out", tmp_path / "run") == 0
    for branch in ("untrained", "initial", "teacher"):
        assert command("evaluate", "knn", tmp_path / "run", *images, "--k", "20", "--branch", branch) == 0
    capsys.readouterr()
    assert command("sizes", tmp_path / "run", "--out", tmp_path / "sizes.csv") == 0
    heading = (tmp_path / "sizes.csv").read_text().splitlines()[0]
    assert heading.split(",")[7::6] == ["top1@20", "initial top1@20", "untrained top1@20"]
    assert capsys.readouterr().out.splitlines()[0].split() == ["initial", "untrained"]
    content = json.loads((tmp_path / "run/eval/initial/knn.json").read_text())
    assert content["settings"]["weights"].startswith(f"initial, from {tmp_path / 'model'}, sha256 ")
    run = poa.load(tmp_path / "run")
    scores = {branch: json.loads((tmp_path / f"run/eval/{branch}/knn.json").read_text())["scores"] for branch in
              ("knn", "initial", "untrained")}  # fmt: skip
    assert scores["initial"] != scores["knn"]
    assert scores["initial"] != scores["untrained"]
    again = poa.evaluate_knn(
        run, train="digits/train", test="digits/test", limit=60, branch="initial", name="b", ks=(20,)
    )
    assert again == scores["initial"]
    run.paths.initial.unlink()
    with pytest.raises(UserError, match=r"initial\.safetensors is missing"):
        poa.load(run.folder).initial("32x2")


def test_a_run_from_scratch_has_no_initial_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = poa.pretrain(**tiny.settings(out=tmp_path / "run", epochs=1))
    with pytest.raises(UserError, match=r"did not start from trained weights \(--init\), so it has no initial sizes"):
        run.initial("32x2")
    words = ("--train", "digits/train", "--test", "digits/test", "--branch", "initial")
    assert command("evaluate", "knn", run.folder, *words) == 2
    assert "did not start from trained weights" in capsys.readouterr().err
    assert not run.paths.scores.exists()
    with pytest.raises(UserError, match=r"no branch 'student' to evaluate\. Choose from teacher, initial, untrained"):
        poa.evaluate_knn(run, train="digits/train", test="digits/test", branch="student")


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match=r"initial\.safetensors cannot be written: No space left on device"):
        init.write(nn.Linear(2, 2).state_dict(), tmp_path / "initial.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_launched_processes_are_told_of_the_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, told = saved(made(), tmp_path / "model"), []
    monkeypatch.setattr(launch, "_run_processes", lambda config, *_, **__: told.append(config.model.name))
    with pytest.raises(UserError, match="is not the folder of a run"):
        poa.pretrain(**from_folder("vit", folder, out=tmp_path / "run", devices=2))
    assert told == ["vit_base_patch16_224"]
