import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from evaluation.scored import scored
from poa.errors import UserError
from poa.evaluation.clustering import Cluster, compare_clusters
from poa.evaluation.protocol import Outcome

NAMES = ("accuracy", "ari", "nmi", "fmi", "ami")


def blobs(*, images: int = 60, width: int = 4, classes: int = 3, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) % classes
    centres = 5 * torch.randn(classes, width, generator=generator)
    return centres[labels] + noise * torch.randn(images, width, generator=generator), labels


def kmeans(features: Tensor, labels: Tensor, **settings: Any) -> Outcome:
    nothing = torch.empty(0, 0), torch.empty(0, dtype=torch.long)
    return scored(Cluster(**settings), *nothing, features, labels, num_classes=9)


def best_matching(clusters: list[int], labels: list[int]) -> float:
    """Every way to give classes to clusters."""
    size = max(*clusters, *labels) + 1
    return max(
        sum(matching[cluster] == label for cluster, label in zip(clusters, labels, strict=True)) / len(labels)
        for matching in itertools.permutations(range(size))
    )


def test_six_images_by_hand() -> None:
    """Counts of cluster x class: [2, 1], [0, 3]."""
    scores = compare_clusters(torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 1, 1, 1, 1]))
    assert scores["accuracy"] == pytest.approx(100 * 5 / 6)
    # Pairs together: 1 + 3 = 4 in both, 3 + 3 = 6 in clusters, 1 + 6 = 7 in classes, 15 in all.
    chance = 6 * 7 / 15
    assert scores["ari"] == pytest.approx(100 * (4 - chance) / ((6 + 7) / 2 - chance))
    assert scores["fmi"] == pytest.approx(100 * 4 / math.sqrt(6 * 7))
    clusters, classes = math.log(2), math.log(3) / 3 + 2 / 3 * math.log(3 / 2)
    shared = 1 / 3 * math.log(2) + 1 / 6 * math.log(1 / 2) + 1 / 2 * math.log(3 / 2)
    assert scores["nmi"] == pytest.approx(100 * shared / ((clusters + classes) / 2))
    expected = mean_information([0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1])
    assert scores["ami"] == pytest.approx(100 * (shared - expected) / ((clusters + classes) / 2 - expected))


def mean_information(clusters: list[int], labels: list[int]) -> float:
    """Mean mutual information over all orders of the labels."""
    total = 0.0
    orders = list(itertools.permutations(labels))
    for order in orders:
        pairs = Counter(zip(clusters, order, strict=True))
        total += sum(
            count / 6 * math.log(count * 6 / clusters.count(cluster) / labels.count(label))
            for (cluster, label), count in pairs.items()
        )
    return total / len(orders)


def test_names_of_clusters_do_not_matter() -> None:
    scores = compare_clusters(torch.tensor([2, 2, 0, 0, 1]), torch.tensor([0, 0, 1, 1, 2]))
    assert scores == pytest.approx(dict.fromkeys(NAMES, 100.0))


def test_clusters_without_partner_count_as_wrong() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    assert compare_clusters(torch.tensor([0, 0, 3, 1, 2, 2]), labels)["accuracy"] == pytest.approx(100 * 4 / 6)
    assert compare_clusters(torch.tensor([0, 0, 0, 0, 0, 0]), labels)["accuracy"] == pytest.approx(100 * 4 / 6)


@pytest.mark.parametrize(("num_clusters", "num_classes"), [(4, 4), (5, 3), (3, 5)])
def test_equals_scikit_learn_and_all_matchings(num_clusters: int, num_classes: int) -> None:
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(num_classes, (80,), generator=generator)
    mixed = torch.rand(80, generator=generator) < 0.5
    clusters = torch.where(mixed, labels, torch.randint(num_clusters, (80,), generator=generator)) % num_clusters
    scores = compare_clusters(clusters, labels)
    assert scores["accuracy"] == pytest.approx(100 * best_matching(clusters.tolist(), labels.tolist()))
    for name, function in {
        "ari": sklearn.metrics.adjusted_rand_score,
        "nmi": sklearn.metrics.normalized_mutual_info_score,
        "fmi": sklearn.metrics.fowlkes_mallows_score,
        "ami": sklearn.metrics.adjusted_mutual_info_score,
    }.items():
        assert scores[name] == pytest.approx(100 * function(labels.numpy(), clusters.numpy())), name
        assert 0 < scores[name] < 100


def test_finds_blobs() -> None:
    features, labels = blobs()
    scores = kmeans(features, labels, seeds=(0, 1)).scores
    assert {name: scores[name] for name in NAMES} == pytest.approx(dict.fromkeys(NAMES, 100.0))
    assert [scores[f"{name}_spread"] for name in NAMES] == [0.0] * 5


@pytest.mark.parametrize("normalise", [False, True])
def test_is_the_kmeans_of_scikit_learn(normalise: bool) -> None:
    features, labels = blobs(noise=4.0)
    outcome = kmeans(features, labels, clusters=5, seeds=(3,), restarts=2, normalise=normalise)
    rows = features.numpy()
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True) if normalise else rows
    clusters = KMeans(5, n_init=2, random_state=3).fit_predict(rows)
    assert outcome.scores == compare_clusters(torch.from_numpy(clusters), labels)


def test_raw_features_are_not_normalised() -> None:
    """Two classes along one direction, near and far: only their lengths tell them apart."""
    lengths = torch.cat([torch.linspace(1, 2, 20), torch.linspace(100, 101, 20)])
    features, labels = lengths[:, None] * torch.tensor([[0.6, 0.8]]), torch.arange(40) // 20
    features = features + 0.01 * torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    assert kmeans(features, labels).scores["accuracy"] == 100.0
    assert kmeans(features, labels, normalise=True).scores["accuracy"] < 100.0


def test_mean_and_spread_over_seeds() -> None:
    features, labels = blobs(noise=6.0, classes=6)
    scores = kmeans(features, labels, seeds=tuple(range(4)), restarts=1).scores
    values = [kmeans(features, labels, seeds=(seed,), restarts=1).scores["accuracy"] for seed in range(4)]
    assert len(set(values)) > 1
    mean = sum(values) / 4
    assert scores["accuracy"] == pytest.approx(mean)
    assert scores["accuracy_spread"] == pytest.approx((sum((v - mean) ** 2 for v in values) / 3) ** 0.5)
    assert list(scores) == [*NAMES, *(f"{name}_spread" for name in NAMES)]


@pytest.mark.parametrize(
    ("changes", "others", "words"),
    [
        ({0: torch.zeros(1, 4), 1: torch.zeros(1, dtype=torch.long)}, {}, "too few clustered images: got 1"),
        ({1: torch.zeros(59, dtype=torch.long)}, {}, "60 rows of clustered features but 59 labels"),
        ({1: torch.zeros(60, dtype=torch.long)}, {}, "All images have the same class"),
        ({1: torch.full((60,), -1)}, {}, "labels go from -1 to -1; they go from 0 on"),
        ({0: torch.full((60, 4), torch.nan)}, {}, "NaN"),
        ({0: torch.ones(60, 4)}, {}, "got 1 for 3 clusters"),
        ({}, {"clusters": 1}, "from 2 to 60 .* got 1\\."),
        ({}, {"clusters": 61}, "got 61\\."),
        ({}, {"restarts": 0}, "--restarts cannot be 0: it should be greater than or equal to 1"),
        ({}, {"seeds": ()}, r"--seeds cannot be \(\)"),
    ],
)
def test_refuses(changes: dict[int, Tensor], others: dict[str, Any], words: str) -> None:
    data = dict(enumerate(blobs())) | changes
    with pytest.raises(UserError, match=words):
        kmeans(data[0], data[1], **others)


@pytest.mark.parametrize("count", [0, 3])
def test_refuses_clusters_that_do_not_fit_labels(count: int) -> None:
    with pytest.raises(UserError, match=f"got {count} clusters and 0 labels"):
        compare_clusters(torch.zeros(count, dtype=torch.long), torch.zeros(0, dtype=torch.long))
