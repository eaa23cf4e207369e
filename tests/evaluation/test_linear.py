import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from poa.errors import UserError
from poa.evaluation import linear
from poa.evaluation.few_shot import few_shot
from poa.evaluation.linear import LinearResult, default_strength, linear_scores, usual_strengths
from poa.evaluation.logistic import fit_logistic

CPU = torch.device("cpu")


def make(*, train: int = 120, test: int = 80, width: int = 10, classes: int = 6, noise: float = 1.5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, width, generator=generator)
    train_labels, test_labels = torch.arange(train) % classes, torch.arange(test) % classes
    rows = [noise * torch.randn(count, width, generator=generator) for count in (train, test)]
    return [centres[train_labels] + rows[0], train_labels, centres[test_labels] + rows[1], test_labels]


def test_separable_by_hand() -> None:
    corners = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    train, labels = corners.repeat(4, 1), torch.arange(3).repeat(4)
    test = torch.tensor([[1.0, 2.0], [9.0, 1.0], [1.0, 8.0], [8.0, 0.0]])
    result = linear_scores(train, labels, test, torch.tensor([0, 1, 2, 2]), num_classes=3)
    assert result.correct.tolist() == [True, True, True, False]
    assert result.scores() == {"top1": 75.0, "top5": 100.0, "strength": usual_strengths(3)[0]}  # smallest of equals


def test_one_strength_is_the_plain_fit() -> None:
    train, labels, test, test_labels = make()
    result = linear_scores(train, labels, test, test_labels, num_classes=6, strengths=(0.01,))
    logits = fit_logistic(train, labels, strengths=(0.01,), num_classes=6, device=CPU).logits(test)[0]
    places = [
        row.argsort(descending=True).tolist().index(label) for row, label in zip(logits, test_labels, strict=True)
    ]
    assert result.top1 == pytest.approx(100 * statistics.fmean(place < 1 for place in places))
    assert result.top5 == pytest.approx(100 * statistics.fmean(place < 5 for place in places))
    assert result.correct.tolist() == [place < 1 for place in places]
    assert 20 < result.top1 < result.top5 < 100


def test_chooses_by_hits_on_a_held_out_fifth() -> None:
    train, labels, test, test_labels = make(width=20, noise=2.0)
    strengths = (1e-4, 1e-2, 1.0, 100.0)
    held = linear.folds_of(labels, seed=3, num_folds=5) == 0
    assert labels[held].bincount().tolist() == [4] * 6
    fit = fit_logistic(train[~held], labels[~held], strengths=strengths, num_classes=6, device=CPU)
    hits = (fit.logits(train[held]).argmax(dim=2) == labels[held]).sum(dim=1).tolist()
    assert hits.index(max(hits)) > 0  # not what the smallest strength would win anyway
    result = linear_scores(train, labels, test, test_labels, num_classes=6, strengths=strengths[::-1], seed=3)
    assert result.strength == strengths[hits.index(max(hits))]
    other_test = linear_scores(train, labels, train, labels, num_classes=6, strengths=strengths, seed=3)
    assert other_test.strength == result.strength


def test_holds_out_a_fifth_rounded_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(features: Tensor, labels: Tensor, **others: Any) -> Any:
        seen.append(labels.bincount().tolist())
        return fit_logistic(features, labels, **others)

    monkeypatch.setattr(linear, "fit_logistic", spy)
    linear_scores(*make(train=36), num_classes=6)
    assert seen == [[4] * 6, [6] * 6]


def test_folds_spread_every_class_evenly() -> None:
    labels = torch.tensor([0] * 13 + [1] * 5 + [2] * 2 + [3])
    folds = linear.folds_of(labels, seed=0, num_folds=5)
    assert sorted(folds[labels == 0].bincount(minlength=5).tolist()) == [2, 2, 3, 3, 3]
    assert sorted(folds[labels == 1].tolist()) == [0, 1, 2, 3, 4]
    assert sorted(folds[labels == 2].tolist()) == [0, 1]
    assert folds[labels == 3].tolist() == [-1]  # the only image of its class stays in training
    assert torch.equal(folds, linear.folds_of(labels, seed=0, num_folds=5))
    assert not torch.equal(folds, linear.folds_of(labels, seed=1, num_folds=5))


def test_class_with_one_image_is_learnt() -> None:
    train, labels, test, test_labels = make(noise=0.1)
    train, labels = torch.cat([train, torch.full((1, 10), 20.0)]), torch.cat([labels, torch.tensor([6])])
    test, test_labels = torch.cat([test, torch.full((1, 10), 21.0)]), torch.cat([test_labels, torch.tensor([6])])
    assert linear_scores(train, labels, test, test_labels, num_classes=7).correct.all()


def test_classes_without_training_images_count_as_wrong() -> None:
    train, labels, test, test_labels = make(noise=0.1)
    plain = linear_scores(train, labels, test, test_labels, num_classes=6, strengths=(0.1,))
    assert plain.top1 == 100.0
    spread = 2 * labels + 1  # classes 1, 3, ..., 11 of 20
    wanted = 2 * test_labels + 1
    wanted[:8] = torch.tensor([0, 2, 4, 6, 8, 10, 12, 19])
    result = linear_scores(train, spread, test, wanted, num_classes=20, strengths=(0.1,))
    assert result.correct.tolist() == [False] * 8 + [True] * 72
    assert result.top1 == result.top5 == 90.0


def test_lower_class_wins_equal_logits() -> None:
    train = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    labels = torch.tensor([0, 1, 0, 1])
    result = linear_scores(train, labels, torch.zeros(2, 2), torch.tensor([0, 1]), num_classes=2, strengths=(1.0,))
    assert result.correct.tolist() == [True, False]


@pytest.mark.parametrize("logits", [1, 100])
def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch, logits: int) -> None:
    data = make()
    whole = linear_scores(*data, num_classes=6)
    monkeypatch.setattr(linear, "_LOGITS", logits)
    parts = linear_scores(*data, num_classes=6)
    assert parts.scores() == whole.scores()
    assert torch.equal(parts.correct, whole.correct)


def test_usual_strengths() -> None:
    assert usual_strengths(10) == pytest.approx([10 ** (e / 2) for e in range(-8, 3)])
    assert default_strength(10) == 0.1


def same(a: LinearResult, b: LinearResult) -> bool:
    return a.scores() == b.scores() and torch.equal(a.correct, b.correct)


@pytest.mark.parametrize("amount", [{"per_class": 20}, {"share": 1.0}])
def test_few_shot_of_all_images_is_the_linear_score(amount: dict[str, Any]) -> None:
    data = make()
    whole = linear_scores(*data, num_classes=6, strengths=(0.01,))
    result = few_shot(*data, num_classes=6, strengths=(0.01,), draws=2, **amount)
    assert all(same(draw, whole) for draw in result.draws)
    assert result.scores() == {"top1": whole.top1, "top5": whole.top5, "top1_spread": 0.0, "top5_spread": 0.0}


def test_few_shot_tells_mean_and_spread_of_different_draws() -> None:
    result = few_shot(*make(), num_classes=6, per_class=2, draws=4)
    top1, top5 = [draw.top1 for draw in result.draws], [draw.top5 for draw in result.draws]
    assert len(set(top1)) > 1
    assert result.scores() == pytest.approx(
        {
            "top1": sum(top1) / 4,
            "top5": sum(top5) / 4,
            "top1_spread": (sum((value - sum(top1) / 4) ** 2 for value in top1) / 3) ** 0.5,
            "top5_spread": (sum((value - sum(top5) / 4) ** 2 for value in top5) / 3) ** 0.5,
        }
    )


def test_few_shot_draws_depend_on_their_seed_alone() -> None:
    data = make()
    both = few_shot(*data, num_classes=6, per_class=3, draws=2, seed=5)
    second = few_shot(*data, num_classes=6, per_class=3, draws=1, seed=6)
    assert same(both.draws[1], second.draws[0])
    assert not torch.equal(both.draws[0].correct, both.draws[1].correct)
    assert second.top1_spread == 0.0


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        ({"per_class": 1}, [1] * 6),
        ({"per_class": 7}, [7] * 6),
        ({"share": 0.1}, [2] * 6),
        ({"share": 0.01}, [1] * 6),
    ],
)
def test_few_shot_learns_from_that_many_images(
    monkeypatch: pytest.MonkeyPatch, amount: dict[str, Any], expected: list[int]
) -> None:
    seen = []

    def spy(features: Tensor, labels: Tensor, **others: Any) -> Any:
        seen.append((features, labels))
        return fit_logistic(features, labels, **others)

    data = make()
    monkeypatch.setattr(linear, "fit_logistic", spy)
    result = few_shot(*data, num_classes=6, draws=1, **amount)
    features, labels = seen[-1]
    assert labels.bincount().tolist() == expected
    for row, label in zip(features, labels, strict=True):
        (place,) = (data[0] == row).all(dim=1).nonzero()
        assert data[1][place] == label
    folds = min(5, expected[0])
    assert len(seen) == (1 if folds == 1 else folds + 1)
    if folds == 1:
        assert result.draws[0].strength == default_strength(6)


def test_few_shot_chooses_by_cross_validation() -> None:
    train, labels, test, test_labels = make(train=24, width=40, noise=3.0)
    strengths = (1e-4, 1.0, 100.0)
    result = few_shot(train, labels, test, test_labels, num_classes=6, per_class=4, draws=1, strengths=strengths)
    hits = torch.zeros(3, dtype=torch.long)
    folds = linear.folds_of(labels, seed=0, num_folds=4)
    for fold in range(4):
        held = folds == fold
        fit = fit_logistic(train[~held], labels[~held], strengths=strengths, num_classes=6, device=CPU)
        hits += (fit.logits(train[held]).argmax(dim=2) == labels[held]).sum(dim=1)
    assert hits.tolist().index(int(hits.max())) > 0
    assert result.draws[0].strength == strengths[hits.tolist().index(int(hits.max()))]


def test_result_is_frozen() -> None:
    result = linear_scores(*make(), num_classes=6, strengths=(1.0,))
    assert replace(result, top1=1.0).scores()["top1"] == 1.0
    with pytest.raises(AttributeError):
        result.top1 = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "others", "words"),
    [
        ({0: torch.empty(0, 10), 1: torch.empty(0, dtype=torch.long)}, {}, "too few training images: got 0"),
        ({2: torch.empty(0, 10), 3: torch.empty(0, dtype=torch.long)}, {}, "too few test images: got 0"),
        ({1: torch.zeros(119, dtype=torch.long)}, {}, "120 rows of training features but 119 labels"),
        ({3: torch.full((80,), 6)}, {}, "test labels go from 6 to 6; with 6 classes they go from 0 to 5"),
        ({1: torch.full((120,), 2)}, {}, r"of one class \(2\)"),
        ({0: torch.full((120, 10), torch.nan)}, {}, "training images hold NaN"),
        ({2: torch.full((80, 10), torch.inf)}, {}, "test images hold NaN or infinity"),
        ({2: torch.zeros(80, 9)}, {}, "have width 10, those of the test images 9"),
        ({}, {"strengths": (1.0, 0.0)}, "numbers above 0, got 0.0, 1.0"),
        ({}, {"strengths": ()}, "got none. Usual for 6 classes are 0.0002 to 2e.01"),
    ],
)
def test_refuses_data(changes: dict[int, Tensor], others: dict[str, Any], words: str) -> None:
    data = dict(enumerate(make())) | changes
    with pytest.raises(UserError, match=words):
        linear_scores(*data.values(), num_classes=6, **others)


def test_refuses_to_choose_without_images_to_spare() -> None:
    data = make(train=6)
    with pytest.raises(UserError, match="a single training image"):
        linear_scores(*data, num_classes=6)
    assert linear_scores(*data, num_classes=6, strengths=(1.0,)).strength == 1.0


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "either a number of images per class or a share of them, got None images and a share of None"),
        ({"per_class": 1, "share": 0.1}, "got 1 images and a share of 0.1"),
        ({"per_class": 0}, "0 images per class are not possible"),
        ({"per_class": 21}, "21 images per class are not possible: class 0 has 20 training images"),
        ({"share": 0.0}, "from 0 to 1, got 0.0"),
        ({"share": 1.1}, "from 0 to 1, got 1.1"),
        ({"per_class": 1, "draws": 0}, "at least one draw, got 0"),
    ],
)
def test_refuses_few_shots(request_: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        few_shot(*make(), num_classes=6, **request_)
