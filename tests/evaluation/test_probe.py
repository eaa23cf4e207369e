import math
import statistics
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from evaluation.scored import CPU, hits, same, scored
from poa.data.sampler import draws, held_out
from poa.errors import UserError
from poa.evaluation import probe as module
from poa.evaluation.probe import Probe
from poa.evaluation.protocol import Outcome, Rows
from poa.features.taps import Variant, variants_of

COLUMNS = {"block 0": (0, 3), "block 1": (3, 6), "patches": (6, 9)}
VARIANTS = variants_of(COLUMNS)


def data(
    num: int = 120, *, classes: int = 3, width: int = 9, seed: int = 0, noise: float = 1.0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(num) % classes
    return centres[labels] + noise * torch.randn(num, width, generator=generator), labels


def of_variants(probe: Probe, *rows: Tensor, variants: tuple[Variant, ...] = VARIANTS) -> Outcome:
    """The outcome where only these variants may be looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "variants_of", lambda _: variants)
        train, test = Rows(*rows[:2], COLUMNS), Rows(*rows[2:], COLUMNS)
        return probe(train, test, num_classes=3, device=CPU)


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
    probe = Probe(learning_rates=(0.5, 3.0, 20.0), batch_size=50, epochs=7, standardise=standardise, seed=3)
    with torch.inference_mode():
        fit = module._train(module._Rows(features, labels, 3, CPU), VARIANTS, probe.learning_rates, probe)
    for variant, classifiers in zip(VARIANTS, fit.classifiers, strict=True):
        for number, rate in enumerate(probe.learning_rates):
            weights, bias = alone(features, labels, variant, rate=rate, probe=probe)
            torch.testing.assert_close(classifiers.weights[number], weights, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(classifiers.bias[number], bias, rtol=1e-4, atol=1e-5)


def test_one_step_by_hand() -> None:
    features, labels = torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1])
    probe = Probe(learning_rates=(256.0,), epochs=1, seed=5)
    with torch.inference_mode():
        fit = module._train(module._Rows(features, labels, 2, CPU), module.whole_rows(1), (256.0,), probe)
    first, second = (0.01 * torch.randn(2, 1, generator=torch.Generator().manual_seed(5)))[:, 0].tolist()
    wrong = 1 / (1 + math.exp(first - second))  # probability of the other class, for either image
    expected = torch.tensor([first + 2 * wrong, second - 2 * wrong])  # the rate is 256 * 2 / 256
    torch.testing.assert_close(fit.classifiers[0].weights[0, :, 0], expected)
    torch.testing.assert_close(fit.classifiers[0].bias[0], torch.zeros(2))


def test_the_published_learning_rates() -> None:
    assert Probe().learning_rates == (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)


def test_result_is_that_of_the_classifier_best_on_held_out_images() -> None:
    (train, labels), (test, test_labels) = data(noise=2.0), data(60, seed=1, noise=2.0)
    probe = Probe(learning_rates=(0.02, 1.0, 50.0), batch_size=32, epochs=5)
    result = of_variants(probe, train, labels, test, test_labels)
    held = held_out(labels, seed=0, one_in=5)
    top1 = {}
    for variant in VARIANTS:
        for rate in probe.learning_rates:
            one = probe.changed(learning_rates=(rate,))
            parts = train[~held], labels[~held], train[held], labels[held]
            top1[variant, rate] = of_variants(one, *parts, variants=(variant,)).scores["top1"]
    best = [place for place, score in top1.items() if score == max(top1.values())]
    assert len(set(top1.values())) > 3
    chosen = [(variant, rate) for variant, rate in best if chose(result, variant, rate)]
    assert len(chosen) == 1
    one = probe.changed(learning_rates=(chosen[0][1],))
    assert same(result, of_variants(one, train, labels, test, test_labels, variants=(chosen[0][0],)))
    assert result.scores["top1"] == pytest.approx(100 * statistics.fmean(hits(result)))
    assert result.scores["top1"] > 50
    assert result.scores["top5"] == 100


def chose(outcome: Outcome, variant: Variant, rate: float) -> bool:
    patches = float(variant.with_patches)
    return outcome.details == {"learning_rate": rate, "layers": float(variant.num_layers), "patches": patches}


def test_informative_columns_are_chosen() -> None:
    features, labels = data(300, noise=0.5)
    features[:, 3:6] = torch.randn(300, 3, generator=torch.Generator().manual_seed(7))
    features[:, 6:] = 0.0
    result = of_variants(Probe(), features[:200], labels[:200], features[200:], labels[200:])
    assert result.details["layers"] == 2.0
    assert result.scores["top1"] > 90


def test_choosing_on_the_test_images_is_the_best_of_all() -> None:
    (train, labels), (test, test_labels) = data(noise=3.0), data(60, seed=1, noise=3.0)
    probe = Probe(learning_rates=(0.02, 1.0, 50.0), batch_size=32, epochs=5)
    single = [
        of_variants(one, train, labels, test, test_labels, variants=(variant,)).scores["top1"]
        for variant in VARIANTS
        for one in (probe.changed(learning_rates=(rate,)) for rate in probe.learning_rates)
    ]
    published = probe.changed(choose_on="test")
    result = of_variants(published, train, labels, test, test_labels)
    assert result.scores["top1"] == max(single)
    assert min(single) < max(single)


def test_as_a_protocol() -> None:
    (train, labels), (test, test_labels) = data(), data(60, seed=1)
    probe = Probe(epochs=5)
    outcome = probe(Rows(train, labels, COLUMNS), Rows(test, test_labels, COLUMNS), num_classes=3, device=CPU)
    assert same(outcome, of_variants(probe, train, labels, test, test_labels)), "the variants are those of the columns"
    assert float(outcome.values["top1"].mean()) == pytest.approx(outcome.scores["top1"])
    assert set(outcome.intervals()) == {"top1", "top5"}
    whole = scored(probe, train, labels, test, test_labels, num_classes=3)
    assert (whole.details["layers"], whole.details["patches"]) == (1.0, 0.0)
    assert probe.resolved(labels, test_labels) is probe


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
    probe = Probe(learning_rates=(1.0,), batch_size=40, epochs=100, most_steps=4)
    first = scored(probe, features, labels, features, labels, num_classes=3)
    assert len(taken) == 4
    shares = [float(lr) / (40 / 256) for lr in taken]
    assert shares == pytest.approx([0.5 + 0.5 * math.cos(math.pi * step / 4) for step in range(4)])
    assert same(first, scored(probe, features, labels, features, labels, num_classes=3))


def test_classes_without_training_images_count_as_wrong() -> None:
    (train, labels), (test, test_labels) = data(noise=0.1), data(60, seed=1, noise=0.1)
    kept = labels != 1
    result = scored(Probe(), train[kept], labels[kept], test, test_labels, num_classes=3)
    assert hits(result) == (test_labels != 1).tolist()
    assert result.scores["top5"] == result.scores["top1"] == pytest.approx(200 / 3)


def test_diverged_classifiers_are_not_chosen() -> None:
    features, labels = data(noise=0.3)
    rates = (1e38, 1.0)
    probe = Probe(learning_rates=rates, epochs=20)
    result = scored(probe, features, labels, features, labels, num_classes=3)
    assert result.details["learning_rate"] == 1.0
    assert result.scores["top1"] > 95
    lost = scored(probe.changed(learning_rates=rates[:1]), features, labels, features, labels, num_classes=3)
    assert lost.scores == {"top1": 0.0, "top5": 0.0}


def test_ties_go_to_the_lower_cross_entropy_and_to_the_first_class() -> None:
    features, labels = data(noise=0.01)
    probe = Probe(learning_rates=(0.5, 2.0), epochs=20)
    result = scored(probe, features, labels, features, labels, num_classes=3)
    assert (result.scores["top1"], result.details["learning_rate"]) == (100.0, 2.0)
    alike = torch.ones(16, 2), torch.arange(16) % 8, torch.ones(8, 2), torch.arange(8)
    tied = scored(Probe(), *alike, num_classes=8)
    assert hits(tied) == [True] + [False] * 7
    assert hits(tied, "top5") == [True] * 5 + [False] * 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rates": ()}, r"--learning-rates cannot be \(\): .* at least 1 item"),
        ({"learning_rates": (0.1, 0.0)}, "--learning-rates cannot be 0.0: it should be greater than 0"),
        ({"learning_rates": (math.nan,)}, "--learning-rates cannot be nan"),
        ({"batch_size": 0}, "--batch-size cannot be 0: it should be greater than or equal to 1"),
        ({"epochs": 0}, "--epochs cannot be 0"),
        ({"most_steps": 0}, "--most-steps cannot be 0"),
        ({"momentum": 1.0}, "--momentum cannot be 1.0: it should be less than 1"),
        ({"choose_on": "train"}, "--choose-on cannot be 'train'. Choose from held-out, test"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Probe(**settings)


def test_wrong_data() -> None:
    features, labels = data(6)
    for train, train_labels, words in (
        (features, torch.zeros(6, dtype=torch.long), "have the same class"),
        (features[:3], labels[:3], "single training image"),
        (features[:, :2], labels, "width"),
        (features * math.nan, labels, "NaN"),
        (features[:1], labels[:1], "too few training"),
    ):
        with pytest.raises(UserError, match=words):
            scored(Probe(), train, train_labels, features, labels, num_classes=3)
    with pytest.raises(UserError, match="single training image"):
        Probe().resolved(labels[:3], labels)
    with pytest.raises(UserError, match="have the same class"):
        Probe().resolved(labels[:1], labels)
