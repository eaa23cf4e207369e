from pathlib import Path

import pytest

import tiny
from poa.config.pretraining import Config
from poa.elastic.space import Size
from poa.experiments.plan import plan
from poa.models.registry import family_of

SMALL, LARGE = Size(32, (2,)), Size(64, (3,))
IMAGES = 70


def config(**over: object) -> Config:
    return tiny.config(out="all", heads={"prototypes": [16, 32]}, **over)


def test_the_plan() -> None:
    elastic = config(
        epochs=6,
        optimizer={"warmup_epochs": 1.5},
        losses={"ibot": 0.0, "ibot_start_epoch": 3.0},
        views={"global_size": 32, "small_size": 16, "small_epochs": 4.5, "drop_patches": 0.5},
    )
    made = plan(elastic, sizes=(SMALL, LARGE), seeds=(3, 4), num_images=IMAGES)
    assert [(each.way, each.budget) for each in made.approaches if each.seed == 3] == [
        ("poa", "images"),
        ("poa", "compute"),
        ("single", "images"),
        ("single", "compute"),
        ("seed", "images"),
        ("seed", "compute"),
    ]
    folders = list(made.trainings)
    for each in made.approaches:
        runs = [made.trainings[each.runs[size]].config for size in (SMALL, LARGE)]
        assert {run.seed for run in runs} == {each.seed}
        assert all(run.out == str(each.runs[size]) for run, size in zip(runs, (SMALL, LARGE), strict=True))
        if each.way == "poa":
            assert runs[0] == runs[1]
            assert each.compute == 1.0
            continue
        assert (runs[0].method, runs[1].method) == (each.way, "single")
        assert [str(family_of(run).space.intact) for run in runs] == ["32x2", "64x3"]
        assert runs[0].epochs == runs[1].epochs
        if each.budget == "images":
            assert runs[0].epochs == 6
        else:
            step = runs[0].epochs
            assert abs(each.compute - 1) <= 0.5 * each.compute / step  # as near as whole epochs allow
        taken = sum(made.trainings[folder].flops for folder in each.runs.values())
        assert each.compute == pytest.approx(taken / made.trainings[Path(f"all/seed{each.seed}/poa")].flops)
        if each.way == "seed":
            assert runs[0].distill.teacher == str(each.runs[LARGE])
            assert folders.index(each.runs[LARGE]) < folders.index(each.runs[SMALL])
            assert runs[0].distill.queue == 64  # the largest multiple of 16 among 70 images
    assert all(training.num_steps == training.config.epochs * (IMAGES // 16) for training in made.trainings.values())
    assert all(Path("all/seed3") in folder.parents or Path("all/seed4") in folder.parents for folder in folders)
    assert len({training.config.epochs for training in made.trainings.values()}) > 1
    for each in (training.config for training in made.trainings.values()):  # as long a part of each training
        assert each.optimizer.warmup_epochs == pytest.approx(each.epochs / 4, abs=1e-4)
        assert each.losses.ibot_start_epoch == pytest.approx(each.epochs / 2, abs=1e-4)
        assert each.views.small_epochs == pytest.approx(each.epochs * 3 / 4, abs=1e-4)
        assert each.slim.slow_start_epochs is None
