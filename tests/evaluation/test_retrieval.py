import logging
from typing import Any

import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from poa.errors import UserError
from poa.evaluation.retrieval import RetrievalResult, retrieval_scores


def make(*, gallery: int = 70, queries: int = 30, width: int = 6, classes: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(classes, width, generator=generator)
    labels = [torch.randint(classes, (count,), generator=generator) for count in (gallery, queries)]
    rows = [centres[part] + torch.randn(len(part), width, generator=generator) for part in labels]
    return [rows[0] * 7, labels[0], rows[1], labels[1]]


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
    result = retrieval_scores(gallery, labels, queries, wanted, ks=(1, 2))
    # Order 0, 1, 2, 3 for both queries: class 0 at places 1 and 3, class 1 at places 2 and 4.
    first, second = 100 * (1 / 1 + 2 / 3) / 2, 100 * (1 / 2 + 2 / 4) / 2
    assert result.average_precision.tolist() == pytest.approx([first, second])
    assert result.scores() == pytest.approx({"map": (first + second) / 2, "recall@1": 50.0, "recall@2": 100.0})
    assert result.num_left_out == 1


@pytest.mark.parametrize("pairs", [1, 300, 2**24])
def test_equals_naive_loops(pairs: int) -> None:
    data = make()
    precisions, firsts = naive(*data)
    result = retrieval_scores(*data, pairs=pairs)
    assert result.average_precision.tolist() == pytest.approx(precisions)
    assert result.mean_average_precision == pytest.approx(sum(precisions) / 30)
    for k in (1, 5, 10):
        assert result.recall[k] == pytest.approx(100 * sum(first <= k for first in firsts) / 30)
    assert result.num_left_out == 0
    assert 20 < result.recall[1] < result.recall[5] <= 100


def test_equals_scikit_learn() -> None:
    gallery, labels, queries, wanted = make(gallery=300, queries=50)
    result = retrieval_scores(gallery, labels, queries, wanted)
    unit = [torch.nn.functional.normalize(rows, dim=1) for rows in (queries, gallery)]
    cosines = (unit[0] @ unit[1].T).numpy()
    expected = [
        100 * average_precision_score((labels == label).numpy(), row)
        for label, row in zip(wanted, cosines, strict=True)
    ]
    assert result.average_precision.tolist() == pytest.approx(expected)


def test_first_image_wins_ties() -> None:
    gallery, labels = torch.tensor([[2.0, 0.0]]).repeat(4, 1), torch.tensor([1, 0, 1, 0])
    queries = torch.tensor([[1.0, 1.0]]).repeat(2, 1)
    result = retrieval_scores(gallery, labels, queries, torch.tensor([0, 1]), ks=(1,))
    assert result.average_precision.tolist() == pytest.approx([50.0, 100 * (1 + 2 / 3) / 2])
    labels = (torch.arange(5000) == 4000).long()
    many = retrieval_scores(gallery[:1].repeat(5000, 1), labels, queries, torch.tensor([0, 1]), ks=(4000, 4001))
    assert many.average_precision[1] == pytest.approx(100 / 4001)
    assert many.recall == {4000: 50.0, 4001: 100.0}


def test_queries_without_class_are_left_out_and_counted() -> None:
    gallery, labels, queries, wanted = make()
    plain = retrieval_scores(gallery, labels, queries, wanted)
    more = torch.cat([queries[:10], torch.ones(2, 6), queries[10:]])
    others = torch.cat([wanted[:10], torch.tensor([5, 99]), wanted[10:]])
    result = retrieval_scores(gallery, labels, more, others)
    assert torch.equal(result.average_precision, plain.average_precision)
    assert result.scores() == plain.scores()
    assert result.num_left_out == 2


def test_similarities_stay_float32_under_autocast() -> None:
    data = make()
    plain = retrieval_scores(*data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(retrieval_scores(*data).average_precision, plain.average_precision)


def test_usual_ks_shrink_with_the_gallery(caplog: pytest.LogCaptureFixture) -> None:
    gallery, _, queries, wanted = make()
    with caplog.at_level(logging.INFO):
        result = retrieval_scores(gallery[:7], torch.arange(7) % 5, queries, wanted)
    assert list(result.recall) == [1, 5]
    assert "only 7 gallery images" in caplog.text


def test_names_of_scores() -> None:
    result = RetrievalResult(1.0, {1: 2.0, 5: 3.0}, torch.ones(1), torch.zeros(1, dtype=torch.long), 0)
    assert result.scores() == {"map": 1.0, "recall@1": 2.0, "recall@5": 3.0}


@pytest.mark.parametrize(
    ("changes", "others", "words"),
    [
        ({0: torch.empty(0, 6), 1: torch.empty(0, dtype=torch.long)}, {}, "too few gallery images: got 0"),
        ({2: torch.empty(0, 6), 3: torch.empty(0, dtype=torch.long)}, {}, "too few query images"),
        ({1: torch.zeros(69, dtype=torch.long)}, {}, "70 rows of gallery features but 69 labels"),
        ({3: torch.zeros(31, dtype=torch.long)}, {}, "30 rows of query features but 31 labels"),
        ({3: torch.full((30,), -2)}, {}, "query labels go from -2 to -2; they go from 0 on"),
        ({3: torch.full((30,), 9)}, {}, "No query has an image of its class"),
        ({0: torch.full((70, 6), torch.nan)}, {}, "gallery images hold NaN"),
        ({2: torch.ones(30, 5)}, {}, "width 6, those of the query images 5"),
        ({}, {"ks": (1, 71)}, "Recall at 71 is not possible.* here 70"),
        ({}, {"ks": (0,)}, "Recall at 0 "),
        ({}, {"ks": ()}, "Recall at no k"),
    ],
)
def test_refuses(changes: dict[int, Tensor], others: dict[str, Any], words: str) -> None:
    data = dict(enumerate(make())) | changes
    with pytest.raises(UserError, match=words):
        retrieval_scores(*data.values(), **others)
