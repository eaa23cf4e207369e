"""Runs of slimmable networks, from settings to models."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import poa
from command import poa as cli_status
from poa.config import resolve
from poa.errors import UserError
from poa.models.registry import family_of
from poa.pretraining import step as poa_step
from poa.pretraining.method import SLIMCLR, method_of
from poa.pretraining.schedule import schedules_of, subnets_of
from poa.training.checkpoint import checkpoints, load_checkpoint, step_of
from poa.training.metrics import read_metrics

STEPS_PER_EPOCH = 1251  # of ImageNet, 1024 images at a time
METHODS = ("slimclr-simclr", "slimclr-mocov2", "slimclr-mocov3")
TINY: dict[str, Any] = {
    "data": "digits",
    "limit": 48,
    "epochs": 4,
    "batch_size": 16,
    "precision": "fp32",
    "device": "cpu",
    "workers": 0,
    "model": {"width_min": 8, "width_max": 16, "width_step": 8, "depth_min": [1, 1, 1, 1], "depth_max": [1, 1, 1, 1]},
    "views": {"global_size": 32, "blur_kernel": 3},
    "slim": {"queue": 48, "dim": 16},
    "optimizer": {"warmup_epochs": 1},
    "saving": {"every_epochs": 1, "keep_last": 4},
    "monitor": {"num_images": 48},
}


def tiny(recipe: str, out: Path, **over: Any) -> dict[str, Any]:
    hidden = {} if recipe == "slimclr-mocov2" else {"hidden": 32}
    given = {**TINY, "recipe": recipe, "out": str(out), "slim": {**TINY["slim"], **hidden}}
    for name, value in over.items():
        given[name] = {**given.get(name, {}), **value} if isinstance(value, dict) else value
    return given


@pytest.fixture(scope="module", params=METHODS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slim") / request.param
    poa.pretrain(**tiny(request.param, folder))
    return folder


def test_the_full_width_starts_alone(run: Path) -> None:
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["size"] for row in rows] == [""] * 6 + ["8x1-1-1-1"] * 6
    assert rows[5]["loss"] == pytest.approx(rows[5]["16x1-1-1-1/contrast"])
    late = rows[6]
    expected = 1.5 * late["16x1-1-1-1/contrast"] + 0.5 * (late["8x1-1-1-1/contrast"] + late["8x1-1-1-1/distillation"])
    assert late["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_run_goes_on_as_if_it_had_never_stopped(run: Path, tmp_path: Path) -> None:
    """Queue, momentum encoder, statistics and all."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace(str(run), str(folder)))
    for path in checkpoints(folder / "checkpoints"):
        if step_of(path) > 3:
            path.unlink()
    poa.pretrain(out=folder, resume=True)
    assert read_metrics(folder / "metrics.jsonl") == read_metrics(run / "metrics.jsonl")
    ends = [load_checkpoint(checkpoints(each / "checkpoints")[-1])["method"] for each in (folder, run)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[0][name]) for name, value in ends[1].items())


@pytest.mark.parametrize("size", ["8x1-1-1-1", "16x1-1-1-1"])
def test_a_width_is_a_plain_timm_model_with_its_own_statistics(run: Path, size: str, tmp_path: Path) -> None:
    folder = poa.load(run).extract(size, out=tmp_path / "model")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    state = load_checkpoint(poa.load(run).checkpoint)["method"]
    number = 0 if size.startswith("16") else 1
    norm = next(name for name in model.state_dict() if name.endswith("running_mean"))
    layer, _, _ = norm.rpartition(".")
    assert torch.equal(model.state_dict()[norm], state[f"student.backbone.model.{layer}.{number}.running_mean"])
    assert model.state_dict()[norm].abs().sum() > 0
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(model(images), poa.load(run).network(size)(images).cls)


@pytest.mark.parametrize(
    ("recipe", "epoch", "lr"),
    [
        ("slimclr-mocov2", 10, 0.2),
        ("slimclr-mocov2", 99, 0.1099),
        ("slimclr-mocov2", 100, 0.1083),
        ("slimclr-mocov2-800", 400, 0.1020),
        ("slimclr-mocov3", 149, 0.6386),
        ("slimclr-mocov3", 150, 1.6857),
        ("slimclr-simclr", 50, 1.408),
    ],
)
def test_h_learning_rates_of_the_published_recipes(recipe: str, epoch: int, lr: float) -> None:
    schedules = schedules_of(resolve.resolve(recipe=recipe), steps_per_epoch=STEPS_PER_EPOCH)
    assert schedules.at(epoch * STEPS_PER_EPOCH).lr == pytest.approx(lr, abs=6e-5 if lr < 1 else 5e-4)


@pytest.mark.parametrize("given", [{}, {"batch_size": 4096}, {"batch_size": 128}, {"lr": 0.1}])
def test_the_learning_rate_restarts_with_the_published_jump(given: dict[str, Any]) -> None:
    """Of 2.67, whatever the peak: that of the published batch, of another one, or one that is set."""
    config = resolve.resolve(given, recipe="slimclr-mocov3")
    schedules = schedules_of(config, steps_per_epoch=STEPS_PER_EPOCH)
    jump = schedules.at(150 * STEPS_PER_EPOCH).lr / schedules.at(150 * STEPS_PER_EPOCH - 1).lr
    assert jump == pytest.approx(3.2 / 1.2, rel=1e-3)


def test_published_recipes_name_the_published_constants() -> None:
    config = resolve.resolve(recipe="slimclr-mocov3")
    assert SLIMCLR[config.method].__name__ == "MoCoV3"
    assert [str(size) for size in family_of(config).space.sizes] == [f"{width}x3-4-6-3" for width in (16, 32, 48, 64)]
    subnets = subnets_of(config, family_of(config), steps_per_epoch=10)
    assert subnets(1499) == ()
    assert [size.width for size in subnets(1500)] == [48, 32, 16]
    momentum = schedules_of(config, steps_per_epoch=10)
    assert [momentum.at(step).momentum for step in (0, 1500)] == pytest.approx([0.99, 0.995])


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"slim": {"queue": 40}}, r"--slim\.queue 40 is not a multiple of the images per pass, 16.*Set it to 32"),
        ({"slim": {"slow_start_epochs": 4.4}}, r"slow-start-epochs 4.4.* is more than the epochs of the run, 4"),
        ({"slim": {"hidden": 8}}, r"--slim\.hidden has no effect on MoCo v2"),
        ({"batch_size": 1, "slim": {"queue": 48}}, r"BatchNorm needs at least two images"),
        ({"views": {"num_locals": 2}, "accumulate": 2}, r"does not support --views\.num-locals, --accumulate\."),
        ({"init": "resnet50"}, r"does not support --init"),
        ({"model": {"width_min": 12}}, r"Widths are multiples of the channels that timm counts in, 8, got 12"),
        ({"model": {"depth_min": [1, 1, 1, 2]}}, r"smallest depth|same blocks"),
        ({"model": {"name": "vit"}}, r"slimclr-mocov2 cannot train a ViT.*--model slim-resnet"),
        ({"model": {"widths": [16, 12]}}, r"Widths are multiples of the channels that timm counts in, 8, got 12"),
        ({"method": "poa"}, r"--method poa cannot train a SlimResNet.*slimclr-simclr"),
    ],
)
def test_what_cannot_be_slimmed_is_told(tmp_path: Path, over: dict[str, Any], said: str) -> None:
    given = tiny("slimclr-mocov2", tmp_path / "run", **over)
    if over.get("model", {}).get("name") == "vit":
        given["model"] = {"name": "vit", "width_min": 32, "width_max": 64, "head_dim": 16, "patch_size": 8}
    with pytest.raises(UserError, match=said):
        poa.pretrain(**given)
    assert not (tmp_path / "run").exists()


def test_only_moco_v2_minds_the_queue() -> None:
    for recipe in ("slimclr-simclr", "slimclr-mocov3"):
        config = resolve.resolve({**TINY, "slim": {"queue": 40}}, recipe=recipe)
        method = method_of(config, family_of(config))
        assert method.exported is method.get_submodule(config.exported_branch)


@pytest.mark.parametrize("name", METHODS)
def test_the_recipe_for_small_data_suits_each_method(name: str) -> None:
    config = resolve.resolve({"method": name}, recipe="slimclr-small-data")
    assert isinstance(method_of(config, family_of(config)), SLIMCLR[name])


def test_a_queue_longer_than_the_data_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    poa.pretrain(**tiny("slimclr-mocov2", tmp_path / "run", epochs=1, slim={"queue": 64}))
    assert "so the queue holds images twice; lower it to at most 48" in capsys.readouterr().err


@pytest.mark.parametrize("run", ["slimclr-mocov3"], indirect=True)
def test_gradients_are_measured_and_drawn(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every third step, without a change of what is learnt; norms are those of nested slices of each weight."""
    assert cli_status("gradients", run) == 2
    assert "did not measure its gradients" in capsys.readouterr().err
    folder = tmp_path / "run"
    seen: list[dict[str, torch.Tensor]] = []
    heads: list[dict[str, torch.Tensor]] = []
    clip = poa_step.clip_gradients

    def clipped(modules: Any, **options: Any) -> Any:
        modules = list(modules)
        for kept, module in zip((seen, heads), modules, strict=True):
            kept.append({name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None})
        return clip(modules, **options)

    monkeypatch.setattr(poa_step, "clip_gradients", clipped)
    poa.pretrain(**tiny(run.name, folder, monitor={"num_images": 48, "gradients_every": 3}))
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows if "gradient_rest/8x1-1-1-1" in row] == [3, 6, 9, 12]
    plain = read_metrics(run / "metrics.jsonl")
    assert [{k: v for k, v in row.items() if not k.startswith("gradient")} for row in rows] == plain
    whole, part, rest = [], [], []
    for name, gradient in seen[8].items():
        if gradient.ndim == 4:
            inputs = gradient.shape[1] if name.endswith("stem.conv.weight") else gradient.shape[1] // 2
            inside = gradient[: len(gradient) // 2, :inputs].double().norm()
            whole.append(float(gradient.double().norm()))
            part.append(float(inside))
            rest.append(float((gradient.double().norm() ** 2 - inside**2) ** 0.5))
    assert rows[8]["gradient/16x1-1-1-1"] == pytest.approx(sum(whole) / len(whole))
    assert rows[8]["gradient/8x1-1-1-1"] == pytest.approx(sum(part) / len(part))
    assert rows[8]["gradient_rest/8x1-1-1-1"] == pytest.approx(sum(rest) / sum(part))
    last = next(gradient for name, gradient in reversed(heads[8].items()) if gradient.ndim == 2)
    values = torch.linalg.eigvalsh(last.double() @ last.double().T).sqrt().flip(0)
    assert (rows[8]["gradient_first"], rows[8]["gradient_second"]) == pytest.approx(
        (float(values[0]), float(values[1]))
    )
    assert cli_status("gradients", folder) == 0
    assert (folder / "gradients.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("run", ["slimclr-mocov2"], indirect=True)
def test_sizes_and_scores_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_status("sizes", run) == 0
    assert "8x1-1-1-1" in capsys.readouterr().out
    for branch in ("teacher", "untrained"):
        words = [
            "evaluate",
            "knn",
            run,
            "--train",
            "digits/train",
            "--test",
            "digits/test",
            "--branch",
            branch,
            "--k",
            "5",
        ]
        assert cli_status(*words, "--limit", "60") == 0
        assert "16x1-1-1-1" in capsys.readouterr().out
