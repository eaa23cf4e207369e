import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from poa import distributed
from poa.config.pretraining import Config
from poa.data.augment import augment
from poa.data.index import open_index
from poa.data.views import FACTORS, RawViews, Views
from poa.losses.objective import Targets
from poa.methods.poa import POA
from poa.pretraining.build import Parts, assemble
from poa.pretraining.step import step_batches, train_step
from poa.training.health import NonFiniteLoss
from processes import run_processes

CPU = torch.device("cpu")
STEPS = 2
UNCLIPPED = 1000.0  # clipping would hide a wrong factor


def parts_of(config: Config) -> Parts:
    """With features that differ between images from the start, as after some training."""
    parts = assemble(config, open_index(config.data, limit=config.limit), device=CPU)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parts.method.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return parts


def batches_of(
    config: Config, parts: Parts, *, num_steps: int = 1, rank: int = 0, world_size: int = 1
) -> list[list[RawViews]]:
    made = step_batches(
        parts,
        open_index(config.data, limit=config.limit),
        batch_size=config.batch_size,
        start_step=0,
        num_steps=num_steps,
        rank=rank,
        world_size=world_size,
        micro_batches=config.accumulate,
    )
    return list(made)


def views_of(parts: Parts, raw: RawViews) -> Views:
    return augment(raw, augmentation=parts.views, device=CPU)


def keep_gradients(parts: Parts) -> list[dict[str, Tensor]]:
    """Fills with the clipped gradients of each step that is taken."""
    kept: list[dict[str, Tensor]] = []
    named = dict(parts.method.student.named_parameters())

    def keep(*_: Any) -> None:
        kept.append({name: p.grad.clone() for name, p in named.items() if p.grad is not None})

    parts.optimizer.register_step_pre_hook(keep)
    return kept


def state_of(parts: Parts) -> dict[str, Any]:
    return copy.deepcopy({"method": parts.method.state_dict(), "optimizer": parts.optimizer.state_dict()["state"]})


def total_of(parts: Parts, losses: dict[str, Tensor]) -> Tensor:
    weights = parts.method.weights((), num_locals=parts.views.num_locals)
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def clipped(gradients: dict[str, Tensor], *, most: float) -> dict[str, Tensor]:
    """By the norm of the backbone and that of the heads."""
    norms = {
        part: math.sqrt(sum(x.square().sum().item() for name, x in gradients.items() if name.startswith(part)))
        for part in ("backbone", "heads")
    }
    return {name: x * min(1.0, most / norms[name.split(".")[0]]) for name, x in gradients.items()}


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Up to the order of sums: float32 rounds to 6e-8 of the largest summand, and some thousand are summed."""
    assert found.keys() == expected.keys()
    scale = max(x.abs().max().item() for x in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * scale)


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


def poison_batch(parts: Parts, batch: list[RawViews]) -> list[RawViews]:
    parameters = batch[-1].global_parameters.clone()
    parameters[2, FACTORS] = math.nan
    return [*batch[:-1], batch[-1]._replace(global_parameters=parameters)]


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


def test_moving_average_centring_trains() -> None:
    config = tiny.config(losses={"centering": "moving-average"})
    parts = parts_of(config)
    measured = train_step(parts, 2, batches_of(config, parts)[0]).metrics
    assert math.isfinite(measured["loss"])
    assert parts.method.state_dict()["cls_centers.0.center"].abs().max() > 0


SAME_SIZES: dict[str, Any] = {
    "same_sizes_on_all_ranks": True,
    "accumulate": 2,
    "losses": {"koleo_over_ranks": True},
    "optimizer": {"clip": UNCLIPPED},
}
OTHER_SIZES: dict[str, Any] = {"same_sizes_on_all_ranks": False, "seed": 2, "optimizer": {"clip": UNCLIPPED}}
RATE = tiny.merged(SAME_SIZES, {"losses": {"kind": "coding-rate", "gram": 0.5}})
CHEAPER = tiny.merged(SAME_SIZES, tiny.CHEAPER)
EQUAL = [*tiny.FAMILIES, "coding rate", "cheaper steps"]  # the same sizes on both processes
CASES = [*EQUAL, "other sizes"]


def settings_of(case: str) -> Config:
    further = {"other sizes": OTHER_SIZES, "coding rate": RATE, "cheaper steps": CHEAPER}.get(case)
    return tiny.config(case, **SAME_SIZES) if further is None else tiny.config(**further)


def train_here(config: Config) -> dict[str, Any]:
    """Some steps on this process's share, with whatever processes there are."""
    rank, parts = distributed.rank(), parts_of(config)
    gradients = keep_gradients(parts)
    shares = batches_of(config, parts, num_steps=STEPS, rank=rank, world_size=distributed.world_size())
    results = [train_step(parts, step, batch, stop=rank == 1) for step, batch in enumerate(shares)]
    measured = {"measured": [result.metrics for result in results], "stops": [result.stop for result in results]}
    return measured | {"gradients": gradients, "state": state_of(parts)}


def poison_one_process() -> str:
    """The message of the error, on every process."""
    config = tiny.config()
    parts = parts_of(config)
    batch = batches_of(config, parts, rank=distributed.rank(), world_size=2)[0]
    try:
        train_step(parts, 9, poison_batch(parts, batch) if distributed.rank() == 1 else batch)
    except NonFiniteLoss as error:
        return str(error)
    return "nothing raised"


def on_each_process() -> dict[str, Any]:
    """All cases in one pair of processes: to start them takes longer than to train."""
    return {case: train_here(settings_of(case)) for case in CASES} | {"poisoned": poison_one_process()}


@pytest.fixture(scope="module")
def two_processes() -> list[dict[str, Any]]:
    return run_processes(on_each_process, 2)


@pytest.mark.parametrize("case", CASES)
def test_processes_stay_in_step(two_processes: list[dict[str, Any]], case: str) -> None:
    first, second = (result[case] for result in two_processes)
    assert first["measured"] == second["measured"]
    assert first["stops"] == second["stops"] == [True] * STEPS
    for name, value in first["state"]["method"].items():
        assert torch.equal(value, second["state"]["method"][name]), name


@pytest.mark.parametrize("family", EQUAL)
def test_two_processes_with_equal_sizes_equal_one(two_processes: list[dict[str, Any]], family: str) -> None:
    """Neighbours are sought and targets balanced over both, so only the order of sums differs.

    The first gradients show it. Later steps are compared by their losses: AdamW divides a gradient by its own size,
    so where it is zero but for rounding (as that of attention's key bias is), parameters part by the learning rate.
    """
    config = settings_of(family)
    alone = parts_of(config)
    gradients = keep_gradients(alone)
    halves = [batches_of(config, alone, num_steps=STEPS, rank=rank, world_size=2) for rank in range(2)]
    # one process's micro-batches hold what both processes together hold at a time
    steps = [[merge(first, second) for first, second in zip(*pair, strict=True)] for pair in zip(*halves, strict=True)]
    measured = [train_step(alone, step, batch).metrics for step, batch in enumerate(steps)]
    found = two_processes[0][family]
    assert_same_gradients(found["gradients"][0], gradients[0])
    for ours, theirs in zip(measured, found["measured"], strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert theirs[name] == pytest.approx(ours[name], rel=1e-3), name


def test_two_processes_with_other_sizes_equal_both_halves_by_hand(
    two_processes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Targets are balanced over the whole batch; each half has its own size and neighbours; gradients are averaged."""
    config = settings_of("other sizes")
    alone = parts_of(config)
    sizes = [alone.subnets(0, rank=rank) for rank in range(2)]
    assert sizes[0] != sizes[1]
    halves = [views_of(alone, batches_of(config, alone, rank=rank, world_size=2)[0][0]) for rank in range(2)]
    whole = views_of(alone, merge(*(batches_of(config, alone, rank=rank, world_size=2)[0][0] for rank in range(2))))
    temperature = alone.schedules.at(0).temperature
    targets = list(alone.method.targets(alone.method.teacher(whole, teacher=True).heads, temperature))
    gradients: dict[str, Tensor] = {}
    totals: dict[str, float] = {}
    for rank, half in enumerate(halves):
        own = [part_of(target, rank=rank, masks=whole.masks) for target in targets]
        monkeypatch.setattr(POA, "targets", lambda *_, own=own: own)
        losses = alone.method(half, sizes[rank], temperature=temperature)
        alone.method.zero_grad()
        total = total_of(alone, losses)
        total.backward()
        for name, loss in {"loss": total, **losses}.items():
            totals[name] = totals.get(name, 0.0) + loss.item() / 2
        for name, parameter in alone.method.student.named_parameters():
            assert parameter.grad is not None
            gradients[name] = gradients.get(name, 0.0) + parameter.grad / 2
    found = two_processes[0]["other sizes"]
    assert_same_gradients(found["gradients"][0], gradients)
    for name, value in totals.items():
        assert found["measured"][0][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_all_processes_stop_when_one_is_not_finite(two_processes: list[dict[str, Any]]) -> None:
    messages = [result["poisoned"] for result in two_processes]
    assert messages[0] == messages[1]
    assert messages[0].startswith("Not finite at step 10: loss = nan, intact/global = nan")


def merge(first: RawViews, second: RawViews) -> RawViews:
    """What two processes hold, as one would: all first crops before all second ones."""

    def crops(ours: Tensor, theirs: Tensor, num: int) -> Tensor:
        return torch.cat([ours.unflatten(0, (num, -1)), theirs.unflatten(0, (num, -1))], dim=1).flatten(0, 1)

    num = [2, 2, 2, 2, 2]  # two views, and two local crops
    joined = [crops(ours, theirs, n) for ours, theirs, n in zip(first[:5], second[:5], num, strict=True)]
    kept = None if first.kept is None or second.kept is None else crops(first.kept, second.kept, 2)
    return RawViews(*joined, first.bad + second.bad, kept)


def part_of(target: Targets, *, rank: int, masks: Tensor) -> Targets:
    """A process's rows of the targets of the whole batch."""
    mine = torch.zeros(2, 2, len(masks) // 4, dtype=torch.bool)  # view, process, image
    mine[:, rank] = True
    own = (mine.flatten(), mine.flatten().repeat_interleave(masks.sum(1)))
    return Targets(*(asked(slice(None))[rows].__getitem__ for asked, rows in zip(target, own, strict=True)))
