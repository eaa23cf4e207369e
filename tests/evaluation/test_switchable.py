import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from conformance import filler
from poa.errors import UserError
from poa.evaluation.joint_linear import ProbeTraining, WidthClassifiers, slimmable_probe, switchable_probe

Probe = Callable[..., WidthClassifiers]
BOTH = [switchable_probe, slimmable_probe]
SHORT = ProbeTraining(lr=0.5, epochs=3, batch_size=16)
ROWS, LABELS = filler((40, 6), 1).float(), torch.arange(40) % 3
NESTED = [ROWS, ROWS[:, :4].contiguous(), ROWS[:, :2].contiguous()]


def digits() -> tuple[list[Tensor], Tensor]:
    """24 pixels of scanned digits, standardised, and the first half, quarter and eighth of them."""
    pixels, labels = load_digits(return_X_y=True)
    rows = torch.tensor(pixels, dtype=torch.float32)
    rows = rows[:, rows.std(0) > 1]
    rows = (rows - rows.mean(0)) / rows.std(0)
    rows = rows[:, torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(0))]
    return [rows[:, :width].contiguous() for width in (24, 12, 6, 3)], torch.tensor(labels)


@pytest.mark.parametrize("distilled", [False, True])
def test_switchable_fits_better_than_slimmable(distilled: bool) -> None:
    """The theorem, seen on digits, of every width: widths that share a weight pull it away from what suits each."""
    features, labels = digits()
    training = ProbeTraining(lr=0.5, epochs=120, batch_size=len(labels))
    own, shared = (probe(features, labels, num_classes=10, training=training, distilled=distilled) for probe in BOTH)
    own_losses, shared_losses = own.losses(features, labels), shared.losses(features, labels)
    margins = [theirs - ours for ours, theirs in zip(own_losses, shared_losses, strict=True)]
    assert min(margins) > 0.01
    assert sum(margins) > 0.15
    accuracies = own.top1(features, labels)
    assert accuracies[0] > 95
    assert list(accuracies) == sorted(accuracies, reverse=True)
    assert sum(accuracies) > sum(shared.top1(features, labels))


def test_converges_to_logistic_regression() -> None:
    """With a decay, also of the bias, there is one best classifier; scikit-learn's penalises a column of ones."""
    training = ProbeTraining(lr=1.0, epochs=400, batch_size=40, weight_decay=0.1)
    found = switchable_probe([ROWS], LABELS, num_classes=3, training=training)
    with_ones = torch.cat([ROWS, torch.ones(40, 1)], dim=1).double().numpy()
    best = LogisticRegression(C=1 / (0.1 * 40), fit_intercept=False, tol=1e-10).fit(with_ones, LABELS.numpy())
    ours = torch.cat([found.weights[0], found.biases[0][:, None]], dim=1)
    torch.testing.assert_close(ours, torch.tensor(best.coef_).float(), atol=1e-4, rtol=0)


def by_hand(features: Sequence[Tensor], training: ProbeTraining, *, shared: bool) -> list[Tensor]:
    """Both probes once more, with written-out gradients: softmax minus target, times the row."""
    widths = [rows.shape[1] for rows in features]
    weights = []
    for place, width in enumerate(widths[:1] if shared else widths):
        start = torch.randn(3, width, generator=torch.Generator().manual_seed(training.seed + place))
        weights.append(torch.cat([0.01 * start, torch.zeros(3, 1)], dim=1).double())
    velocity = [torch.zeros_like(weight) for weight in weights]
    generator = torch.Generator().manual_seed(training.seed)
    one_hot, number = F.one_hot(LABELS, 3).double(), 0
    batches = math.ceil(40 / training.batch_size)
    for _ in range(training.epochs):
        for batch in torch.randperm(40, generator=generator).split(training.batch_size):
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
            lr = training.lr * (1 + math.cos(math.pi * number / (batches * training.epochs))) / 2
            for weight, speed, slope in zip(weights, velocity, slopes, strict=True):
                speed.mul_(training.momentum).add_(slope + training.weight_decay * weight)
                weight.sub_(lr * speed)
            number += 1
    return weights


@pytest.mark.parametrize("probe", BOTH)
def test_equals_written_out_gradients(probe: Probe) -> None:
    training = replace(SHORT, weight_decay=0.01, seed=4)
    found = probe(NESTED, LABELS, num_classes=3, training=training)
    shared = probe is slimmable_probe
    expected = by_hand(NESTED, training, shared=shared)
    for place, rows in enumerate(NESTED):
        home = expected[0 if shared else place].float()
        torch.testing.assert_close(found.weights[place], home[:, : rows.shape[1]], atol=1e-5, rtol=0)
        torch.testing.assert_close(found.biases[place], home[:, -1], atol=1e-5, rtol=0)


def test_the_full_width_is_not_touched_by_those_it_teaches() -> None:
    """Its own classifier is the same alone, beside others, and as their teacher; theirs change."""
    alone = switchable_probe(NESTED[:1], LABELS, num_classes=3, training=SHORT)
    plain, taught = (
        switchable_probe(NESTED, LABELS, num_classes=3, training=SHORT, distilled=distilled)
        for distilled in (False, True)
    )
    assert torch.equal(alone.weights[0], plain.weights[0])
    assert torch.equal(alone.weights[0], taught.weights[0])
    assert not torch.equal(plain.weights[1], taught.weights[1])


def test_one_width_alone_is_the_same_probe_either_way() -> None:
    own, shared = (probe(NESTED[:1], LABELS, num_classes=3, training=SHORT) for probe in BOTH)
    assert torch.equal(own.weights[0], shared.weights[0])
    assert torch.equal(own.biases[0], shared.biases[0])


def test_slimmable_shares_columns_and_bias() -> None:
    found = slimmable_probe(NESTED, LABELS, num_classes=3, training=SHORT)
    assert torch.equal(found.weights[0][:, :2], found.weights[2])
    assert torch.equal(found.biases[0], found.biases[1])


@pytest.mark.parametrize("probe", BOTH)
def test_frozen_features_stay_as_they_are_and_a_seed_repeats(probe: Probe) -> None:
    before = [rows.clone() for rows in NESTED]
    first, second = (probe(NESTED, LABELS, num_classes=3, training=SHORT) for _ in range(2))
    other = probe(NESTED, LABELS, num_classes=3, training=replace(SHORT, seed=1))
    assert all(torch.equal(old, new) for old, new in zip(before, NESTED, strict=True))
    assert torch.equal(first.weights[2], second.weights[2])
    assert not torch.equal(first.weights[2], other.weights[2])
    assert not any(weight.requires_grad for weight in first.weights)


def test_losses_and_hits_by_hand() -> None:
    found = WidthClassifiers((torch.eye(2), torch.zeros(2, 1)), (torch.zeros(2), torch.tensor([math.log(3.0), 0.0])))
    features = [torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]]), torch.ones(2, 1)]
    labels = torch.tensor([0, 1])
    assert found.losses(features, labels) == pytest.approx(
        ((math.log(4 / 3) + math.log(2)) / 2, (math.log(4 / 3) + math.log(4)) / 2)
    )
    assert found.top1(features, labels) == (50.0, 50.0)


def test_schedules() -> None:
    cosine, steps = ProbeTraining(lr=2.0), ProbeTraining(lr=60.0, schedule="steps")
    assert [cosine.lr_at(share) for share in (0.0, 0.5, 1.0)] == pytest.approx([2.0, 1.0, 0.0])
    assert [steps.lr_at(share) for share in (0.0, 0.599, 0.6, 0.79, 0.8, 0.99)] == pytest.approx(
        [60, 60, 6, 6, 0.6, 0.6]
    )


@pytest.mark.parametrize("probe", BOTH)
def test_bad_input(probe: Probe) -> None:
    def call(features: list[Tensor], labels: Tensor) -> None:
        probe(features, labels, num_classes=3, training=SHORT)

    with pytest.raises(UserError, match="no features to classify"):
        call([], LABELS)
    with pytest.raises(UserError, match=r"39 rows of training \(width 2 of 2\) features but 40 labels"):
        call([ROWS, ROWS[1:]], LABELS)
    with pytest.raises(UserError, match="labels go from 0 to 3"):
        call([ROWS], torch.arange(40) % 4)
    with pytest.raises(UserError, match="NaN or infinity"):
        call([ROWS, ROWS / 0], LABELS)


def test_slimmable_wants_the_full_width_first() -> None:
    with pytest.raises(UserError, match=r"widths 2, 6\. Put those of the full width first"):
        slimmable_probe([NESTED[2], ROWS], LABELS, num_classes=3, training=SHORT)
