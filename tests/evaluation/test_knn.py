import logging
import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from evaluation.scored import CPU, same, scored
from poa.errors import UserError
from poa.evaluation import knn
from poa.evaluation.knn import Knn, allowed_ks, nearest_images
from poa.features.whitening import whitening_of


def make(*, seed: int = 0, train: int = 90, test: int = 40, width: int = 7, classes: int = 8) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=generator)
    train_labels = torch.randint(classes, (train,), generator=generator)
    test_labels = torch.randint(classes, (test,), generator=generator)
    noise = [1.2 * torch.randn(count, width, generator=generator) for count in (train, test)]
    return 3 * centres[train_labels] + 3 * noise[0], train_labels, centres[test_labels] + noise[1], test_labels


def naive(data: tuple[Tensor, ...], *, ks: tuple[int, ...], temperature: float, classes: int) -> dict[str, float]:
    train, train_labels, test, test_labels = (part.tolist() for part in data)
    top1, top5 = dict.fromkeys(ks, 0), dict.fromkeys(ks, 0)
    for features, label in zip(test, test_labels, strict=True):
        cosines = []
        for other in train:
            dot = sum(a * b for a, b in zip(features, other, strict=True))
            cosines.append(dot / math.hypot(*features) / math.hypot(*other))
        order = sorted(range(len(train)), key=lambda image: -cosines[image])
        total = sum(math.exp(cosines[image] / temperature) for image in order[: max(ks)])
        for k in ks:
            votes = [0.0] * classes
            for image in order[:k]:
                votes[train_labels[image]] += math.exp(cosines[image] / temperature) / total
            places = sorted((c for c in range(classes) if votes[c] > 0), key=lambda c: -votes[c])
            top1[k] += label in places[:1]
            top5[k] += label in places[:5]
    percent = 100 / len(test)
    return {f"{name}@{k}": hits[k] * percent for k in ks for name, hits in (("top1", top1), ("top5", top5))}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_equals_naive_loops(seed: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    data, ks = make(seed=seed), (1, 10, 40)
    monkeypatch.setattr(knn, "_CHUNK", 32)
    scores = scored(Knn(ks=ks, temperature=temperature), *data, num_classes=8).scores
    assert scores == pytest.approx(naive(data, ks=ks, temperature=temperature, classes=8))
    assert 10 < scores["top1@10"] < scores["top5@10"] < 100
    assert list(scores) == ["top1@1", "top5@1", "top1@10", "top5@10", "top1@40", "top5@40"]


@pytest.mark.parametrize("k", [1, 5, 20])
def test_equals_scikit_learn(k: int) -> None:
    train, train_labels, test, test_labels = make(seed=4, train=300, test=200)

    def vote(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / 0.07)

    other = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=vote).fit(train, train_labels)
    expected = 100 * float((other.predict(test) == test_labels.numpy()).mean())
    outcome = scored(Knn(ks=(k,)), train, train_labels, test, test_labels, num_classes=8)
    assert outcome.scores[f"top1@{k}"] == pytest.approx(expected)


def test_whitened_is_k_nn_of_whitened_features() -> None:
    train, train_labels, test, test_labels = make(seed=5)
    whitening = whitening_of(train, damping=0.2)
    plain = scored(Knn(ks=(5,)), train, train_labels, test, test_labels, num_classes=8).scores
    by_hand = scored(Knn(ks=(5,)), whitening(train), train_labels, whitening(test), test_labels, num_classes=8).scores
    found = scored(Knn(ks=(5,), whiten=0.2), train, train_labels, test, test_labels, num_classes=8).scores
    assert found == by_hand != plain
    with pytest.raises(UserError, match=r"--whiten cannot be 0\.0"):
        Knn(whiten=0.0)


@pytest.mark.parametrize("chunk", [1, 7, 64, 5000])
def test_chunks_do_not_matter(chunk: int) -> None:
    train, _, test, _ = make()
    similarities, images = nearest_images(train, test, k=30, device=CPU, chunk=chunk)
    cosines = torch.nn.functional.normalize(test, dim=1) @ torch.nn.functional.normalize(train, dim=1).T
    assert torch.equal(images, cosines.argsort(dim=1, descending=True, stable=True)[:, :30])
    torch.testing.assert_close(similarities, cosines.gather(1, images))


def test_reads_negative_and_zero_similarities() -> None:
    train = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, -1.0]])
    similarities, images = nearest_images(train, torch.tensor([[2.0, 0.0]]), k=5, device=CPU, chunk=2)
    assert images.tolist() == [[3, 1, 2, 4, 0]]
    assert similarities.tolist() == [[1.0, 0.0, 0.0, pytest.approx(-math.sqrt(0.5)), -1.0]]


@pytest.mark.parametrize("chunk", [3, 100])
def test_first_image_wins_ties(chunk: int) -> None:
    train = torch.tensor([1.0, 0.0]).repeat(40, 1)
    _, images = nearest_images(train, torch.tensor([[1.0, 1.0]]), k=10, device=CPU, chunk=chunk)
    assert images.tolist() == [list(range(10))]


def test_lower_class_wins_equal_votes() -> None:
    train, labels = torch.tensor([[1.0, 0.0]]).repeat(4, 1), torch.tensor([2, 1, 2, 1])
    test = torch.tensor([[1.0, 0.0]]).repeat(2, 1)
    outcome = scored(Knn(ks=(4,)), train, labels, test, torch.tensor([1, 2]), num_classes=3)
    assert outcome.scores == {"top1@4": 50.0, "top5@4": 100.0}


def test_class_without_votes_is_no_hit() -> None:
    train, labels = torch.eye(3).repeat(4, 1), torch.tensor([0, 1, 2]).repeat(4)
    outcome = scored(Knn(ks=(4,)), train, labels, torch.eye(3), torch.tensor([0, 1, 0]), num_classes=3)
    assert outcome.scores["top5@4"] == pytest.approx(200 / 3)


def test_scale_and_type_of_features_do_not_matter() -> None:
    train, train_labels, test, test_labels = make()
    protocol = Knn(ks=(10,))
    plain = scored(protocol, train, train_labels, test, test_labels, num_classes=8)
    scaled = scored(protocol, 1000 * train, train_labels, test.double() / 1000, test_labels, num_classes=8)
    assert same(scaled, plain)


def test_similarities_stay_float32_under_autocast() -> None:
    train, _, test, _ = make()
    expected, images = nearest_images(train, test, k=5, device=CPU, chunk=10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (train @ test.T).dtype == torch.bfloat16
        found, also = nearest_images(train, test, k=5, device=CPU, chunk=10)
    assert torch.equal(found, expected)
    assert torch.equal(also, images)


def test_usual_ks_shrink_with_the_images(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert allowed_ks(None, num_train=150) == (10, 20, 100)
    assert "leaves out k=200: the number of training images is only 150" in caplog.text
    assert allowed_ks(None, num_train=200) == (10, 20, 100, 200)
    assert allowed_ks((20, 5, 20), num_train=20) == (5, 20)


@pytest.mark.parametrize(
    ("ks", "num_train", "words"),
    [
        ((10, 21), 20, "k=21 is not possible.* here 20"),
        ((0,), 20, "k=0"),
        ((), 20, "k of none"),
        (None, 9, "got k of 10, 20, 100, 200 and 9 training images"),
    ],
)
def test_refuses_ks(ks: tuple[int, ...] | None, num_train: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        allowed_ks(ks, num_train=num_train)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({0: torch.empty(0, 7), 1: torch.empty(0, dtype=torch.long)}, "too few training images: got 0"),
        ({2: torch.empty(0, 7), 3: torch.empty(0, dtype=torch.long)}, "too few test images: got 0"),
        ({3: torch.full((40,), 8)}, "test labels go from 8 to 8; with 8 classes they go from 0 to 7"),
        ({1: torch.full((90,), -1)}, "training labels go from -1"),
        ({0: torch.full((90, 7), torch.nan)}, "NaN"),
        ({2: torch.full((40, 7), torch.inf)}, "NaN or infinity"),
    ],
)
def test_refuses_data(changes: dict[int, Tensor], words: str) -> None:
    data = dict(enumerate(make())) | changes
    with pytest.raises(UserError, match=words):
        scored(Knn(ks=(10,)), *data.values(), num_classes=8)
