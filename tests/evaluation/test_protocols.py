import pytest
import torch

from poa.errors import UserError
from poa.evaluation.clustering import Cluster
from poa.evaluation.knn import Knn
from poa.evaluation.linear import FewShot, Linear, usual_strengths
from poa.evaluation.protocol import Outcome, Protocol, Rows, bootstrap_interval, percent
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
        with pytest.raises(UserError, match=r"All training images are of one class \(3\)"):
            protocol.resolved(alone, alone)
    with pytest.raises(UserError, match="All labels are of one class"):
        Cluster().resolved(alone[:0], alone)
