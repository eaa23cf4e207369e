import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import tiny
from poa.data.views import RawViews
from poa.pretraining.build import Parts
from poa.pretraining.step import begin_step, train_step, views_of
from poa.training.health import NonFiniteLoss
from steps import (
    UNCLIPPED,
    assert_same_gradients,
    batches_of,
    keep_gradients,
    parts_of,
    poison_batch,
    state_of,
    total_of,
)


def clipped(gradients: dict[str, Tensor], *, most: float) -> dict[str, Tensor]:
    """By the norm of the backbone and that of the heads."""
    norms = {
        part: math.sqrt(sum(x.square().sum().item() for name, x in gradients.items() if name.startswith(part)))
        for part in ("backbone", "heads")
    }
    return {name: x * min(1.0, most / norms[name.split(".")[0]]) for name, x in gradients.items()}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_step_trains_the_student_and_moves_the_teacher_after_it(family: str) -> None:
    config = tiny.config(family)
    parts = parts_of(config)
    before = state_of(parts)["method"]
    measured = train_step(parts, 5, batches_of(config, parts)[0]).metrics
    momentum = parts.schedules.at(5).momentum
    after = parts.method.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == after.keys()
    for name in (name for name in after if name.startswith("teacher.")):
        student = after[name.replace("teacher", "student")]
        torch.testing.assert_close(after[name], momentum * before[name] + (1 - momentum) * student)
    weights = parts.method.weights((), num_locals=parts.views.num_locals)
    expected = {*weights, "loss", "grad_norm/backbone", "grad_norm/heads"}
    assert measured.keys() == expected
    total = sum(weight * measured[name] for name, weight in weights.items())
    assert measured["loss"] == pytest.approx(total, rel=1e-5)
    assert all(parameter.grad is None for parameter in parts.method.parameters())


def test_learning_rate_and_decay_of_the_step_reach_the_optimizer() -> None:
    config = tiny.config()
    parts = parts_of(config)
    result = train_step(parts, 6, batches_of(config, parts)[0])
    values = parts.schedules.at(6)
    assert (result.lr, result.sizes, result.stop) == (values.lr, parts.subnets(6), False)
    assert max(group["lr"] for group in parts.optimizer.param_groups) == pytest.approx(values.lr)
    decays = sorted({group["weight_decay"] for group in parts.optimizer.param_groups})
    assert decays == pytest.approx([0.0, values.weight_decay])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_layers_learn_at_the_rates_of_their_family(family: str) -> None:
    """And no norm decays, whatever it is called."""
    config = tiny.config(family, optimizer={"layer_decay": 0.5, "patch_embed_multiplier": 0.25})
    parts = parts_of(config)
    groups = {name: group for group in parts.optimizer.param_groups for name in group["param_names"]}
    student = parts.method.student
    assert groups.keys() == dict(student.named_parameters()).keys()
    for name, group in groups.items():
        layer = None if name.startswith("heads.") else parts.family.layer(name)
        expected = 1.0 if layer is None else 0.5 ** (parts.family.num_layers + 1 - layer)
        assert group["lr_multiplier"] == expected * (0.25 if "patch_embed" in name else 1.0), name
    norms = [
        name for name, module in student.named_modules() if type(module).__name__[:9] in ("LayerNorm", "GroupNorm")
    ]
    assert len(norms) > 4
    decays = {groups[f"{name}.{kind}"]["weight_decay_multiplier"] for name in norms for kind in ("weight", "bias")}
    assert decays == {0.0}


def test_masks_start_when_they_shall() -> None:
    config = tiny.config(losses={"ibot_start_epoch": 1})
    parts = parts_of(config)
    batch = batches_of(config, parts)[0]
    assert batch[0].masks.any()
    first = parts.steps_per_epoch
    assert train_step(parts, first - 1, batch).metrics["intact/ibot"] == 0.0
    assert train_step(parts, first, batch).metrics["intact/ibot"] > 0.0


@pytest.mark.parametrize("family", [family for family in tiny.FAMILIES if family != "resnet"])  # which drops nothing
def test_a_step_depends_on_nothing_random_but_its_number(family: str) -> None:
    """Drop path draws the same numbers again, whatever was drawn before; other ones at another step."""
    config = tiny.config(family, model={"drop_path": 0.5})
    results = []
    for step, seed in ((4, 0), (4, 1), (5, 1)):
        parts = parts_of(config)
        torch.manual_seed(seed)
        results.append(train_step(parts, step, batches_of(config, parts)[0]).metrics["intact/global"])
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("clip", [0.1, UNCLIPPED])
def test_accumulated_gradients_are_the_mean_over_micro_batches(clip: float) -> None:
    """Each micro-batch has its own targets and neighbours; the step is one, with the mean gradient, clipped once."""
    config = tiny.config(accumulate=2, optimizer={"clip": clip})
    parts = parts_of(config)
    batch = batches_of(config, parts)[0]
    assert len(batch) == 2
    sizes, temperature = parts.subnets(3), parts.schedules.at(3).temperature
    expected: dict[str, Tensor] = {}
    totals = []
    for raw in batch:
        alone = parts_of(config)
        total = total_of(alone, alone.method(views_of(alone, raw), sizes, temperature=temperature))
        total.backward()
        totals.append(total.item())
        for name, parameter in alone.method.student.named_parameters():
            assert parameter.grad is not None
            expected[name] = expected.get(name, 0.0) + parameter.grad / 2
    kept = keep_gradients(parts)
    measured = train_step(parts, 3, batch).metrics
    assert measured["loss"] == pytest.approx(sum(totals) / 2, rel=1e-5)
    assert len(kept) == 1
    assert_same_gradients(kept[0], clipped(expected, most=parts.clip))


def poison_parameter(parts: Parts, batch: list[RawViews]) -> list[RawViews]:
    with torch.no_grad():
        parts.method.student.backbone.get_parameter("model.norm.bias")[3] = math.nan
    return batch


def poison_gradient(parts: Parts, batch: list[RawViews]) -> list[RawViews]:
    parts.method.student.heads[0].weight_v.register_hook(lambda gradient: gradient * math.inf)
    return batch


@pytest.mark.parametrize(
    ("poison", "named"),
    [
        (poison_parameter, r"loss = nan, intact/global = nan"),
        (poison_batch, r"loss = nan, intact/global = nan"),
        (poison_gradient, r"step 8: grad_norm/heads = (nan|inf)\."),
    ],
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_is_not_finite_stops_the_run_and_changes_nothing(
    poison: Callable[[Parts, list[RawViews]], list[RawViews]], named: str, accumulate: int
) -> None:
    config = tiny.config(accumulate=accumulate)
    parts = parts_of(config)
    first, second = batches_of(config, parts, num_steps=2)
    train_step(parts, 6, first)
    second = poison(parts, second)
    before = state_of(parts)
    with pytest.raises(NonFiniteLoss, match=r"Not finite at step 8: ") as error:
        train_step(parts, 7, second)
    assert error.match(named)
    after = state_of(parts)
    for name, value in after["method"].items():
        torch.testing.assert_close(value, before["method"][name], rtol=0.0, atol=0.0, equal_nan=True)
    for number, entries in after["optimizer"].items():
        assert all(torch.equal(value, before["optimizer"][number][key]) for key, value in entries.items())


def test_a_step_that_is_read_later_is_the_same_and_says_what_is_not_finite() -> None:
    config = tiny.config()
    parts, other = parts_of(config), parts_of(config)
    first, second = batches_of(config, parts, num_steps=2)
    begun = begin_step(parts, 6, first, stop=True)
    further = begin_step(parts, 7, poison_batch(parts, second))
    result = begun.read(parts, is_updated=True)
    assert result == train_step(other, 6, first, stop=True)
    assert result.stop
    with pytest.raises(NonFiniteLoss, match=r"step 8: loss = nan, .* were updated with that, and are not saved\."):
        further.read(parts, is_updated=True)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_bf16_on_the_cpu(family: str) -> None:
    drops = {} if family == "resnet" else {"drop_path": 0.2}
    results = []
    for config in (tiny.config(family, precision=precision, model=drops) for precision in ("fp32", "bf16")):
        parts = parts_of(config)
        losses = [
            train_step(parts, step, batch).metrics for step, batch in enumerate(batches_of(config, parts, num_steps=2))
        ]
        assert {value.dtype for value in parts.method.state_dict().values()} == {torch.float32}
        assert all(math.isfinite(value) for measured in losses for value in measured.values())
        results.append(losses[0])
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=0.05)
    assert results[0]["loss"] != results[1]["loss"]


@pytest.mark.parametrize(("groups", "layout"), [(1, torch.channels_last), (32, torch.contiguous_format)])
def test_crops_lie_as_the_family_asks(groups: int, layout: torch.memory_format) -> None:
    """Large and small ones; all networks see them, and learn what they learn from others."""
    config = tiny.config("resnet", model={"norm_groups": groups})
    parts = parts_of(config)
    seen: list[Tensor] = []
    for branch in (parts.method.student, parts.method.get_submodule("teacher")):
        branch.get_submodule("backbone").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert math.isfinite(train_step(parts, 0, batches_of(config, parts)[0]).metrics["loss"])
    assert {images.shape[-1] for images in seen} == {config.views.global_size, config.views.local_size}
    assert all(images.is_contiguous(memory_format=layout) for images in seen)


def test_moving_average_centring_trains() -> None:
    config = tiny.config(losses={"centering": "moving-average"})
    parts = parts_of(config)
    measured = train_step(parts, 2, batches_of(config, parts)[0]).metrics
    assert math.isfinite(measured["loss"])
    assert parts.method.state_dict()["cls_centers.0.center"].abs().max() > 0
