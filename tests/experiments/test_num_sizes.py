"""What is trained to find from which number of sizes one elastic run pays."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import tiny
from poa.config.pretraining import Config
from poa.config.resolve import of_length
from poa.elastic.space import Size
from poa.errors import UserError
from poa.evaluation.cost import Cost
from poa.experiments import num_sizes, plan
from poa.experiments.num_sizes import NumSizesPlan, Share, plan_num_sizes, spread
from poa.experiments.runs import Labelled
from poa.models.registry import family_of

EPOCHS, IMAGES = 12, 70
SMALLEST, MIDDLE, OTHER, LARGEST = Size(32, (2,)), Size(64, (2,)), Size(32, (3,)), Size(64, (3,))


def operations(config: Config, way: str, size: Size) -> float:
    """Small numbers, by which the shares below can be counted by hand."""
    alone = {SMALLEST: 1.0, OTHER: 2.0, MIDDLE: 3.0, LARGEST: 4.0}[size]
    return {"poa": 6.0, "single": alone, "seed": alone / 2}[way]


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> NumSizesPlan:
    return planned_for(monkeypatch, numbers=(1, 2, 3, 4))


def config(**over: Any) -> Config:
    """With four sizes, where no more are asked for."""
    return tiny.config(**{"out": "all", "epochs": EPOCHS, **over, "model": {"head_dim": 32, **over.get("model", {})}})


def planned_for(monkeypatch: pytest.MonkeyPatch, *, numbers: Sequence[int], all_sizes: bool = False) -> NumSizesPlan:
    monkeypatch.setattr(plan, "training_flops", operations)
    return plan_num_sizes(config(), numbers=numbers, all_sizes=all_sizes, seeds=(3, 4), num_images=IMAGES)


def of(made: NumSizesPlan, way: str, number: int) -> list[Share]:
    return [share for share in made.shares if (share.way, share.num_sizes, share.seed) == (way, number, 3)]


def names(share: Share) -> Mapping[str, str]:
    return {str(size): folder.name for size, folder in share.runs.items()}


def test_sizes_are_spread_in_proportion_to_their_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs of 1, 2, 6, 8, 30 and 64: the middle of 1 and 64 is 8; then 30 is farther from the others than 2 and 6."""
    names = ("32x2", "32x3", "32x4", "64x2", "64x3", "64x4")
    counted = {Size.parse(name): Cost(0, flops) for name, flops in zip(names, (1, 2, 6, 8, 30, 64), strict=True)}
    monkeypatch.setattr(num_sizes, "costs_of", lambda *_: counted)
    family = family_of(config(model={"depth_max": 4}))
    ordered = ["32x2", "64x4", "64x2", "64x3", "32x3", "32x4"]
    for number in range(2, 7):
        assert list(map(str, spread(family, number))) == ordered[:number]
    assert spread(family, 99) == spread(family, 6)


def test_n_sizes_alone_take_the_compute_of_the_elastic_run(planned: NumSizesPlan) -> None:
    """In units of an image seen: the elastic run takes 12 x 6 = 72, so that all four sizes have 72 / 10 epochs each."""
    assert planned.shown == (SMALLEST, MIDDLE, LARGEST)
    (share,) = of(planned, "single", 4)
    assert names(share) == {f"{size}": f"single-{size}-7-epochs" for size in (SMALLEST, MIDDLE, LARGEST)}
    assert share.compute == pytest.approx(7 * 10 / 72)
    (share,) = of(planned, "single", 3)
    assert names(share) == {f"{size}": f"single-{size}-9-epochs" for size in (SMALLEST, MIDDLE, LARGEST)}
    assert share.compute == 1
    (share,) = of(planned, "single", 2)
    assert names(share) == {f"{size}": f"single-{size}-14-epochs" for size in (SMALLEST, LARGEST)}


def test_one_size_has_all_of_it(planned: NumSizesPlan) -> None:
    assert [names(share) for share in of(planned, "single", 1)] == [
        {"32x2": "single-32x2-72-epochs"},
        {"64x3": "single-64x3-18-epochs"},
        {"64x2": "single-64x2-24-epochs"},
    ]


def test_the_teacher_of_seed_is_paid_for(planned: NumSizesPlan) -> None:
    """One small size takes 4 for the teacher and 0.5 for the student; three take 4 + 0.5 + 1.5."""
    small, large, middle = of(planned, "seed", 1)
    assert (names(small), small.compute) == ({"32x2": "seed-32x2-16-epochs"}, 1)
    assert names(large) == {"64x3": "single-64x3-18-epochs"}
    assert names(middle) == {"64x2": "seed-64x2-13-epochs"}
    (share,) = of(planned, "seed", 3)
    assert names(share) == {
        "32x2": "seed-32x2-12-epochs",
        "64x2": "seed-64x2-12-epochs",
        "64x3": "single-64x3-12-epochs",
    }
    folders = list(planned.trainings)
    for place, folder in enumerate(folders):
        config = planned.trainings[folder].config
        if config.method == "seed":
            teacher = Path(config.distill.teacher)
            assert folders.index(teacher) < place
            assert planned.trainings[teacher].config.epochs == config.epochs


def test_the_elastic_run_is_one_for_all_numbers(planned: NumSizesPlan) -> None:
    for number in (1, 2, 3, 4):
        (share,) = of(planned, "poa", number)
        assert set(share.runs.values()) == {Path("all/seed3/poa")}
        assert set(share.runs) == ({SMALLEST, LARGEST} if number == 2 else set(planned.shown))
    assert [folder.parent.name for folder in planned.trainings] == sorted(
        folder.parent.name for folder in planned.trainings
    )
    for training in planned.trainings.values():
        assert training.config.optimizer == of_length(config(), training.config.epochs).optimizer


def test_all_sizes_are_trained_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    made = planned_for(monkeypatch, numbers=(4,), all_sizes=True)
    for way in ("poa", "single", "seed"):
        (share,) = of(made, way, 4)
        assert set(share.runs) == {SMALLEST, MIDDLE, OTHER, LARGEST}
    few = planned_for(monkeypatch, numbers=(4,))
    assert of(few, "single", 4)[0].compute == of(made, "single", 4)[0].compute
    assert few.trainings.items() <= made.trainings.items()


def test_numbers_are_those_of_the_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "training_flops", operations)
    monkeypatch.setattr(num_sizes, "check_images", lambda *_: IMAGES)
    settings = config(out=str(tmp_path / "all"))

    def numbers(*given: int) -> set[int]:
        made = num_sizes.planned(
            settings, numbers=given, all_sizes=False, seeds=[0], labelled=Labelled("digits/train", "digits/test")
        )
        return {share.num_sizes for share in made.shares}

    assert numbers() == {1, 3}
    assert numbers(4, 2, 4) == {2, 4}
    with pytest.raises(UserError, match="numbers from 1 to 4, since the search space has 4 sizes, got 6"):
        numbers(3, 6)
