import logging
from typing import Any

import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from evaluation.scored import scored
from poa.errors import UserError
from poa.evaluation import retrieval
from poa.evaluation.protocol import Outcome
from poa.evaluation.retrieval import Retrieval
from poa.features.whitening import whitening_of


def make(*, gallery: int = 70, queries: int = 30, width: int = 6, classes: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, width, generator=generator)
    labels = [torch.randint(classes, (count,), generator=generator) for count in (gallery, queries)]
    rows = [centres[part] + torch.randn(len(part), width, generator=generator) for part in labels]
    return [rows[0] * 7, labels[0], rows[1], labels[1]]


def retrieve(*data: Tensor, ks: tuple[int, ...] | None = None) -> Outcome:
    return scored(Retrieval(ks=ks), *data, num_classes=100)


def naive(gallery: Tensor, labels: Tensor, queries: Tensor, wanted: Tensor) -> tuple[list[float], list[int]]:
    """Average precision in percent and place of the first hit, query by query."""
    precisions, firsts = [], []
    for query, label in zip(queries.double(), wanted.tolist(), strict=True):
        cosines = [float(query @ row / query.norm() / row.norm()) for row in gallery.double()]
        order = sorted(range(len(cosines)), key=lambda image: -cosines[image])
        places = [place for place, image in enumerate(order, start=1) if labels[image] == label]
        precisions.append(100 * sum(hit / place for hit, place in enumerate(places, start=1)) / len(places))
        firsts.append(places[0])
    return precisions, firsts


def test_by_hand() -> None:
    gallery = torch.tensor([[3.0, 0.0], [1.0, 1.0], [0.0, 0.5], [-1.0, 0.0]])
    labels = torch.tensor([0, 1, 0, 1])
    queries, wanted = torch.tensor([[1.0, 0.1], [1.0, 0.1], [0.1, -1.0]]), torch.tensor([0, 1, 2])
    result = retrieve(gallery, labels, queries, wanted, ks=(1, 2))
    # Order 0, 1, 2, 3 for both queries: class 0 at places 1 and 3, class 1 at places 2 and 4.
    first, second = 100 * (1 / 1 + 2 / 3) / 2, 100 * (1 / 2 + 2 / 4) / 2
    assert result.values["map"].tolist() == pytest.approx([first, second])
    assert result.scores == pytest.approx({"map": (first + second) / 2, "recall@1": 50.0, "recall@2": 100.0})
    assert result.details == {"left_out": 1.0}


def test_whitened_is_retrieval_of_whitened_features() -> None:
    gallery, labels, queries, wanted = make()
    whitening = whitening_of(gallery, damping=0.2)
    found = scored(Retrieval(whiten=0.2), gallery, labels, queries, wanted, num_classes=100).scores
    assert found == retrieve(whitening(gallery), labels, whitening(queries), wanted).scores
    assert found != retrieve(gallery, labels, queries, wanted).scores


@pytest.mark.parametrize("pairs", [1, 300, 2**24])
def test_equals_naive_loops(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_PAIRS", pairs)
    data = make()
    precisions, firsts = naive(*data)
    result = retrieve(*data)
    assert result.values["map"].tolist() == pytest.approx(precisions)
    assert result.scores["map"] == pytest.approx(sum(precisions) / 30)
    for k in (1, 5, 10):
        assert result.scores[f"recall@{k}"] == pytest.approx(100 * sum(first <= k for first in firsts) / 30)
    assert result.details == {"left_out": 0.0}
    assert 20 < result.scores["recall@1"] < result.scores["recall@5"] <= 100


def test_equals_scikit_learn() -> None:
    gallery, labels, queries, wanted = make(gallery=300, queries=50)
    result = retrieve(gallery, labels, queries, wanted)
    unit = [torch.nn.functional.normalize(rows, dim=1) for rows in (queries, gallery)]
    cosines = (unit[0] @ unit[1].T).numpy()
    expected = [
        100 * average_precision_score((labels == label).numpy(), row)
        for label, row in zip(wanted, cosines, strict=True)
    ]
    assert result.values["map"].tolist() == pytest.approx(expected)


def test_first_image_wins_ties() -> None:
    gallery, labels = torch.tensor([[2.0, 0.0]]).repeat(4, 1), torch.tensor([1, 0, 1, 0])
    queries = torch.tensor([[1.0, 1.0]]).repeat(2, 1)
    result = retrieve(gallery, labels, queries, torch.tensor([0, 1]), ks=(1,))
    assert result.values["map"].tolist() == pytest.approx([50.0, 100 * (1 + 2 / 3) / 2])
    labels = (torch.arange(5000) == 4000).long()
    many = retrieve(gallery[:1].repeat(5000, 1), labels, queries, torch.tensor([0, 1]), ks=(4000, 4001))
    assert many.values["map"][1] == pytest.approx(100 / 4001)
    assert [many.scores[f"recall@{k}"] for k in (4000, 4001)] == [50.0, 100.0]


def test_queries_without_class_are_left_out_and_counted() -> None:
    gallery, labels, queries, wanted = make()
    plain = retrieve(gallery, labels, queries, wanted)
    more = torch.cat([queries[:10], torch.ones(2, 6), queries[10:]])
    others = torch.cat([wanted[:10], torch.tensor([5, 99]), wanted[10:]])
    result = retrieve(gallery, labels, more, others)
    assert torch.equal(result.values["map"], plain.values["map"])
    assert result.scores == plain.scores
    assert result.details == {"left_out": 2.0}


def test_similarities_stay_float32_under_autocast() -> None:
    data = make()
    plain = retrieve(*data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(retrieve(*data).values["map"], plain.values["map"])


def test_usual_ks_shrink_with_the_gallery(caplog: pytest.LogCaptureFixture) -> None:
    gallery, _, queries, wanted = make()
    with caplog.at_level(logging.INFO):
        result = retrieve(gallery[:7], torch.arange(7) % 5, queries, wanted)
    assert list(result.scores) == ["map", "recall@1", "recall@5"]
    assert "number of gallery images is only 7" in caplog.text


@pytest.mark.parametrize(
    ("changes", "others", "words"),
    [
        ({0: torch.empty(0, 6), 1: torch.empty(0, dtype=torch.long)}, {}, "too few gallery images: got 0"),
        ({2: torch.empty(0, 6), 3: torch.empty(0, dtype=torch.long)}, {}, "too few query images"),
        ({1: torch.zeros(69, dtype=torch.long)}, {}, "70 rows of gallery features but 69 labels"),
        ({3: torch.zeros(31, dtype=torch.long)}, {}, "30 rows of query features but 31 labels"),
        ({3: torch.full((30,), -2)}, {}, "query labels go from -2 to -2; they go from 0 on"),
        ({3: torch.full((30,), 9)}, {}, "No query image has its class"),
        ({0: torch.full((70, 6), torch.nan)}, {}, "gallery images contain NaN"),
        ({2: torch.ones(30, 5)}, {}, "width 6, those of the query images 5"),
        ({}, {"ks": (1, 71)}, "Recall at 71 is not possible.* here 70"),
        ({}, {"ks": (0,)}, "Recall at 0 "),
        ({}, {"ks": ()}, "Recall at no k"),
    ],
)
def test_refuses(changes: dict[int, Tensor], others: dict[str, Any], words: str) -> None:
    data = dict(enumerate(make())) | changes
    with pytest.raises(UserError, match=words):
        retrieve(*data.values(), **others)
