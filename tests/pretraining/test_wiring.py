"""Every setting acts: a run of three steps with another value of it learns something else.

Functions are tested where they stand; here it is what the settings hand to them. A setting that is not passed on, or a
new one without a row, fails.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import tiny
from poa.config.pretraining import (
    Config,
    DistillSettings,
    HeadSettings,
    LossSettings,
    SlimSettings,
    ViewSettings,
)
from poa.config.running import OptimizerSettings
from poa.data.index import open_index
from poa.data.loader import batches
from poa.data.views import RawViews
from poa.models.teacher import Teacher
from poa.pretraining import loop, observers, process
from poa.pretraining.build import Parts, assemble
from poa.pretraining.monitor import Monitor
from poa.pretraining.step import StepResult, step_batches, train_step
from poa.training.trackers import Started

STEPS = 3
CPU = torch.device("cpu")
BASE: dict[str, Any] = {
    "limit": 16,
    "batch_size": 8,
    "epochs": 3,
    "views": {"num_locals": 1, "solarize_probability": 0.5, "grey_probability": 0.5},
    "losses": {"teacher_temperature_epochs": 1.5},
    "optimizer": {"clip": 1000.0, "warmup_epochs": 0.5},
}
SLIM: dict[str, Any] = {
    "model": {"name": "slim-resnet", "widths": [16, 8], "depth_min": [1, 1, 1, 1], "depth_max": [1, 1, 1, 1]},
    "views": {"global_size": 32, "num_locals": 0, "mask_share": 0.0},
    "slim": {"slow_start_epochs": 0.5, "queue": 32, "dim": 8},
    "optimizer": {"patch_embed_multiplier": 1.0, "layer_decay": 1.0},
}
TAUGHT = "poa with a frozen teacher"
METHODS: dict[str, dict[str, Any]] = {
    "poa": {},
    "slimclr-simclr": tiny.merged(SLIM, {"slim": {"hidden": 16}}),
    "slimclr-mocov2": SLIM,
    "slimclr-mocov2 with BatchNorm": tiny.merged(SLIM, {"slim": {"head_norm": True, "hidden": 16}}),
    "slimclr-mocov3": tiny.merged(SLIM, {"slim": {"hidden": 16}}),
    "seed": {"distill": {"queue": 32}},
    "distill": {},
    TAUGHT: {"distill": {"teacher": "frozen"}},
    "poa by coding rate": {"losses": {"kind": "coding-rate"}},
    "poa with cheaper steps": tiny.CHEAPER,
}
"""Settings of each method, or of a method in another way, whose name begins with it."""
POA: dict[str, Any] = {
    "batch_size": 16,
    "lr": 0.01,
    "seed": 1,
    "accumulate": 2,
    "elastic_samples": 2,
    "sampling": "sandwich",
    "epochs": 4,
    "heads.prototypes": (24,),
    "heads.layers": 2,
    "heads.hidden": 24,
    "heads.bottleneck": 4,
    "views.global_size": 24,
    "views.global_scale": (0.9, 1.0),
    "views.local_size": 16,
    "views.local_scale": (0.3, 0.32),
    "views.num_locals": 2,
    "views.flip": 0.0,
    "views.jitter": (0.1, 0.1, 0.1, 0.1),
    "views.jitter_probability": 0.0,
    "views.grey_probability": 0.0,
    "views.blur_probabilities": (1.0, 0.0, 0.0),
    "views.blur_kernel": 5,
    "views.solarize_probability": 0.0,
    "views.mean": (0.1, 0.1, 0.1),
    "views.std": (0.5, 0.5, 0.5),
    "views.mask_share": 0.1,
    "views.mask_ratio": (0.6, 0.7),
    "losses.variant": "paper",
    "losses.kind": "coding-rate",
    "losses.intact_share": 0.3,
    "losses.ibot": 0.5,
    "losses.ibot_start_epoch": 2.0,
    "losses.koleo": 0.3,
    "losses.gram": 0.5,
    "losses.student_temperature": 0.2,
    "losses.teacher_temperature": (0.05, 0.07),
    "losses.teacher_temperature_epochs": 3.0,
    "losses.centering": "moving-average",
    "optimizer.kind": "sgd",
    "optimizer.decay_all": True,
    "optimizer.base_lr": 0.002,
    "optimizer.schedule": "constant",
    "optimizer.final_lr": 1e-3,
    "optimizer.warmup_epochs": 1.0,
    "optimizer.backbone_warmup_epochs": 2.0,
    "optimizer.weight_decay": (0.1, 0.4),
    "optimizer.teacher_momentum": (0.5, 0.9999),
    "optimizer.layer_decay": 0.5,
    "optimizer.patch_embed_multiplier": 0.7,
    "optimizer.freeze_last_layer_epochs": 1.0,
    "optimizer.clip": 0.01,
    "optimizer.cosine_stretch": 0.7,
}
"""Another value of each setting of POA."""
ROWS = [
    *(("poa", path, value) for path, value in POA.items()),
    ("slimclr-simclr", "optimizer.restart_lr", 0.01),
    ("slimclr-simclr", "slim.slow_start_epochs", 0.0),
    ("slimclr-simclr", "slim.weighting", "even"),
    ("slimclr-simclr", "slim.distillation", "kl"),
    ("slimclr-simclr", "slim.distillation_share", 0.2),
    ("slimclr-simclr", "slim.distillation_temperature", 2.0),
    *((f"slimclr-{name}", "slim.temperature", 0.3) for name in ("simclr", "mocov2", "mocov3")),
    *((f"slimclr-{name}", "slim.hidden", 24) for name in ("simclr", "mocov3")),
    *((f"slimclr-{name}", "slim.dim", 12) for name in ("simclr", "mocov2", "mocov3")),
    ("slimclr-mocov2", "slim.queue", 64),
    ("slimclr-mocov2", "slim.head_norm", True),
    ("slimclr-mocov2 with BatchNorm", "slim.hidden", 24),
    ("poa by coding rate", "losses.rate", 0.5),
    ("poa by coding rate", "losses.distortion", 0.2),
    ("poa with cheaper steps", "views.small_size", 24),
    ("poa with cheaper steps", "views.small_epochs", 0.5),
    ("poa with cheaper steps", "views.drop_patches", 0.5),
    ("seed", "distill.queue", 64),
    ("seed", "distill.student_temperature", 0.1),
    ("seed", "distill.teacher_temperature", 0.1),
    ("seed", "distill.local_weight", 0.5),
    *((TAUGHT, "distill.weight", weight) for weight in ((0.5, 1.0), (1.0, 0.0))),
    *((method, "distill.local_weight", 0.5) for method in ("distill", TAUGHT)),
    ("distill", "distill.patch_weight", 0.5),
    ("distill", "distill.smooth_l1", 0.5),
    ("distill", "heads.hidden", 24),
    ("distill", "losses.intact_share", 0.3),
    ("distill", "elastic_samples", 2),
    ("distill", "sampling", "sandwich"),
    ("poa", "sampling", "widening"),
]
ELSEWHERE = {
    "optimizer.cooldown_epochs": "acts with a constant rate: test_length",
    "views.full_decode": "acts on large photographs: data/test_loader",
    "heads.memory": "differs by rounding: test_streamed, test_poa",
    "losses.koleo_over_ranks": "acts with several processes: test_step",
    "losses.own": "which loss: config/test_own",
    "views.own": "which augmentation: config/test_own",
    "distill.teacher": "which network: test_single_size",
    "distill.teacher_size": "what it sees: test_single_size",
}
SECTIONS = {
    "heads": HeadSettings,
    "views": ViewSettings,
    "losses": LossSettings,
    "distill": DistillSettings,
    "slim": SlimSettings,
    "optimizer": OptimizerSettings,
}


def config_of(method: str, path: str | None = None, value: Any = None) -> Config:
    over: dict[str, Any] = {} if path is None else {path: value}
    if path is not None and "." in path:
        section, name = path.split(".")
        over = {section: {name: value}}
    settings = tiny.settings(**tiny.merged(tiny.merged(BASE, METHODS[method]), {"method": method.split()[0], **over}))
    return Config.model_validate(settings | ({"model": SLIM["model"]} if method.startswith("slimclr") else {}))


Values = Mapping[str, float | Tensor]


def learn(config: Config, parts: Parts) -> Iterator[Values]:
    """What is measured in each of some steps, and at last what is learnt."""
    index = open_index(config.data, limit=config.limit)
    made = step_batches(
        parts,
        index,
        batch_size=config.batch_size,
        start_step=0,
        num_steps=STEPS,
        micro_batches=config.accumulate,
    )
    for step, batch in enumerate(made):
        yield train_step(parts, step, batch).metrics
    yield parts.method.state_dict()


def run(monkeypatch: pytest.MonkeyPatch, config: Config) -> Iterator[Values]:
    if config.method in ("distill", "seed") or config.distill.teacher:
        torch.manual_seed(5)
        frozen = tiny.config(heads={"prototypes": [16]})
        teacher = assemble(frozen, open_index("digits", limit=16), device=CPU).method.exported.backbone
        made = Teacher(teacher, teacher.num_features, teacher.num_features)
        monkeypatch.setattr("poa.pretraining.build.teacher_of", lambda *_: made)
    return learn(config, assemble(config, open_index(config.data, limit=config.limit), device=CPU))


@cache
def usual(method: str) -> list[Values]:
    with pytest.MonkeyPatch.context() as patch:
        return list(run(patch, config_of(method)))


def differ(first: Iterable[Values], second: Iterable[Values]) -> bool:
    """Whether they part; no step is taken after the first one in which they do."""
    return any(not same(*pair) for pair in zip(first, second, strict=True))


def same(first: Values, second: Values) -> bool:
    pairs = ((torch.as_tensor(value), torch.as_tensor(second[name])) for name, value in first.items())
    return first.keys() == second.keys() and all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_settings_learn_the_same(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Else the next test could not fail."""
    assert not differ(usual(method), run(monkeypatch, config_of(method)))


@pytest.mark.parametrize(("method", "path", "value"), ROWS, ids=lambda x: str(x))
def test_another_value_learns_something_else(
    monkeypatch: pytest.MonkeyPatch, method: str, path: str, value: Any
) -> None:
    assert differ(usual(method), run(monkeypatch, config_of(method, path, value)))


def test_every_setting_has_a_row() -> None:
    tested = {path for _, path, _ in ROWS} | set(ELSEWHERE)
    settings = {f"{section}.{name}" for section, kind in SECTIONS.items() for name in kind.model_fields}
    assert settings - tested == set()


class Looped(NamedTuple):
    """What a run does besides training, which is left out."""

    batches: list[list[RawViews]]
    saved: list[tuple[int, int, int | None]]
    """Steps, and which checkpoints are kept."""
    scored: list[int]
    written: dict[int, dict[str, Any]]
    """What a tracker was told, by step."""
    met: list[int]
    """After which steps all processes waited for one another."""


SLOW = 3
"""Step whose checkpoint is written as long as two more steps are trained, after which sizes are scored."""


def looped(monkeypatch: pytest.MonkeyPatch, out: Path, **over: Any) -> Looped:
    found = Looped([], [], [], {}, [])

    def train_step(_: Parts, step: int, batch: Any, **__: Any) -> StepResult:
        found.batches.append(batch)
        losses = {"loss": 1.0, "intact/global": 1.0, "elastic/global": 1.0}
        return StepResult(losses, (), 0.1, stop=False)

    def save(_: Path, step: int, __: Any, *, keep_last: int, keep_every: int | None, keep: set[int]) -> None:
        assert not keep
        deadline = time.monotonic() + 20
        while step == SLOW and len(found.batches) < SLOW + 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert step != SLOW or len(found.batches) == SLOW + 2, "a step waits, or a check does not"
        found.saved.append((step, keep_last, keep_every))

    def score(_: Monitor, step: int, *__: Any) -> tuple[dict[str, float], list[str]]:
        assert step != SLOW + 2 or found.saved, "sizes are scored before the checkpoint is whole"
        found.scored.append(step)
        return {"knn": 1.0}, []

    class Noting:
        def __init__(self, started: Started) -> None:
            assert started[:2] == (out, 0)
            assert started.settings["epochs"] == 2

        def write(self, step: int, numbers: dict[str, float]) -> None:
            found.written[step] = numbers

        def close(self) -> None:
            pass

    monkeypatch.setattr(loop, "train_step", train_step)
    monkeypatch.setattr(loop, "write_checkpoint", save)
    monkeypatch.setattr(observers, "tracker_of", lambda _: Noting)
    monkeypatch.setattr(Monitor, "score", score)
    monkeypatch.setattr(loop.distributed, "barrier", lambda: found.met.append(len(found.batches)))
    process.train(tiny.config(out=str(out), **over))
    return found


def test_saving_and_scoring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of 8 steps in 2 epochs; as often as set, and after the last."""
    saving = {"every_epochs": 0.75, "keep_last": 3, "keep_every_epochs": 1.5}
    monitor = {"every_epochs": 1.25, "tensorboard": True, "num_images": 4}
    found = looped(monkeypatch, tmp_path / "a", saving=saving, monitor=monitor)
    assert found.saved == [(3, 3, 6), (6, 3, 6), (8, 3, 6)]
    assert found.met[-4:] == [3, 6, 8, 8], "a step is saved that another process has refused; and the end"
    assert found.scored == [5, 8]
    assert sorted(found.written) == list(range(1, 9))
    assert [step for step, values in found.written.items() if "knn" in values] == [5, 8]
    usual = looped(monkeypatch, tmp_path / "b", monitor={"num_images": 4})
    assert usual.saved == [(4, 2, None), (8, 2, None)]
    assert usual.scored == [4, 8]
    assert usual.written == {}


def test_images_of_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Their order, crops, colours and masks, in as many micro-batches as set."""
    config = tiny.config(limit=32, seed=3, accumulate=2, views={"mask_share": 0.5}, monitor={"num_images": 4})
    over: dict[str, Any] = {"limit": 32, "seed": 3, "accumulate": 2, "views": {"mask_share": 0.5}}
    found = looped(monkeypatch, tmp_path / "run", **over, monitor={"num_images": 4})
    index = open_index(config.data, limit=32)
    parts = assemble(config, index, device=CPU)
    given: dict[str, Any] = {"crops": parts.crops, "batch_size": 16, "start_step": 0}
    wanted = list(batches(index, **given, seed=3, num_steps=4, micro_batches=2))
    others = list(batches(index, **given, seed=0, num_steps=4, micro_batches=2))
    assert [len(batch) for batch in found.batches] == [2] * 4
    for mine, same, other in zip(found.batches, wanted, others, strict=True):
        for first, second, third in zip(mine, same, other, strict=True):
            assert all(map(torch.equal, first[:5], second[:5]))
            assert not any(map(torch.equal, first[:5], third[:5]))


def test_gradients_are_measured_as_often_as_set() -> None:
    over: dict[str, Any] = {"limit": 16, "monitor": {"gradients_every": 3}}
    config = tiny.config(**over)
    parts = assemble(config, open_index(config.data, limit=16), device=CPU)
    assert parts.gradients is not None
    assert parts.gradients.every == 3
