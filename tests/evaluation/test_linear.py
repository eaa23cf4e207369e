import statistics
from typing import Any

import pytest
import torch
from torch import Tensor

from evaluation.scored import CPU, hits, same, scored
from poa.data.sampler import folds_of
from poa.errors import UserError
from poa.evaluation import linear
from poa.evaluation.linear import FewShot, Linear, default_strength, usual_strengths
from poa.evaluation.logistic import fit_logistic
from poa.evaluation.protocol import Outcome


def make(*, train: int = 120, test: int = 80, width: int = 10, classes: int = 6, noise: float = 1.5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, width, generator=generator)
    train_labels, test_labels = torch.arange(train) % classes, torch.arange(test) % classes
    rows = [noise * torch.randn(count, width, generator=generator) for count in (train, test)]
    return [centres[train_labels] + rows[0], train_labels, centres[test_labels] + rows[1], test_labels]


def linear_scores(*data: Tensor, num_classes: int, **settings: Any) -> Outcome:
    return scored(Linear(**settings), *data, num_classes=num_classes)


def few_shot(*data: Tensor, **settings: Any) -> Outcome:
    return scored(FewShot(**settings), *data, num_classes=6)


def test_separable_by_hand() -> None:
    corners = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    train, labels = corners.repeat(4, 1), torch.arange(3).repeat(4)
    test = torch.tensor([[1.0, 2.0], [9.0, 1.0], [1.0, 8.0], [8.0, 0.0]])
    result = linear_scores(train, labels, test, torch.tensor([0, 1, 2, 2]), num_classes=3)
    assert hits(result) == [True, True, True, False]
    assert result.scores == {"top1": 75.0, "top5": 100.0}
    assert result.details == {"strength": usual_strengths(3)[0]}, "the smallest of equals"


def test_one_strength_is_the_plain_fit() -> None:
    train, labels, test, test_labels = make()
    result = linear_scores(train, labels, test, test_labels, num_classes=6, strengths=(0.01,))
    logits = fit_logistic(train, labels, strengths=(0.01,), num_classes=6, device=CPU).logits(test)[0]
    places = [
        row.argsort(descending=True).tolist().index(label) for row, label in zip(logits, test_labels, strict=True)
    ]
    for name, k in (("top1", 1), ("top5", 5)):
        assert result.scores[name] == pytest.approx(100 * statistics.fmean(place < k for place in places))
    assert hits(result) == [place < 1 for place in places]
    assert 20 < result.scores["top1"] < result.scores["top5"] < 100


def test_chooses_by_hits_on_a_held_out_fifth() -> None:
    train, labels, test, test_labels = make(width=20, noise=2.0)
    strengths = (1e-4, 1e-2, 1.0, 100.0)
    held = folds_of(labels, seed=3, num_folds=5) == 0
    assert labels[held].bincount().tolist() == [4] * 6
    fit = fit_logistic(train[~held], labels[~held], strengths=strengths, num_classes=6, device=CPU)
    right = (fit.logits(train[held]).argmax(dim=2) == labels[held]).sum(dim=1).tolist()
    assert right.index(max(right)) > 0  # not what the smallest strength would win anyway
    result = linear_scores(train, labels, test, test_labels, num_classes=6, strengths=strengths[::-1], seed=3)
    assert result.details["strength"] == strengths[right.index(max(right))]
    other_test = linear_scores(train, labels, train, labels, num_classes=6, strengths=strengths, seed=3)
    assert other_test.details == result.details


def test_holds_out_a_fifth_rounded_up(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(features: Tensor, labels: Tensor, **others: Any) -> Any:
        seen.append(labels.bincount().tolist())
        return fit_logistic(features, labels, **others)

    monkeypatch.setattr(linear, "fit_logistic", spy)
    linear_scores(*make(train=36), num_classes=6)
    assert seen == [[4] * 6, [6] * 6]


def test_class_with_one_image_is_learnt() -> None:
    train, labels, test, test_labels = make(noise=0.1)
    train, labels = torch.cat([train, torch.full((1, 10), 20.0)]), torch.cat([labels, torch.tensor([6])])
    test, test_labels = torch.cat([test, torch.full((1, 10), 21.0)]), torch.cat([test_labels, torch.tensor([6])])
    assert all(hits(linear_scores(train, labels, test, test_labels, num_classes=7)))


def test_classes_without_training_images_count_as_wrong() -> None:
    train, labels, test, test_labels = make(noise=0.1)
    plain = linear_scores(train, labels, test, test_labels, num_classes=6, strengths=(0.1,))
    assert plain.scores["top1"] == 100.0
    spread = 2 * labels + 1  # classes 1, 3, ..., 11 of 20
    wanted = 2 * test_labels + 1
    wanted[:8] = torch.tensor([0, 2, 4, 6, 8, 10, 12, 19])
    result = linear_scores(train, spread, test, wanted, num_classes=20, strengths=(0.1,))
    assert hits(result) == [False] * 8 + [True] * 72
    assert result.scores == {"top1": 90.0, "top5": 90.0}


def test_lower_class_wins_equal_logits() -> None:
    train = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    labels = torch.tensor([0, 1, 0, 1])
    result = linear_scores(train, labels, torch.zeros(2, 2), torch.tensor([0, 1]), num_classes=2, strengths=(1.0,))
    assert hits(result) == [True, False]


@pytest.mark.parametrize("logits", [1, 100])
def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch, logits: int) -> None:
    data = make()
    whole = linear_scores(*data, num_classes=6)
    monkeypatch.setattr(linear, "_LOGITS", logits)
    parts = linear_scores(*data, num_classes=6)
    assert same(parts, whole)


def test_usual_strengths() -> None:
    assert usual_strengths(10) == pytest.approx([10 ** (e / 2) for e in range(-8, 3)])
    assert default_strength(10) == 0.1


@pytest.mark.parametrize("amount", [{"per_class": 20}, {"share": 1.0}])
def test_few_shot_of_all_images_is_the_linear_score(amount: dict[str, Any]) -> None:
    data = make()
    whole = linear_scores(*data, num_classes=6, strengths=(0.01,))
    result = few_shot(*data, strengths=(0.01,), draws=2, **amount)
    assert result.scores == {**whole.scores, "top1_spread": 0.0, "top5_spread": 0.0}
    assert all(torch.equal(result.values[name], whole.values[name]) for name in ("top1", "top5"))


def test_few_shot_tells_mean_and_spread_of_different_draws() -> None:
    data = make()
    few: dict[str, Any] = {"per_class": 2, "strengths": (0.1,)}
    result = few_shot(*data, draws=4, seed=3, **few)
    draws = [few_shot(*data, draws=1, seed=seed, **few) for seed in (3, 4, 5, 6)]
    assert len({draw.scores["top1"] for draw in draws}) > 1
    assert list(result.scores) == ["top1", "top5", "top1_spread", "top5_spread"]
    for name in ("top1", "top5"):
        found = [draw.scores[name] for draw in draws]
        assert result.scores[name] == pytest.approx(sum(found) / 4)
        spread = (sum((value - sum(found) / 4) ** 2 for value in found) / 3) ** 0.5
        assert result.scores[f"{name}_spread"] == pytest.approx(spread)
        torch.testing.assert_close(result.values[name], torch.stack([draw.values[name] for draw in draws]).mean(dim=0))


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
        seen.append((features, labels, others["strengths"]))
        return fit_logistic(features, labels, **others)

    data = make()
    monkeypatch.setattr(linear, "fit_logistic", spy)
    few_shot(*data, draws=1, **amount)
    features, labels, strengths = seen[-1]
    assert labels.bincount().tolist() == expected
    for row, label in zip(features, labels, strict=True):
        (place,) = (data[0] == row).all(dim=1).nonzero()
        assert data[1][place] == label
    folds = min(5, expected[0])
    assert len(seen) == (1 if folds == 1 else folds + 1)
    if folds == 1:
        assert strengths == (default_strength(6),)


def test_few_shot_chooses_by_cross_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels, test, test_labels = make(train=24, width=40, noise=3.0)
    strengths = (1e-4, 1.0, 100.0)
    taken = []

    def spy(*data: Tensor, **others: Any) -> Any:
        taken.append(others["strengths"])
        return fit_logistic(*data, **others)

    with monkeypatch.context() as patch:
        patch.setattr(linear, "fit_logistic", spy)
        few_shot(train, labels, test, test_labels, per_class=4, draws=1, strengths=strengths)
    right = torch.zeros(3, dtype=torch.long)
    folds = folds_of(labels, seed=0, num_folds=4)
    for fold in range(4):
        held = folds == fold
        fit = fit_logistic(train[~held], labels[~held], strengths=strengths, num_classes=6, device=CPU)
        right += (fit.logits(train[held]).argmax(dim=2) == labels[held]).sum(dim=1)
    assert right.tolist().index(int(right.max())) > 0
    assert taken == [strengths] * 4 + [(strengths[right.tolist().index(int(right.max()))],)]


@pytest.mark.parametrize(
    ("changes", "others", "words"),
    [
        ({0: torch.empty(0, 10), 1: torch.empty(0, dtype=torch.long)}, {}, "too few training images: got 0"),
        ({2: torch.empty(0, 10), 3: torch.empty(0, dtype=torch.long)}, {}, "too few test images: got 0"),
        ({1: torch.zeros(119, dtype=torch.long)}, {}, "120 rows of training features but 119 labels"),
        ({3: torch.full((80,), 6)}, {}, "test labels go from 6 to 6; with 6 classes they go from 0 to 5"),
        ({1: torch.full((120,), 2)}, {}, r"the same class \(2\)"),
        ({0: torch.full((120, 10), torch.nan)}, {}, "training images contain NaN"),
        ({2: torch.full((80, 10), torch.inf)}, {}, "test images contain NaN or infinity"),
        ({2: torch.zeros(80, 9)}, {}, "have width 10, those of the test images 9"),
        ({}, {"strengths": (1.0, 0.0)}, "--strengths cannot be 0.0: it should be greater than 0"),
        ({}, {"strengths": ()}, r"--strengths cannot be \(\): .* at least 1 item"),
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
    assert linear_scores(*data, num_classes=6, strengths=(1.0,)).details == {"strength": 1.0}


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({}, "either --per-class or --share, got None and None"),
        ({"per_class": 1, "share": 0.1}, "got 1 and 0.1"),
        ({"per_class": 0}, "--per-class cannot be 0: it should be greater than or equal to 1"),
        ({"per_class": 21}, "21 images per class is not possible: class 0 has the fewest training images, 20"),
        ({"share": 0.0}, "--share cannot be 0.0: it should be greater than 0"),
        ({"share": 1.1}, "--share cannot be 1.1: it should be less than or equal to 1"),
        ({"per_class": 1, "draws": 0}, "--draws cannot be 0"),
    ],
)
def test_refuses_few_shots(request_: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        few_shot(*make(), **request_)
