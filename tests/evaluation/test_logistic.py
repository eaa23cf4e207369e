import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from poa.evaluation import logistic
from poa.evaluation.logistic import LogisticFit, fit_logistic

CPU = torch.device("cpu")
STRENGTHS = (1.0, 1e-4, 1e-2)


def make(*, images: int = 200, width: int = 12, classes: int = 5, noise: float = 4.0) -> tuple[Tensor, Tensor]:
    """Classes that overlap, columns that depend on each other and have very different means and scales."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % classes
    rows = torch.randn(classes, width, generator=generator)[labels]
    rows = rows + noise * torch.randn(images, width, generator=generator) @ torch.randn(
        width, width, generator=generator
    )
    return rows * torch.logspace(-2, 2, width) + torch.linspace(-50, 50, width), labels


def objective(fit: LogisticFit, number: int, features: Tensor, labels: Tensor) -> float:
    """What the module says it minimises, in float64."""
    rows = (features.double() - fit.mean) * fit.scale
    logits = rows @ fit.weights[number].double().T + fit.bias[number].double()
    penalty = 0.5 * fit.strengths[number] * float(fit.weights[number].double().square().sum())
    return float(torch.nn.functional.cross_entropy(logits, labels)) + penalty


def scikit_learn(features: Tensor, labels: Tensor, strength: float) -> tuple[float, np.ndarray]:
    """The least objective, and the probabilities there."""
    rows = StandardScaler().fit_transform(features.double().numpy())
    model = LogisticRegression(C=1 / (strength * len(rows)), tol=1e-10, max_iter=10_000, solver="newton-cg")
    model.fit(rows, labels)
    probabilities = model.predict_proba(rows)
    entropy = -np.log(probabilities[np.arange(len(rows)), labels]).mean()
    return entropy + 0.5 * strength * np.square(model.coef_).sum(), probabilities


@pytest.mark.parametrize(("images", "width"), [(200, 12), (40, 60)])
def test_equals_scikit_learn(images: int, width: int) -> None:
    features, labels = make(images=images, width=width)
    fit = fit_logistic(features, labels, strengths=STRENGTHS, num_classes=5, device=CPU)
    assert fit.strengths == STRENGTHS
    for number, strength in enumerate(STRENGTHS):
        least, probabilities = scikit_learn(features, labels, strength)
        # The last step promised less than 1e-7 of the loss; in float32 a cross-entropy near 0 is known to 6e-8.
        assert least * (1 - 1e-8) <= objective(fit, number, features, labels) <= least * (1 + 5e-7) + 6e-8
        ours = fit.logits(features)[number].softmax(dim=1).numpy()
        # Near a minimum, weights are off by the root of what the loss is off by.
        np.testing.assert_allclose(ours, probabilities, atol=2e-3)


def test_two_images_by_hand() -> None:
    """With weights -w and w the loss is ln(1 + exp(-2 w)) + strength w^2, least where strength = sigmoid(-2 w) / w."""
    strength = 1 / (1 + math.exp(2))
    features, labels = torch.tensor([[3.0], [7.0]]), torch.tensor([0, 1])  # standardised: -1 and 1
    fit = fit_logistic(features, labels, strengths=(strength,), num_classes=2, device=CPU)
    assert fit.mean.tolist() == [5.0]
    assert fit.scale.tolist() == [0.5]
    torch.testing.assert_close(fit.weights, torch.tensor([[[-1.0], [1.0]]]), atol=1e-3, rtol=0)  # root of 1e-7
    torch.testing.assert_close(fit.bias, torch.zeros(1, 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("weights", "pairs"), [(1, 2**24), (2**23, 60), (130, 700)])
def test_groups_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch, weights: int, pairs: int) -> None:
    features, labels = make()
    whole = fit_logistic(features, labels, strengths=STRENGTHS, num_classes=5, device=CPU)
    monkeypatch.setattr(logistic, "_WEIGHTS", weights)
    monkeypatch.setattr(logistic, "_PAIRS", pairs)
    parts = fit_logistic(features, labels, strengths=STRENGTHS, num_classes=5, device=CPU)
    for number in range(3):
        ours, same = (objective(fit, number, features, labels) for fit in (parts, whole))
        assert ours == pytest.approx(same, rel=5e-7)  # as against scikit-learn


def test_groups_start_from_the_weakest_of_the_stronger_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = make()
    starts, ends = [], []

    def spy(problem: Any, strengths: Tensor, start: Tensor) -> Tensor:
        starts.append(start)
        ends.append(minimise(problem, strengths, start))
        return ends[-1]

    minimise = logistic._minimise
    monkeypatch.setattr(logistic, "_minimise", spy)
    monkeypatch.setattr(logistic, "_WEIGHTS", 2 * 5 * 13)  # two strengths with 12 columns and the bias
    fit_logistic(features, labels, strengths=(1e-4, 1.0, 1e-2), num_classes=5, device=CPU)
    assert [len(start) for start in starts] == [2, 1]
    assert starts[0].abs().max() == 0.0
    assert torch.equal(starts[1], ends[0][1:])


def test_columns_that_vary_in_their_last_place_only_have_no_say() -> None:
    features, labels = make()
    noise = torch.full((200, 1), 1000.0)
    noise[::2] = torch.nextafter(noise[::2], torch.tensor(2000.0))
    fit = fit_logistic(torch.cat([features, noise], 1), labels, strengths=(1e-2,), num_classes=5, device=CPU)
    assert fit.scale[-1] == 0.0
    assert fit.scale[:-1].min() > 0.0


@pytest.mark.parametrize("constant", [0.0, 0.1, 1000.1])
def test_constant_columns_have_no_say(constant: float) -> None:
    features, labels = make()
    more = torch.cat([features, torch.full((200, 1), constant)], dim=1)
    plain, fit = (fit_logistic(rows, labels, strengths=(1e-2,), num_classes=5, device=CPU) for rows in (features, more))
    assert fit.scale[-1] == 0.0
    assert fit.weights[..., -1].abs().max() == 0.0
    other = torch.cat([features, torch.full((200, 1), 1e6)], dim=1)
    assert torch.equal(fit.logits(other), fit.logits(more))
    assert objective(fit, 0, more, labels) == pytest.approx(objective(plain, 0, features, labels), rel=5e-7)


def test_features_that_are_all_the_same_give_equal_chances() -> None:
    fit = fit_logistic(torch.ones(6, 3), torch.arange(6) % 3, strengths=(0.1,), num_classes=3, device=CPU)
    assert fit.logits(torch.ones(1, 3)).softmax(dim=2).flatten().tolist() == pytest.approx([1 / 3] * 3)


def test_stays_float32_under_autocast() -> None:
    features, labels = make()
    plain = fit_logistic(features, labels, strengths=(1e-2,), num_classes=5, device=CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        also = fit_logistic(features, labels, strengths=(1e-2,), num_classes=5, device=CPU)
        logits = also.logits(features)
    assert torch.equal(also.weights, plain.weights)
    assert torch.equal(logits, plain.logits(features))


def test_tells_when_it_has_not_converged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    features, labels = make()
    monkeypatch.setattr(logistic, "_MOST_STEPS", 2)
    fit_logistic(features, labels, strengths=STRENGTHS, num_classes=5, device=CPU)
    assert "stopped after 2 steps" in caplog.text
    assert "1.0e-02, 1.0e-04" in caplog.text
