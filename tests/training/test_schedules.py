from functools import partial

import pytest

from poa.training.schedules import Schedules, constant, cosine, linear_ramp, scaled_lr

NUM_STEPS = 276_800
VIT = partial(cosine, num_steps=NUM_STEPS, stretch=0.78)
LR = partial(VIT, base=0.005, final=2e-5, warmup_steps=8000)
WEIGHT_DECAY = partial(VIT, base=0.04, final=0.4)
MOMENTUM = partial(VIT, base=0.992, final=0.9999)
TEMPERATURE = partial(linear_ramp, start=0.04, end=0.07, num_steps=30 * 800)
SCHEDULES = Schedules(LR, WEIGHT_DECAY, MOMENTUM, TEMPERATURE, frozen_steps=800)


@pytest.mark.parametrize(
    ("step", "lr", "momentum", "weight_decay"),
    [
        (0, 0.0, 0.992, 0.04),
        (4000, 0.002500313, 0.9920025, 0.040113),
        (8000, 0.005, 0.9920099, 0.040451),
        (100_000, 0.00418448, 0.9934494, 0.106047),
        (276_799, 0.00061697, 0.9989935, 0.358692),
    ],
)
def test_official_vit_values(step: int, lr: float, momentum: float, weight_decay: float) -> None:
    values = SCHEDULES.at(step)
    assert values.lr == pytest.approx(lr, abs=5e-9)
    assert values.momentum == pytest.approx(momentum, abs=5e-8)
    assert values.weight_decay == pytest.approx(weight_decay, abs=5e-7)


@pytest.mark.parametrize(
    ("epochs", "length", "warmup", "base", "stretch", "lr", "momentum"),
    [(346, 625, 30, 5.656854e-3, 0.9, 1.82e-4, 0.99971), (692, 1000, 30, 4.472136e-3, 1.0, 2e-5, 0.9999)],
    ids=["swin", "resnet"],
)
def test_official_last_step(
    epochs: int, length: int, warmup: int, base: float, stretch: float, lr: float, momentum: float
) -> None:
    curve = partial(cosine, epochs * length - 1, num_steps=epochs * length, stretch=stretch)
    assert curve(base=base, final=2e-5, warmup_steps=warmup * length) == pytest.approx(lr, rel=3e-3)
    assert curve(base=0.992, final=0.9999) == pytest.approx(momentum, abs=5e-6)


def test_warmup_is_an_inclusive_grid() -> None:
    assert LR(7999) == 0.005
    assert LR(7998) < 0.005
    assert cosine(3, base=2.0, final=0.0, num_steps=20, warmup_steps=5, start=1.0) == 1.75


@pytest.mark.parametrize(("batch_size", "lr"), [(1600, 5.0e-3), (2048, 5.66e-3), (1280, 4.47e-3), (1024, 4e-3)])
def test_official_scaled_lr(batch_size: int, lr: float) -> None:
    assert scaled_lr(0.004, batch_size=batch_size) == pytest.approx(lr, rel=1e-3)


def test_linear_ramp() -> None:
    ramp = partial(linear_ramp, start=1.0, end=3.0, num_steps=5)
    assert [ramp(step) for step in range(7)] == [1.0, 1.5, 2.0, 2.5, 3.0, 3.0, 3.0]
    assert linear_ramp(0, start=1.0, end=3.0, num_steps=0) == 3.0


def test_cosine_without_warmup() -> None:
    curve = partial(cosine, base=2.0, final=0.0, num_steps=4)
    assert [curve(step) for step in (0, 2, 4, 9)] == pytest.approx([2.0, 1.0, 0.0, 0.0])


def test_a_run_as_long_as_its_warmup() -> None:
    assert [cosine(step, base=1.0, final=0.0, num_steps=3, warmup_steps=3) for step in range(3)] == [0.0, 0.5, 1.0]


def test_prototypes_learn_later() -> None:
    assert SCHEDULES.at(799).last_layer_lr == 0.0
    assert SCHEDULES.at(800).last_layer_lr == SCHEDULES.at(800).lr > 0
    assert SCHEDULES.at(24_000).temperature == 0.07


def test_a_constant_rate_warms_up_and_cools_down_by_a_square_root() -> None:
    curve = partial(constant, base=2.0, final=1.0, num_steps=12, warmup_steps=3, cooldown_steps=4)
    assert [curve(step) for step in range(10)] == [0.0, 1.0, *[2.0] * 7, 1.5]
    assert curve(10) == pytest.approx(2 - 0.5**0.5)
    assert curve(12) == curve(20) == 1.0
    assert constant(11, base=2.0, final=1.0, num_steps=12) == constant(12, base=2.0, final=1.0, num_steps=12) == 2.0
    assert [curve(step, num_steps=99) for step in range(9)] == [curve(step) for step in range(9)]
