"""Runs of one size, and runs distilled from a trained teacher."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import poa
import tiny
from poa.config.pretraining import Config
from poa.errors import UserError
from poa.families.base import Features
from poa.models.registry import family_of
from poa.models.teacher import teacher_of
from poa.training.checkpoint import checkpoints, load_checkpoint, step_of
from poa.training.metrics import read_metrics

STEPS = 8
SMALL: dict[str, Any] = {"width_max": 32, "depth_max": [2]}
Whole = Callable[[str], Path]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "run"
    poa.pretrain(**tiny.settings(out=str(folder), epochs=1))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Whole:
    """A run of a method without interruption."""
    folder = tmp_path_factory.mktemp("whole")

    @cache
    def run(method: str) -> Path:
        poa.pretrain(**settings(method, teacher, folder / method))
        return folder / method

    return run


def settings(method: str, teacher: Path, out: Path, **over: Any) -> dict[str, Any]:
    given = tiny.settings(
        method=method,
        out=str(out),
        model={} if method == "distill" else SMALL,
        distill={"teacher": str(teacher), "queue": 32},
        saving={"every_epochs": 0.5, "keep_last": 4},
    )
    return tiny.merged(given, over)


METHODS = ("single", "seed")


@pytest.mark.parametrize("method", METHODS)
def test_a_run_has_one_size_and_hands_it_out(whole: Whole, method: str, tmp_path: Path) -> None:
    run = poa.load(whole(method))
    assert run.sizes() == ("32x2",)
    assert all(row["size"] == "" for row in read_metrics(run.paths.metrics))
    folder = run.extract("32x2", out=tmp_path / "model")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    trained = load_checkpoint(run.checkpoint)["method"]
    branch = {"single": "teacher", "seed": "student"}[method]
    for name, value in model.state_dict().items():
        assert torch.equal(value, trained[f"{branch}.backbone.model.{name}"])


@pytest.mark.parametrize("method", [*METHODS, "distill"])
def test_a_run_goes_on_as_if_it_had_never_stopped(whole: Whole, method: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole(method), folder)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(str(whole(method)), str(folder)))
    for path in checkpoints(folder / "checkpoints"):
        if step_of(path) > 2:
            path.unlink()
    poa.pretrain(out=folder, resume=True)
    assert read_metrics(folder / "metrics.jsonl") == read_metrics(whole(method) / "metrics.jsonl")
    ends = [load_checkpoint(checkpoints(each / "checkpoints")[-1]) for each in (folder, whole(method))]
    assert ends[0]["step"] == STEPS
    for name, value in ends[1]["method"].items():
        assert torch.equal(ends[0]["method"][name], value), name


def test_a_student_learns_from_its_teacher(whole: Whole) -> None:
    rows = read_metrics(whole("seed") / "metrics.jsonl")
    assert rows[-1]["student/global"] < rows[0]["student/global"]
    assert {name for name in rows[0] if "/" in name and not name.startswith("grad")} == {
        "student/global",
        "student/local",
    }


@pytest.mark.parametrize(("method", "place"), [("seed", "teacher"), ("distill", "frozen.network")])
def test_the_teacher_stays_as_it_was(whole: Whole, teacher: Path, method: str, place: str) -> None:
    kept = load_checkpoint(poa.load(whole(method)).checkpoint)["method"]
    for name, value in poa.load(teacher).network("64x3").state_dict().items():
        assert torch.equal(kept[f"{place}.{name}"], value)


def test_all_sizes_learn_from_a_teacher_at_once(whole: Whole, tmp_path: Path) -> None:
    run = poa.load(whole("distill"))
    rows = read_metrics(run.paths.metrics)
    assert len({row["size"] for row in rows}) > 1
    for name in ("intact/global", "intact/patch", "elastic/global", "elastic/local", "elastic/same_global"):
        assert rows[-1][name] < rows[0][name]
    model = timm.create_model(f"local-dir:{run.extract('32x2', out=tmp_path / 'model')}", pretrained=True).eval()
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(model(images), run.network("32x2")(images).cls)


def test_a_teacher_normalises_images_as_it_learnt_to(teacher: Path, tmp_path: Path) -> None:
    """The student's images are normalised in another way: the teacher sees them as in its own run."""
    views = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    config = tiny.config(method="seed", distill={"teacher": str(teacher)}, views=views)
    network, width, *_ = teacher_of(config, family_of(config))
    own = poa.load(teacher)
    images = torch.rand(2, 3, 16, 16)

    def normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        return (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    expected = own.network("64x3")(normalised(own.config.views.mean, own.config.views.std)).cls
    found = network(normalised(views["mean"], views["std"])).cls
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert width == 64


def test_a_teacher_sees_crops_of_its_own_size(teacher: Path) -> None:
    config = tiny.config(method="distill", distill={"teacher": str(teacher), "teacher_size": 24})
    network, *widths, initial = teacher_of(config, family_of(config))
    crops = torch.rand(2, 3, 16, 16)
    larger = torch.nn.functional.interpolate(crops, (24, 24), mode="bilinear", antialias=True)
    expected = poa.load(teacher).network("64x3")(larger)
    for found, wanted in zip(network(crops), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert network(crops).patches.shape[1:] == (9, widths[1])
    assert initial is None
    own = tiny.config(init="x", distill={"teacher": "init", "teacher_size": 24}, views={"mean": (0.5, 0.5, 0.5)})
    network, *_, initial = teacher_of(own, family_of(own))
    assert initial is not None
    torch.testing.assert_close(network(crops).cls, initial(larger).cls, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"distill": {"teacher": ""}}, r"^--distill\.teacher"),
        ({"distill": {"queue": 24}}, r"--distill\.queue 24 is not a multiple of the images per pass, 16.*Set it to 16"),
        ({"distill": {"teacher": "no/such/run"}}, r"no/such/run"),
        ({"views": {"local_size": 12}, "model": {"patch_size": 4}}, r"cannot process crops of 12 pixels.*num-locals 0"),
        ({"model": {"depth_max": [2, 3]}}, r"--model\.depth-\w+ takes one number"),
    ],
)
def test_what_cannot_be_distilled_is_told(teacher: Path, tmp_path: Path, over: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        poa.pretrain(**settings("seed", teacher, tmp_path / "run", **over))
    assert not (tmp_path / "run").exists()


def test_what_cannot_teach_many_sizes_is_told(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = settings("distill", teacher, teacher, resume=True)
    config = Config(**{name: value for name, value in own.items() if name != "resume"})
    with pytest.raises(UserError, match=r"is the folder of this run.*Give the folder of another run"):
        teacher_of(config, family_of(config))
    config = tiny.config(distill={"teacher": "init"})
    with pytest.raises(UserError, match=r"network of --init as it was, and there is no --init\. Add --init, "):
        teacher_of(config, family_of(config))
    odd = settings("distill", teacher, tmp_path / "run", distill={"teacher_size": 20})
    with pytest.raises(UserError, match=r"size 20 is not a multiple .*Set --distill\.teacher-size to 16 or 24\."):
        poa.pretrain(**odd)
    found = Features(torch.zeros(1, 4), torch.zeros(1, 6, 4))
    monkeypatch.setattr("poa.models.teacher.try_features", lambda *_, **__: found)
    with pytest.raises(UserError, match=r"has 6 patches, which are no square grid.*--distill\.patch-weight 0"):
        poa.pretrain(**settings("distill", teacher, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_queue_longer_than_the_data_is_noted(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    poa.pretrain(**settings("seed", teacher, tmp_path / "run", epochs=1, distill={"queue": 128}))
    assert "lower it to at most 64" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["poa", "single"])
def test_a_restart_without_a_slow_start_is_told(method: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"--optimizer\.restart-lr has no effect with --method {method}"):
        poa.pretrain(**tiny.settings(method=method, out=str(tmp_path / "run"), optimizer={"restart_lr": 0.1}))
