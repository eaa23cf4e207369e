import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from conformance import filler
from poa.errors import UserError
from poa.evaluation import joint_linear
from poa.evaluation.joint_linear import Classifier, Classifiers, JointLinear, Slimmable, Switchable

BOTH = [Switchable(epochs=3, batch_size=16), Slimmable(epochs=3, batch_size=16)]
SWITCHABLE, SLIMMABLE = BOTH
ROWS, LABELS = filler((40, 6), 1).float(), torch.arange(40) % 3
NESTED = [ROWS, ROWS[:, :4].contiguous(), ROWS[:, :2].contiguous()]


def digits() -> tuple[list[Tensor], Tensor]:
    """24 pixels of scanned digits, standardised, and the first half, quarter and eighth of them."""
    pixels, labels = load_digits(return_X_y=True)
    rows = torch.tensor(pixels, dtype=torch.float32)
    rows = rows[:, rows.std(0) > 1]
    rows = (rows - rows.mean(0)) / rows.std(0)
    rows = rows[:600, torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(0))]
    return [rows[:, :width].contiguous() for width in (24, 12, 6, 3)], torch.tensor(labels)[:600]


@pytest.mark.parametrize("distilled", [False, True])
def test_switchable_fits_better_than_slimmable(distilled: bool) -> None:
    """The theorem, seen on digits, of every width: widths that share a weight pull it away from what suits each."""
    features, labels = digits()
    long = {"epochs": 120, "batch_size": len(labels), "distilled": distilled}
    own, shared = (protocol.changed(**long).fit(features, labels, lr=0.5, num_classes=10) for protocol in BOTH)
    own_losses, shared_losses = own.losses(features, labels), shared.losses(features, labels)
    margins = [theirs - ours for ours, theirs in zip(own_losses, shared_losses, strict=True)]
    assert min(margins) > 0.01
    assert sum(margins) > 0.15
    accuracies = own.top1(features, labels)
    assert accuracies[0] > 95
    assert list(accuracies) == sorted(accuracies, reverse=True)
    assert sum(accuracies) > sum(shared.top1(features, labels))


def test_converges_to_logistic_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a decay, also of the bias, there is one best classifier; scikit-learn's penalises a column of ones."""
    monkeypatch.setattr(joint_linear, "_WEIGHT_DECAY", 0.1)
    found = Switchable(epochs=400, batch_size=40).fit([ROWS], LABELS, lr=1.0, num_classes=3).each[0]
    with_ones = torch.cat([ROWS, torch.ones(40, 1)], dim=1).double().numpy()
    best = LogisticRegression(C=1 / (0.1 * 40), fit_intercept=False, tol=1e-10).fit(with_ones, LABELS.numpy())
    ours = torch.cat([found.weight, found.bias[:, None]], dim=1)
    torch.testing.assert_close(ours, torch.tensor(best.coef_).float(), atol=1e-4, rtol=0)


def by_hand(features: Sequence[Tensor], protocol: JointLinear, *, decay: float) -> list[Tensor]:
    """Both ways once more, with written-out gradients: softmax minus target, times the row."""
    widths, shared = [rows.shape[1] for rows in features], isinstance(protocol, Slimmable)
    weights = []
    for place, width in enumerate(widths[:1] if shared else widths):
        start = torch.randn(3, width, generator=torch.Generator().manual_seed(protocol.seed + place))
        weights.append(torch.cat([0.01 * start, torch.zeros(3, 1)], dim=1).double())
    velocity = [torch.zeros_like(weight) for weight in weights]
    generator = torch.Generator().manual_seed(protocol.seed)
    one_hot, number = F.one_hot(LABELS, 3).double(), 0
    batches = math.ceil(40 / protocol.batch_size)
    for _ in range(protocol.epochs):
        for batch in torch.randperm(40, generator=generator).split(protocol.batch_size):
            slopes, teacher = [torch.zeros_like(weight) for weight in weights], None
            for place, rows in enumerate(features):
                home = 0 if shared else place
                matrix = torch.cat([weights[home][:, : widths[place]], weights[home][:, -1:]], dim=1)
                inputs = torch.cat([rows[batch].double(), torch.ones(len(batch), 1)], dim=1)
                given = (inputs @ matrix.T).softmax(1)
                asked = one_hot[batch] if teacher is None else (one_hot[batch] + teacher) / 2
                teacher = given if teacher is None else teacher
                slope = (given - asked).T @ inputs / len(batch)
                slopes[home][:, : widths[place]] += slope[:, :-1]
                slopes[home][:, -1] += slope[:, -1]
            lr = 0.5 * (1 + math.cos(math.pi * number / (batches * protocol.epochs))) / 2
            for weight, speed, slope in zip(weights, velocity, slopes, strict=True):
                speed.mul_(0.9).add_(slope + decay * weight)
                weight.sub_(lr * speed)
            number += 1
    return weights


@pytest.mark.parametrize("protocol", BOTH, ids=lambda protocol: protocol.name)
def test_equals_written_out_gradients(protocol: JointLinear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint_linear, "_WEIGHT_DECAY", 0.01)
    protocol = protocol.changed(seed=4)
    found = protocol.fit(NESTED, LABELS, lr=0.5, num_classes=3)
    expected = by_hand(NESTED, protocol, decay=0.01)
    for place, rows in enumerate(NESTED):
        home = expected[min(place, len(expected) - 1)].float()
        torch.testing.assert_close(found.each[place].weight, home[:, : rows.shape[1]], atol=1e-5, rtol=0)
        torch.testing.assert_close(found.each[place].bias, home[:, -1], atol=1e-5, rtol=0)


def test_the_full_width_is_not_touched_by_those_it_teaches() -> None:
    """Its own classifier is the same alone, beside others, and as their teacher; theirs change."""
    alone = SWITCHABLE.fit(NESTED[:1], LABELS, lr=0.5, num_classes=3)
    plain, taught = (
        SWITCHABLE.changed(distilled=distilled).fit(NESTED, LABELS, lr=0.5, num_classes=3)
        for distilled in (False, True)
    )
    assert torch.equal(alone.each[0].weight, plain.each[0].weight)
    assert torch.equal(alone.each[0].weight, taught.each[0].weight)
    assert not torch.equal(plain.each[1].weight, taught.each[1].weight)


def test_one_width_alone_is_the_same_either_way() -> None:
    own, shared = (protocol.fit(NESTED[:1], LABELS, lr=0.5, num_classes=3).each[0] for protocol in BOTH)
    assert torch.equal(own.weight, shared.weight)
    assert torch.equal(own.bias, shared.bias)


def test_slimmable_shares_columns_and_bias() -> None:
    found = SLIMMABLE.fit(NESTED, LABELS, lr=0.5, num_classes=3).each
    assert torch.equal(found[0].weight[:, :2], found[2].weight)
    assert torch.equal(found[0].bias, found[1].bias)


@pytest.mark.parametrize("protocol", BOTH, ids=lambda protocol: protocol.name)
def test_frozen_features_stay_as_they_are_and_a_seed_repeats(protocol: JointLinear) -> None:
    before = [rows.clone() for rows in NESTED]
    first, second = (protocol.fit(NESTED, LABELS, lr=0.5, num_classes=3).each[2].weight for _ in range(2))
    other = protocol.changed(seed=1).fit(NESTED, LABELS, lr=0.5, num_classes=3).each[2].weight
    assert all(torch.equal(old, new) for old, new in zip(before, NESTED, strict=True))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert not first.requires_grad


def test_losses_and_hits_by_hand() -> None:
    second = Classifier(torch.zeros(2, 1), torch.tensor([math.log(3.0), 0.0]))
    found = Classifiers((Classifier(torch.eye(2), torch.zeros(2)), second))
    features = [torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]), torch.ones(2, 1)]
    labels = torch.tensor([0, 1])
    assert found.losses(features, labels) == pytest.approx(
        ((math.log(4 / 3) + math.log(2)) / 2, (math.log(4 / 3) + math.log(4)) / 2)
    )
    assert found.top1(features, labels) == (50.0, 50.0)


def test_schedules() -> None:
    cosine, steps = Switchable(), Switchable(schedule="steps")
    assert [cosine.decay(share) for share in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])
    assert [steps.decay(share) for share in (0.0, 0.599, 0.6, 0.79, 0.8, 0.99)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01]
    )


@pytest.mark.parametrize("protocol", BOTH, ids=lambda protocol: protocol.name)
def test_bad_input(protocol: JointLinear) -> None:
    for features, labels, words in (
        ([], LABELS, "no features to classify"),
        ([ROWS, ROWS[1:]], LABELS, r"39 rows of training \(width 2 of 2\) features but 40 labels"),
        ([ROWS], torch.arange(40) % 4, "labels go from 0 to 3"),
        ([ROWS, ROWS / 0], LABELS, "NaN or infinity"),
    ):
        with pytest.raises(UserError, match=words):
            protocol.fit(features, labels, lr=0.5, num_classes=3)


def test_slimmable_wants_the_full_width_first() -> None:
    with pytest.raises(UserError, match=r"widths 2, 6\. Put those of the full width first"):
        SLIMMABLE.fit([NESTED[2], ROWS], LABELS, lr=0.5, num_classes=3)
