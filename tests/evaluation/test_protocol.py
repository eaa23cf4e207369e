import pytest
import torch
from torch import Tensor

from poa.errors import UserError
from poa.evaluation import protocol as module
from poa.evaluation.clustering import Cluster
from poa.evaluation.knn import Knn
from poa.evaluation.linear import FewShot, Linear, usual_strengths
from poa.evaluation.protocol import (
    Outcome,
    Protocol,
    Rows,
    bootstrap_interval,
    check_features,
    check_labels,
    check_widths,
    percent,
    unit_rows,
)
from poa.evaluation.retrieval import Retrieval

CPU = torch.device("cpu")
CLASSES = 6


def make(images: int, *, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % CLASSES
    centres = torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(0))
    return Rows(centres[labels] + 1.2 * torch.randn(images, 8, generator=generator), labels)


TRAIN, TEST = make(90, seed=1), make(50, seed=2)
PROTOCOLS = {
    "knn": Knn(ks=(5, 20), temperature=0.1),
    "linear": Linear(strengths=(0.01, 0.1), seed=3),
    "few-shot": FewShot(per_class=3, draws=3, strengths=(0.1,), seed=4),
    "cluster": Cluster(seeds=(0, 1), restarts=2, normalise=True),
    "retrieval": Retrieval(ks=(1, 4)),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_scores_are_means_of_the_values_of_images(name: str) -> None:
    protocol: Protocol = PROTOCOLS[name]
    assert protocol.name == name
    outcome = protocol(TRAIN, TEST, num_classes=CLASSES, device=CPU)
    again = protocol.resolved(TRAIN.labels, TEST.labels)(TRAIN, TEST, num_classes=CLASSES, device=CPU)
    assert again.scores == outcome.scores
    for score, values in outcome.values.items():
        assert float(values.mean()) == pytest.approx(outcome.scores[score]), score
        assert len(values) == len(TEST.labels)
        assert float(values.std()) > 0, "every image has the same"


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("knn", {"top1@5", "top5@5", "top1@20", "top5@20"}),
        ("linear", {"top1", "top5"}),
        ("few-shot", {"top1", "top5"}),
        ("cluster", set()),
        ("retrieval", {"map", "recall@1", "recall@4"}),
    ],
)
def test_which_scores_have_intervals(name: str, names: set[str]) -> None:
    outcome = PROTOCOLS[name](TRAIN, TEST, num_classes=CLASSES, device=CPU)
    intervals = outcome.intervals()
    assert set(intervals) == names
    for score, (low, high) in intervals.items():
        assert (low, high) == bootstrap_interval(outcome.values[score], level=0.95)
    assert Outcome({"a": 100.0}, {"a": percent(torch.ones(1, dtype=torch.bool))}).intervals() == {}


def test_settings_are_written_out_before_they_are_used() -> None:
    labels = TRAIN.labels[:15]
    assert Knn().resolved(labels, TEST.labels) == Knn(ks=(10,))
    assert Linear().resolved(labels, TEST.labels).strengths == usual_strengths(6)
    assert FewShot(per_class=1).resolved(labels, TEST.labels).strengths == usual_strengths(6)
    assert Cluster().resolved(torch.empty(0, dtype=torch.int64), TEST.labels[:4]) == Cluster(clusters=4)
    assert Retrieval().resolved(labels[:7], TEST.labels) == Retrieval(ks=(1, 5))


def test_a_query_whose_class_could_not_be_read_is_left_out() -> None:
    gallery = Rows(TRAIN.features[TRAIN.labels > 0], TRAIN.labels[TRAIN.labels > 0])
    outcome = Retrieval(ks=(1,))(gallery, TEST, num_classes=CLASSES, device=CPU)
    assert outcome.details == {"left_out": 9.0}
    assert len(outcome.values["map"]) == len(outcome.values["recall@1"]) == 41


def test_single_seeds_and_draws_have_no_spread() -> None:
    for protocol in (Cluster(restarts=1), FewShot(per_class=2, draws=1, strengths=(0.1,))):
        outcome = protocol(TRAIN, TEST, num_classes=CLASSES, device=CPU)
        assert not [name for name in outcome.scores if "spread" in name]


def test_one_class_alone() -> None:
    alone = torch.full((5,), 3)
    for protocol in (Linear(), FewShot(per_class=1)):
        with pytest.raises(UserError, match=r"All training images have the same class \(3\)"):
            protocol.resolved(alone, alone)
    with pytest.raises(UserError, match="All images have the same class"):
        Cluster().resolved(alone[:0], alone)


def test_finds_what_is_not_finite_in_the_last_row() -> None:
    features = torch.zeros(20_000, 1)
    check_features(features, name="test")
    features[-1] = -torch.inf
    with pytest.raises(UserError, match="features of the test images contain NaN or infinity"):
        check_features(features, name="test")


def test_rows_are_needed_whatever_the_least_is() -> None:
    with pytest.raises(UserError, match="too few test images: got 0, at least 1"):
        check_features(torch.zeros(0, 3), name="test", least=0)


def test_labels_go_up_to_the_last_class() -> None:
    features, labels = torch.zeros(3, 2), torch.tensor([0, 1, 3])
    check_labels(features, labels, name="test")
    check_labels(features, labels, name="test", num_classes=4)
    with pytest.raises(UserError, match="go from 0 to 3; with 3 classes they go from 0 to 2"):
        check_labels(features, labels, name="test", num_classes=3)


def test_widths() -> None:
    check_widths(torch.zeros(3, 2), torch.zeros(4, 2), names=("training", "test"))
    with pytest.raises(UserError, match="training images have width 2, those of the test images 5"):
        check_widths(torch.zeros(3, 2), torch.zeros(4, 5), names=("training", "test"))


def test_unit_rows_have_length_1_or_0() -> None:
    rows = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    assert unit_rows(rows, torch.device("cpu")).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0.0, 0.0]]


def test_intervals_of_equal_values_have_no_width() -> None:
    assert bootstrap_interval(torch.full((50,), 0.25)) == (0.25, 0.25)


def test_the_interval_of_two_images_by_hand() -> None:
    """Means of two draws from 0 and 1 are 0, 1/2 and 1 with chances of 1/4, 1/2 and 1/4."""
    values = torch.tensor([False, True])
    assert bootstrap_interval(values, level=0.95) == (0.0, 1.0)
    assert bootstrap_interval(values, level=0.4) == (0.5, 0.5)


def test_intervals_are_percentiles_of_resampled_means() -> None:
    values = torch.rand(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = bootstrap_interval(values, level=0.8, resamples=300, seed=7)
    generator = torch.Generator().manual_seed(7)
    torch.randint(1, (300, 1), generator=generator)  # drawn first, for nothing
    means = sorted(sum(values[i].item() for i in row) / 20 for row in torch.randint(20, (300, 20), generator=generator))
    at = 0.1 * 299  # between the 30th and the 31st
    low = means[29] + (at - 29) * (means[30] - means[29])
    high = means[-30] - (at - 29) * (means[-30] - means[-31])
    assert found == pytest.approx((low, high))


@pytest.mark.parametrize("at_once", [1, 64])
def test_chunks_of_resampled_images_do_not_matter(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    values = torch.rand(30, generator=torch.Generator().manual_seed(0))
    whole = bootstrap_interval(values)
    monkeypatch.setattr(module, "_DRAWN_AT_ONCE", at_once)
    assert bootstrap_interval(values) == whole


def test_the_seed_decides_about_intervals() -> None:
    values = torch.rand(30)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_holds_the_true_mean_as_often_as_promised() -> None:
    generator, hits, trials = torch.Generator().manual_seed(0), 0, 500
    for trial in range(trials):
        correct = torch.rand(150, generator=generator) < 0.7
        low, high = bootstrap_interval(correct, level=0.9, resamples=500, seed=trial)
        hits += low <= 0.7 <= high
    # Chance moves the share by 0.013; the percentiles of 150 yes and no by about 0.01 more.
    assert hits / trials == pytest.approx(0.9, abs=0.04)


@pytest.mark.parametrize(
    ("values", "others", "words"),
    [
        (torch.ones(1), {}, "at least two images, got 1"),
        (torch.ones(0), {}, "at least two images, got 0"),
        (torch.tensor([1.0, torch.nan]), {}, "NaN or infinity"),
        (torch.ones(2), {"level": 1.0}, "level between 0 and 1 and at least one resample, got 1.0"),
        (torch.ones(2), {"resamples": 0}, "got 0.95 and 0"),
    ],
)
def test_refuses_intervals(values: Tensor, others: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        bootstrap_interval(values, **others)
