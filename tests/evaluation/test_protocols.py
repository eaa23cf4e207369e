from typing import Any

import pytest
import torch

from poa.errors import UserError
from poa.evaluation.clustering import Cluster, kmeans_scores
from poa.evaluation.few_shot import FewShot, few_shot
from poa.evaluation.knn import Knn, knn_scores
from poa.evaluation.linear import Linear, linear_scores, usual_strengths
from poa.evaluation.protocol import Outcome, Protocol, Rows, bootstrap_interval, percent
from poa.evaluation.retrieval import Retrieval, retrieval_scores

CPU = torch.device("cpu")
CLASSES = 6


def make(images: int, *, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % CLASSES
    centres = torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(0))
    return Rows(centres[labels] + 1.2 * torch.randn(images, 8, generator=generator), labels)


TRAIN, TEST = make(90, seed=1), make(50, seed=2)
FEATURES = (*TRAIN[:2], *TEST[:2])
SETTLED = {
    "knn": Knn((5, 20), temperature=0.1),
    "linear": Linear(strengths=(0.01, 0.1), seed=3),
    "few-shot": FewShot(per_class=3, draws=3, strengths=(0.1,), seed=4),
    "cluster": Cluster(seeds=(0, 1), restarts=2, normalise=True),
    "retrieval": Retrieval((1, 4)),
}
PURE: dict[str, Any] = {
    "knn": lambda: knn_scores(*FEATURES, ks=(5, 20), temperature=0.1, num_classes=CLASSES),
    "linear": lambda: linear_scores(*FEATURES, strengths=(0.01, 0.1), seed=3, num_classes=CLASSES),
    "few-shot": lambda: few_shot(*FEATURES, per_class=3, draws=3, strengths=(0.1,), seed=4, num_classes=CLASSES),
    "cluster": lambda: kmeans_scores(*TEST[:2], seeds=(0, 1), restarts=2, normalise=True),
    "retrieval": lambda: retrieval_scores(*FEATURES, ks=(1, 4)),
}


@pytest.mark.parametrize("name", SETTLED)
def test_scores_are_those_of_the_pure_function(name: str) -> None:
    protocol: Protocol = SETTLED[name]
    assert protocol.name == name
    protocol = protocol.settled(TRAIN.labels, TEST.labels)
    outcome = protocol(TRAIN, TEST, num_classes=CLASSES, device=CPU)
    assert {**outcome.scores, **outcome.details} == {**PURE[name]().scores(), **outcome.details}
    assert set(PURE[name]().scores()) - set(outcome.scores) <= set(outcome.details)
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
    outcome = SETTLED[name](TRAIN, TEST, num_classes=CLASSES, device=CPU)
    intervals = outcome.intervals()
    assert set(intervals) == names
    for score, (low, high) in intervals.items():
        expected = bootstrap_interval(outcome.values[score], level=0.95)
        assert (low, high) == (expected.low, expected.high)
    assert Outcome({"a": 100.0}, {"a": percent(torch.ones(1, dtype=torch.bool))}).intervals() == {}


def test_settings_are_written_out_before_they_are_used() -> None:
    labels = TRAIN.labels[:15]
    assert Knn().settled(labels, TEST.labels) == Knn((10,))
    assert Linear().settled(labels, TEST.labels).strengths == usual_strengths(6)
    assert FewShot(per_class=1).settled(labels, TEST.labels).strengths == usual_strengths(6)
    assert Cluster().settled(torch.empty(0, dtype=torch.int64), TEST.labels[:4]) == Cluster(clusters=4)
    assert Retrieval().settled(labels[:7], TEST.labels) == Retrieval((1, 5))


def test_a_query_whose_class_could_not_be_read_is_left_out() -> None:
    gallery = Rows(TRAIN.features[TRAIN.labels > 0], TRAIN.labels[TRAIN.labels > 0])
    outcome = Retrieval((1,))(gallery, TEST, num_classes=CLASSES, device=CPU)
    assert outcome.details == {"left_out": 9.0}
    assert len(outcome.values["map"]) == len(outcome.values["recall@1"]) == 41


def test_single_seeds_and_draws_have_no_spread() -> None:
    for protocol in (Cluster(restarts=1), FewShot(per_class=2, draws=1, strengths=(0.1,))):
        outcome = protocol(TRAIN, TEST, num_classes=CLASSES, device=CPU)
        assert not [name for name in outcome.scores if "spread" in name]


def test_one_class_alone() -> None:
    alone = torch.full((5,), 3)
    for protocol in (Linear(), FewShot(per_class=1)):
        with pytest.raises(UserError, match=r"All training images are of one class \(3\)"):
            protocol.settled(alone, alone)
    with pytest.raises(UserError, match="All labels are of one class"):
        Cluster().settled(alone[:0], alone)
