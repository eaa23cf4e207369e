"""Steps of two processes: they are one process's, whether each has all weights or a part of them."""

from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from poa import distributed
from poa.config.pretraining import Config
from poa.data.views import RawViews
from poa.losses.objective import Targets
from poa.methods.poa import POA
from poa.pretraining.step import train_step, views_of
from poa.training import states
from poa.training.health import NonFiniteLoss
from processes import run_processes
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

STEPS = 2
SLOW = ("swin", "resnet", "convnext")
"""Cases of one step: a second one would show nothing that those of other families do not."""
SAME_SIZES: dict[str, Any] = {
    "same_sizes_on_all_ranks": True,
    "accumulate": 2,
    "losses": {"koleo_over_ranks": True},
    "optimizer": {"clip": UNCLIPPED},
}
OTHER_SIZES: dict[str, Any] = {"same_sizes_on_all_ranks": False, "seed": 2, "optimizer": {"clip": UNCLIPPED}}
RATE = tiny.merged(SAME_SIZES, {"losses": {"kind": "coding-rate", "gram": 0.5}, "checkpointing": True})
CHEAPER = tiny.merged(SAME_SIZES, tiny.CHEAPER)
EQUAL = [*tiny.FAMILIES, "coding rate", "cheaper steps"]  # the same sizes on both processes
CASES = [*EQUAL, "other sizes"]
IN_PARTS = {"vit": STEPS, "convnext": 1, "other sizes": 1}
"""Cases under fsdp, and their steps; those of one step compute blocks and heads again in the backward pass."""
CONTINUED = tiny.merged(SAME_SIZES, {"checkpointing": True, "monitor": {"gradients_every": STEPS + 1}})


def settings_of(case: str) -> Config:
    further = {"other sizes": OTHER_SIZES, "coding rate": RATE, "cheaper steps": CHEAPER}.get(case)
    return tiny.config(case, **SAME_SIZES) if further is None else tiny.config(**further)


def steps_of(case: str) -> int:
    return 1 if case in SLOW else STEPS


def train_here(config: Config, num_steps: int) -> dict[str, Any]:
    """Some steps on this process's share, with whatever processes there are."""
    rank, parts = distributed.rank(), parts_of(config)
    gradients = keep_gradients(parts)
    shares = batches_of(config, parts, num_steps=num_steps, rank=rank, world_size=distributed.world_size())
    results = [train_step(parts, step, batch, stop=rank == 1) for step, batch in enumerate(shares)]
    measured = {"measured": [result.metrics for result in results], "stops": [result.stop for result in results]}
    whole = states.state_of(parts.method, parts.optimizer)
    return measured | {"gradients": gradients, "state": state_of(parts), "whole": whole}


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


def continued(state: dict[str, Any]) -> dict[str, Any]:
    """A step under fsdp after those of a state, with much else, and how many weights this process has."""
    config = tiny.config(parallel="fsdp", **CONTINUED)
    parts = parts_of(config)
    states.load(state, parts.method, parts.optimizer)
    *_, batch = batches_of(config, parts, num_steps=STEPS + 1, rank=distributed.rank(), world_size=2)
    held = sum(parameter.to_local().numel() for parameter in parts.method.parameters())
    return {"loaded": state_of(parts), "held": held, "measured": train_step(parts, STEPS, batch).metrics}


def on_each_process() -> dict[str, Any]:
    """All cases in one pair of processes: to start them takes longer than to train."""
    done = {case: train_here(settings_of(case), steps_of(case)) for case in CASES}
    parts = {}
    for case, num_steps in IN_PARTS.items():
        over = {"parallel": "fsdp", "checkpointing": num_steps == 1}
        parts[case] = train_here(settings_of(case).model_copy(update=over), num_steps)
    further = continued(done["vit"]["whole"])
    return {**done, "in parts": parts, "continued": further, "poisoned": poison_one_process()}


@pytest.fixture(scope="module")
def two_processes() -> list[dict[str, Any]]:
    return run_processes(on_each_process, 2)


@pytest.mark.parametrize("case", CASES)
def test_processes_stay_in_step(two_processes: list[dict[str, Any]], case: str) -> None:
    first, second = (result[case] for result in two_processes)
    assert first["measured"] == second["measured"]
    assert first["stops"] == second["stops"] == [True] * steps_of(case)
    for name, value in first["state"]["method"].items():
        assert torch.equal(value, second["state"]["method"][name]), name


@pytest.mark.parametrize("family", EQUAL)
def test_two_processes_with_equal_sizes_equal_one(two_processes: list[dict[str, Any]], family: str) -> None:
    """Neighbours are sought and targets balanced over both, so only the order of sums differs.

    The first gradients show it. Later steps are compared by their losses: AdamW divides a gradient by its own size,
    so where it is zero but for rounding (as that of attention's key bias is), parameters part by the learning rate.
    """
    config, num_steps = settings_of(family), steps_of(family)
    alone = parts_of(config)
    gradients = keep_gradients(alone)
    halves = [batches_of(config, alone, num_steps=num_steps, rank=rank, world_size=2) for rank in range(2)]
    # one process's micro-batches hold what both processes together hold at a time
    steps = [[merge(first, second) for first, second in zip(*pair, strict=True)] for pair in zip(*halves, strict=True)]
    measured = [train_step(alone, step, batch).metrics for step, batch in enumerate(steps)]
    found = two_processes[0][family]
    assert_same_gradients(found["gradients"][0], gradients[0])
    for ours, theirs in zip(measured, found["measured"], strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert theirs[name] == pytest.approx(ours[name], rel=1e-3), name


@pytest.mark.parametrize("case", IN_PARTS)
def test_parts_of_the_weights_equal_all_of_them(two_processes: list[dict[str, Any]], case: str) -> None:
    """Gradients are summed up in another order, some once a block and some once a bucket."""
    ddp, (fsdp, other) = two_processes[0][case], (result["in parts"][case] for result in two_processes)
    for number in range(IN_PARTS[case]):
        assert_same_gradients(fsdp["gradients"][number], ddp["gradients"][number])
        assert fsdp["measured"][number] == other["measured"][number]
        assert fsdp["measured"][number] == pytest.approx(ddp["measured"][number], rel=1e-4)
    if IN_PARTS[case] == STEPS:
        for name, value in ddp["state"]["method"].items():
            torch.testing.assert_close(fsdp["state"]["method"][name], value, rtol=0.0, atol=1e-5)


def test_checkpoints_of_parts_are_those_of_one_process(two_processes: list[dict[str, Any]]) -> None:
    """What ddp has saved is loaded under fsdp bit for bit, half on each; what fsdp has saved goes on in one process."""
    ddp, fsdp = two_processes[0]["vit"], two_processes[0]["in parts"]["vit"]
    ours, theirs = (result["continued"] for result in two_processes)
    assert ours["held"] + theirs["held"] == sum(value.numel() for value in ddp["state"]["method"].values())
    assert abs(ours["held"] - theirs["held"]) < 0.1 * ours["held"]
    for kind, states_of_kind in ddp["state"].items():
        for key, value in states_of_kind.items():
            torch.testing.assert_close(ours["loaded"][kind][key], value, rtol=0.0, atol=0.0)
    config = tiny.config(**CONTINUED)
    alone = parts_of(config)
    states.load(fsdp["whole"], alone.method, alone.optimizer)
    halves = [batches_of(config, alone, num_steps=STEPS + 1, rank=rank, world_size=2)[-1] for rank in range(2)]
    measured = train_step(alone, STEPS, [merge(*pair) for pair in zip(*halves, strict=True)]).metrics
    assert ours["measured"] == theirs["measured"] == pytest.approx(measured, rel=1e-3)


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
