from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tiny
from poa.config.pretraining import Config
from poa.data.views import Views
from poa.elastic.space import Size
from poa.experiments import plan as planning
from poa.experiments.plan import plan, training_flops
from poa.models.registry import family_of, only
from poa.pretraining import build

SMALL, LARGE = Size(32, (2,)), Size(64, (3,))
IMAGES = 70


def config(**over: object) -> Config:
    return tiny.config(out="all", heads={"prototypes": [16, 32]}, **over)


def views(config: Config) -> Views:
    """One image, as many patches hidden as on average."""
    settings, grid = config.views, family_of(config).mask_grid(config.views.global_size)
    masks = torch.zeros(2, grid**2, dtype=torch.bool)
    masks.view(-1)[: round(2 * grid**2 * settings.mask_share * sum(settings.mask_ratio) / 2)] = True
    return Views(
        torch.randn(2, 3, settings.global_size, settings.global_size),
        torch.randn(settings.num_locals, 3, settings.local_size, settings.local_size),
        masks,
    )


@pytest.mark.parametrize("family", ["vit", "swin", "resnet", "convnext"])
def test_counted_from_shapes_as_while_running(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the patches of every crop are hidden, so that the mean is a whole number."""
    chosen = tiny.config(family, method="single", views={"mask_share": 1.0, "mask_ratio": (0.5, 0.5)})
    method = build.method_of(chosen, family_of(chosen))
    weights = method.weights((), num_locals=chosen.views.num_locals)
    with FlopCounterMode(display=False) as forward:
        total = sum(
            (weights[name] * term for name, term in method(views(chosen), (), temperature=0.05).items()),
            torch.zeros(()),
        )
    with FlopCounterMode(display=False) as backward:
        total.backward()
    if family != "convnext":  # torch counts the backward pass of grouped convolutions as if they had one group
        there_and_back = forward.get_total_flops() + backward.get_total_flops()
        assert training_flops(chosen) == pytest.approx(there_and_back, rel=0.05)
    monkeypatch.setattr(planning, "BACKWARD", 0.0)
    assert training_flops(chosen) == pytest.approx(forward.get_total_flops(), rel=0.03)  # KoLeo and Sinkhorn-Knopp


def test_an_elastic_step_costs_a_student_more() -> None:
    elastic = training_flops(config())
    alone = training_flops(config(method="single"))
    twice = training_flops(config(elastic_samples=2))
    assert twice - elastic == pytest.approx(elastic - alone)
    assert elastic < training_flops(config(sampling="sandwich"))
    students = [training_flops(only(config(method="single"), size)) for size in (SMALL, LARGE)]
    assert students[0] < elastic - alone + students[0] < elastic
    assert students[1] == alone


def test_a_distillation_costs_its_teacher_forward_and_its_student_both_ways() -> None:
    teacher = config(method="single")
    student = only(config(method="seed", distill={"queue": 16}), SMALL)
    longer = only(config(method="seed", distill={"queue": 32}), SMALL)
    crops = 2 + student.views.num_locals
    grown = training_flops(longer, teacher=teacher) - training_flops(student, teacher=teacher)
    assert grown == pytest.approx(2 * crops * 64 * 16 * (1 + 3))  # 16 more rows of 64 numbers; once, and there and back


def test_the_plan() -> None:
    elastic = config(epochs=6, optimizer={"warmup_epochs": 1.5}, losses={"ibot_start_epoch": 3.0})
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
            assert made.share(each) == 1.0
            continue
        assert (runs[0].method, runs[1].method) == (each.way, "single")
        assert [str(family_of(run).space.intact) for run in runs] == ["32x2", "64x3"]
        assert runs[0].epochs == runs[1].epochs
        if each.budget == "images":
            assert runs[0].epochs == 6
        else:
            step = runs[0].epochs
            assert abs(made.share(each) - 1) <= 0.5 * made.share(each) / step  # as near as whole epochs allow
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
        assert each.slim.slow_start_epochs is None
