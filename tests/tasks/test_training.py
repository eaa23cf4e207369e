import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest

from poa.data.content import Identity, LeftOut
from poa.evaluation.protocol import Outcome
from poa.evaluation.results import NotScored
from poa.evaluation.sweep import SweepOptions, sweep
from poa.tasks.training import Diverged, EpochSummary, Hooks, Task, Training, train_epochs
from supervised import Models, family, source_of_models


class Numbers(NamedTuple):
    number: int
    num_images: int = 2

    @property
    def bad(self) -> tuple[int, ...]:
        return (self.number,) if self.number % 2 else ()


class Sum(Training[Numbers]):
    """Adds up the numbers of its batches; the loss is that of the batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def step(self, step: int, batch: Numbers) -> float:
        self.seen.append((step, batch.number))
        return float(batch.number)

    def state(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load(self, state: Mapping[str, Any]) -> None:
        self.seen = list(state["seen"])


def numbers(*, start_step: int, num_steps: int) -> Iterator[Numbers]:
    return iter([Numbers(number) for number in range(start_step, start_step + num_steps)])


def test_epochs() -> None:
    training, saved, told = Sum(), dict[int, Any](), list[tuple[int, str]]()
    reached = train_epochs(
        training,
        numbers,
        epochs=3,
        steps=2,
        hooks=Hooks(
            save=lambda epoch, state: saved.update({epoch: state}),
            advance=lambda num, note: told.append((num, note)),
        ),
    )
    assert reached == EpochSummary(3, 4.5, (1, 3, 5))
    assert training.seen == [(number, number) for number in range(6)]
    assert [state["epoch"] for state in saved.values()] == list(saved) == [1, 2, 3]
    assert saved[2] == {"epoch": 2, "loss": 2.5, "bad": [1, 3], "training": {"seen": training.seen[:4]}}
    assert [num for num, _ in told] == [2] * 6
    assert all(re.fullmatch(rf"loss {step}\.000  data-wait \d+%", note) for step, (_, note) in enumerate(told))


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_training_goes_on_where_it_was(epoch: int) -> None:
    whole, saved = Sum(), dict[int, Any]()
    reached = train_epochs(
        whole, numbers, epochs=3, steps=2, hooks=Hooks(save=lambda epoch, state: saved.update({epoch: state}))
    )
    again = Sum()
    assert train_epochs(again, numbers, epochs=3, steps=2, hooks=Hooks(saved[epoch])) == reached
    assert again.seen == whole.seen


@dataclass(frozen=True)
class Summing(Task):
    """Networks that are trained to give a number; one diverges."""

    trained: list[str]

    name = "sum"
    done = "summed"
    identities: ClassVar[Mapping[str, Identity]] = {}
    choices: ClassVar[Mapping[str, Any]] = {"seed": 0}

    def evaluate(self, name: str, work: Path) -> Outcome:
        self.trained.append(name)
        assert {path.name for path in work.parent.glob("*")} == {"b", name} - ({"b"} if name == "a" else set())
        if name == "b":
            raise Diverged("The loss is nan.")
        return Outcome({"top1": 10.0 * len(self.trained)}, left_out={"train": LeftOut(1, 100)})


def test_a_network_that_diverges_is_told_and_the_others_are_trained(tmp_path: Path) -> None:
    models = source_of_models(tmp_path, Models(family(image_size=8, patch_size=4)))
    task = Summing(models, SweepOptions(), 1, [])
    sweep(models, task, ["a"])
    with pytest.raises(NotScored, match=r"1 of 3 networks could not be summed; .* b: The loss is nan\.") as caught:
        sweep(models, task, ["a", "b", "c"])
    assert task.trained == ["a", "b", "c"]
    assert caught.value.results.scores == {"a": {"top1": 10.0}, "c": {"top1": 30.0}}
