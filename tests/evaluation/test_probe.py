import math
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from poa.data.sampler import draws
from poa.errors import UserError
from poa.evaluation import probe as module
from poa.evaluation.probe import LEARNING_RATES, Probe, held_out, probe_scores
from poa.evaluation.protocol import Rows
from poa.features.taps import Variant, variants_of

COLUMNS = {"block 0": (0, 3), "block 1": (3, 6), "patches": (6, 9)}
VARIANTS = variants_of(COLUMNS)
CPU = torch.device("cpu")


def data(
    num: int = 120, *, classes: int = 3, width: int = 9, seed: int = 0, noise: float = 1.0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(num) % classes
    return centres[labels] + noise * torch.randn(num, width, generator=generator), labels


def alone(features: Tensor, labels: Tensor, variant: Variant, *, rate: float, probe: Probe) -> tuple[Tensor, Tensor]:
    """The same classifier by ``torch.optim.SGD`` and ``CosineAnnealingLR``."""
    if probe.standardise:
        features = (features - features.mean(dim=0)) / features.std(dim=0, correction=0)
    columns = torch.cat([torch.arange(start, end) for start, end in variant.ranges])
    linear = nn.Linear(len(columns), int(labels.max()) + 1)
    drawn = torch.randn(linear.weight.shape, generator=torch.Generator().manual_seed(probe.seed))
    linear.weight.data.copy_(0.01 * drawn)
    linear.bias.data.zero_()
    batch = min(probe.batch_size, len(labels))
    steps = min(probe.epochs * (len(labels) // batch), probe.most_steps)
    optimizer = torch.optim.SGD(linear.parameters(), lr=rate * batch / 256, momentum=probe.momentum)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        rows = [draw.index for draw in draws(step, num_images=len(labels), batch_size=batch, seed=probe.seed)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(linear(features[rows][:, columns]), labels[rows]).backward()
        optimizer.step()
        schedule.step()
    return linear.weight.detach(), linear.bias.detach()


@pytest.mark.parametrize("standardise", [True, False])
def test_each_classifier_is_as_if_trained_alone(standardise: bool) -> None:
    features, labels = data()
    probe = Probe((0.5, 3.0, 20.0), batch_size=50, epochs=7, standardise=standardise, seed=3)
    with torch.inference_mode():
        fit = module._train(module._Rows(features, labels, 3, CPU), VARIANTS, probe.learning_rates, probe)
    for variant, classifiers in zip(VARIANTS, fit.classifiers, strict=True):
        for number, rate in enumerate(probe.learning_rates):
            weights, bias = alone(features, labels, variant, rate=rate, probe=probe)
            torch.testing.assert_close(classifiers.weights[number], weights, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(classifiers.bias[number], bias, rtol=1e-4, atol=1e-5)


def test_one_step_by_hand() -> None:
    features, labels = torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1])
    probe = Probe((256.0,), epochs=1, seed=5)
    with torch.inference_mode():
        fit = module._train(module._Rows(features, labels, 2, CPU), module.whole_rows(1), (256.0,), probe)
    first, second = (0.01 * torch.randn(2, 1, generator=torch.Generator().manual_seed(5)))[:, 0].tolist()
    wrong = 1 / (1 + math.exp(first - second))  # probability of the other class, for either image
    expected = torch.tensor([first + 2 * wrong, second - 2 * wrong])  # the rate is 256 * 2 / 256
    torch.testing.assert_close(fit.classifiers[0].weights[0, :, 0], expected)
    torch.testing.assert_close(fit.classifiers[0].bias[0], torch.zeros(2))


def test_the_published_learning_rates() -> None:
    assert LEARNING_RATES == (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)


def test_result_is_that_of_the_classifier_best_on_held_out_images() -> None:
    (train, labels), (test, test_labels) = data(noise=2.0), data(60, seed=1, noise=2.0)
    probe = Probe((0.02, 1.0, 50.0), batch_size=32, epochs=5)
    result = probe_scores(train, labels, test, test_labels, num_classes=3, variants=VARIANTS, probe=probe)
    held = held_out(labels, seed=0)
    hits = {}
    for variant in VARIANTS:
        for rate in probe.learning_rates:
            one = replace(probe, learning_rates=(rate,))
            parts = train[~held], labels[~held], train[held], labels[held]
            hits[variant, rate] = probe_scores(*parts, num_classes=3, variants=(variant,), probe=one).top1
    assert hits[result.variant, result.learning_rate] == max(hits.values())
    assert len(set(hits.values())) > 3
    one = replace(probe, learning_rates=(result.learning_rate,))
    final = probe_scores(train, labels, test, test_labels, num_classes=3, variants=(result.variant,), probe=one)
    assert torch.equal(result.ranks, final.ranks)
    assert result.top1 == pytest.approx(100 * float(result.correct.double().mean()))
    assert result.top1 > 50
    assert result.top5 == 100


def test_informative_columns_are_chosen() -> None:
    features, labels = data(300, noise=0.5)
    features[:, 3:6] = torch.randn(300, 3, generator=torch.Generator().manual_seed(7))
    features[:, 6:] = 0.0
    result = probe_scores(features[:200], labels[:200], features[200:], labels[200:], num_classes=3, variants=VARIANTS)
    assert result.variant.num_layers == 2
    assert result.top1 > 90
    assert result.chosen() == {
        "learning_rate": result.learning_rate,
        "layers": 2.0,
        "patches": float(result.variant.with_patches),
    }


def test_choosing_on_the_test_images_is_the_best_of_all() -> None:
    (train, labels), (test, test_labels) = data(noise=3.0), data(60, seed=1, noise=3.0)
    probe = Probe((0.02, 1.0, 50.0), batch_size=32, epochs=5)
    single = [
        probe_scores(train, labels, test, test_labels, num_classes=3, variants=(variant,), probe=one).top1
        for variant in VARIANTS
        for one in (replace(probe, learning_rates=(rate,)) for rate in probe.learning_rates)
    ]
    published = replace(probe, choose_on="test")
    result = probe_scores(train, labels, test, test_labels, num_classes=3, variants=VARIANTS, probe=published)
    assert result.top1 == max(single)
    assert min(single) < max(single)


def test_as_a_protocol() -> None:
    (train, labels), (test, test_labels) = data(), data(60, seed=1)
    probe = Probe(epochs=5)
    outcome = probe(Rows(train, labels, COLUMNS), Rows(test, test_labels, COLUMNS), num_classes=3, device=CPU)
    result = probe_scores(train, labels, test, test_labels, num_classes=3, variants=VARIANTS, probe=probe)
    assert outcome.scores == {"top1": result.top1, "top5": result.top5}
    assert outcome.details == result.chosen()
    assert float(outcome.values["top1"].mean()) == pytest.approx(result.top1)
    assert set(outcome.intervals()) == {"top1", "top5"}
    whole = probe(Rows(train, labels), Rows(test, test_labels), num_classes=3, device=CPU)
    assert (whole.details["layers"], whole.details["patches"]) == (1.0, 0.0)
    assert probe.settled(labels, test_labels) is probe


def test_it_prepares_networks() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=16, embed_dim=24, depth=4, num_heads=2, num_classes=0)
    network, columns = Probe().prepare(model, image_size=16)
    assert list(columns) == ["block 1", "block 2", "block 3", "patches"]
    assert network(torch.zeros(2, 3, 16, 16)).cls.shape == (2, 96)


def test_steps_are_capped_and_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    plain = module._sgd_step
    monkeypatch.setattr(module, "_sgd_step", lambda *a, **k: (taken.append(k["lr"]), plain(*a, **k)))
    features, labels = data()
    probe = Probe((1.0,), batch_size=40, epochs=100, most_steps=4)
    first = probe_scores(features, labels, features, labels, num_classes=3, probe=probe)
    assert len(taken) == 4
    shares = [float(lr) / (40 / 256) for lr in taken]
    assert shares == pytest.approx([0.5 + 0.5 * math.cos(math.pi * step / 4) for step in range(4)])
    assert torch.equal(first.ranks, probe_scores(features, labels, features, labels, num_classes=3, probe=probe).ranks)


def test_held_out_images() -> None:
    labels = torch.tensor([0] * 10 + [1] * 11 + [2] * 2 + [4])
    held = held_out(labels, seed=0)
    assert [int(held[labels == label].sum()) for label in (0, 1, 2, 4)] == [2, 3, 1, 0]
    assert torch.equal(held, held_out(labels, seed=0))
    assert not torch.equal(held, held_out(labels, seed=1))


def test_classes_without_training_images_count_as_wrong() -> None:
    (train, labels), (test, test_labels) = data(noise=0.1), data(60, seed=1, noise=0.1)
    kept = labels != 1
    result = probe_scores(train[kept], labels[kept], test, test_labels, num_classes=3)
    assert result.correct.tolist() == (test_labels != 1).tolist()
    assert result.top5 == result.top1 == pytest.approx(200 / 3)


def test_diverged_classifiers_are_not_chosen() -> None:
    features, labels = data(noise=0.3)
    rates = (1e38, 1.0)
    result = probe_scores(features, labels, features, labels, num_classes=3, probe=Probe(rates, epochs=20))
    assert result.learning_rate == 1.0
    assert result.top1 > 95
    lost = probe_scores(features, labels, features, labels, num_classes=3, probe=Probe(rates[:1], epochs=20))
    assert (lost.top1, lost.top5) == (0.0, 0.0)


def test_ties_go_to_the_lower_cross_entropy_and_to_the_first_class() -> None:
    features, labels = data(noise=0.01)
    probe = Probe((0.5, 2.0), epochs=20)
    result = probe_scores(features, labels, features, labels, num_classes=3, probe=probe)
    assert (result.top1, result.learning_rate) == (100.0, 2.0)
    same = probe_scores(torch.ones(8, 2), torch.arange(8) % 4, torch.ones(4, 2), torch.arange(4), num_classes=4)
    assert same.ranks.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rates": ()}, "above 0, got none"),
        ({"learning_rates": (0.1, 0.0)}, "got 0.1, 0.0"),
        ({"learning_rates": (math.nan,)}, "got nan"),
        ({"batch_size": 0}, "batch size of 0"),
        ({"epochs": 0}, "0 epochs"),
        ({"most_steps": 0}, "at most 0 steps"),
        ({"momentum": 1.0}, "between 0 and 1, got 1.0"),
        ({"choose_on": "train"}, "got 'train'"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Probe(**settings)


def test_wrong_data() -> None:
    features, labels = data(6)
    for train, train_labels, words in (
        (features, torch.zeros(6, dtype=torch.long), "one class"),
        (features[:3], labels[:3], "single training image"),
        (features[:, :2], labels, "width"),
        (features * math.nan, labels, "NaN"),
        (features[:1], labels[:1], "too few training"),
    ):
        with pytest.raises(UserError, match=words):
            probe_scores(train, train_labels, features, labels, num_classes=3)
    with pytest.raises(UserError, match="single training image"):
        Probe().settled(labels[:3], labels)
    with pytest.raises(UserError, match="one class"):
        Probe().settled(labels[:1], labels)
