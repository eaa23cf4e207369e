import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from poa.config.values import check_layer_decay, check_not_negative, check_positive, check_shares, preset_of
from poa.errors import UserError
from poa.evaluation.protocol import Outcome
from poa.evaluation.results import NotScored, ResultFiles
from poa.tasks.training import Diverged, Reached, Training, train_epochs, train_share

NAN = float("nan")


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
        save=lambda epoch, state: saved.update({epoch: state}),
        advance=lambda num, note: told.append((num, note)),
    )
    assert reached == Reached(3, 4.5, (1, 3, 5))
    assert training.seen == [(number, number) for number in range(6)]
    assert [state["epoch"] for state in saved.values()] == list(saved) == [1, 2, 3]
    assert saved[2] == {"epoch": 2, "loss": 2.5, "bad": [1, 3], "training": {"seen": training.seen[:4]}}
    assert [num for num, _ in told] == [2] * 6
    assert all(re.fullmatch(rf"loss {step}\.000  data-wait \d+%", note) for step, (_, note) in enumerate(told))


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_training_goes_on_where_it_was(epoch: int) -> None:
    whole, saved = Sum(), dict[int, Any]()
    reached = train_epochs(whole, numbers, epochs=3, steps=2, save=lambda epoch, state: saved.update({epoch: state}))
    again = Sum()
    assert train_epochs(again, numbers, epochs=3, steps=2, start=saved[epoch]) == reached
    assert again.seen == whole.seen


def test_a_network_that_diverges_is_told_and_the_others_are_trained(tmp_path: Path) -> None:
    files = ResultFiles(tmp_path, "sum", {"seed": 0})
    files.start(overwrite=False)
    trained: list[str] = []

    def train(name: str, work: Path) -> tuple[Outcome, Mapping[str, int]]:
        trained.append(name)
        work.mkdir(parents=True)
        if name == "b":
            raise Diverged("The loss is nan.")
        return Outcome({"top1": 50.0}), {"train": 1}

    files.add("a", Outcome({"top1": 10.0}), bad_images={"train": 1})
    train_share(files, ["a", "b", "c"], train)
    assert trained == ["b", "c"]
    assert [path.name for path in files.work.iterdir()] == ["b"]  # what a lost network had saved is kept
    with pytest.raises(NotScored, match=r"1 of 3 networks could not be summed; .* b: The loss is nan\."):
        files.finished(["a", "b", "c"], what="summed")
    assert files.known.scores == {"a": {"top1": 10.0}, "c": {"top1": 50.0}}


def test_settings_are_checked_by_the_name_of_their_flag() -> None:
    check_positive({"lr": 1e-3})
    check_not_negative({"seed": 0, "min-lr": 0.0})
    check_shares({"flip": 1.0, "drop-path": 0.0}, whole=("flip",))
    for values in ({"lr": 0.0}, {"lr": NAN}, {"lr": float("inf")}):
        with pytest.raises(UserError, match="--lr must be above 0"):
            check_positive(values)
    with pytest.raises(UserError, match="--min-lr must not be below 0, got nan"):
        check_not_negative({"min-lr": NAN})
    for share in (1.0, -0.1, NAN):
        with pytest.raises(UserError, match=f"--drop-path lies between 0 and 1, got {share}"):
            check_shares({"drop-path": share})
    with pytest.raises(UserError, match="--layer-decay lies between 0 and 1, got 0"):
        check_layer_decay(0.0)
    with pytest.raises(UserError, match=r"There is no preset 'tiny'. .*small"):
        preset_of({"small": 1, "large": 2}, "tiny")
