import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import RandAugment

from poa.config.finetune import Finetune
from poa.data.images import Preprocessing
from poa.data.index import ImageIndex, open_index
from poa.data.sampler import keyed_random
from poa.errors import UserError
from poa.tasks.classification.data import (
    Labelled,
    TrainingBatch,
    draw_rows,
    labelled,
    training_batches,
    training_transform,
)

PREPROCESSING = Preprocessing(8, 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
AS_THEY_ARE = Finetune(batch_size=4, crop_scale=(1.0, 1.0), flip=0.0)
STRONG = AS_THEY_ARE.changed(crop_scale=(0.3, 1.0), flip=0.5, rand_augment="rand-m9-mstd0.5-inc1", erasing=0.5)


def folder(root: Path, *, classes: Sequence[str] = ("a", "b"), per_class: int = 6, first: int = 0) -> ImageIndex:
    """Images whose pixels are 10 times their number."""
    numbers = iter(range(first, 255))
    for name in classes:
        (root / name).mkdir(parents=True)
        for _ in range(per_class):
            number = next(numbers)
            Image.new("RGB", (8, 8), (10 * number,) * 3).save(root / name / f"{number:03}.png")
    return open_index(str(root), cache=root.parent / "cache")


def images(root: Path, **options: Any) -> Labelled:
    index = folder(root, **options)
    return Labelled(index, index.labels())


def batches(
    data: Labelled,
    settings: Finetune = AS_THEY_ARE,
    preprocessing: Preprocessing = PREPROCESSING,
    *,
    start_step: int = 0,
    num_steps: int = 3,
    workers: int = 0,
    **changes: Any,
) -> list[TrainingBatch]:
    steps: dict[str, int] = {"start_step": start_step, "num_steps": num_steps, "workers": workers}
    return list(
        training_batches(data, settings.changed(**{"mixup": 0.0, "cutmix": 0.0, **changes}), preprocessing, **steps)
    )


def numbers(batch: TrainingBatch) -> list[int]:
    return (batch.images[:, 0, 0, 0] * 255 / 10).round().int().tolist()


def same(first: Sequence[TrainingBatch], second: Sequence[TrainingBatch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels)
        for one, two in zip(first, second, strict=True)
    )


def test_every_image_once_an_epoch_with_its_label(tmp_path: Path) -> None:
    found = batches(images(tmp_path / "data"), num_steps=6)
    for epoch in (found[:3], found[3:]):
        seen = [number for batch in epoch for number in numbers(batch)]
        assert sorted(seen) == list(range(12))
        assert [label for batch in epoch for label in batch.labels.tolist()] == [number // 6 for number in seen]
    assert [numbers(batch) for batch in found[:3]] != [numbers(batch) for batch in found[3:]]
    assert found[0].images.shape == (4, 3, 8, 8)


def test_batches_depend_on_seed_and_step_alone(tmp_path: Path) -> None:
    data = images(tmp_path / "data")
    whole = batches(data, STRONG, num_steps=6)
    torch.manual_seed(5)
    np.random.seed(5)
    assert same(batches(data, STRONG, start_step=2, num_steps=4), whole[2:])
    assert same(batches(data, STRONG, num_steps=6, workers=1), whole)
    assert not same(batches(data, STRONG, num_steps=6, seed=1), whole)


def test_every_step_changes_an_image_differently(tmp_path: Path) -> None:
    data = images(tmp_path / "data", classes=("a",), per_class=1)
    noisy = batches(data, AS_THEY_ARE, erasing=1.0, batch_size=1)
    assert len({tuple(batch.images.flatten().tolist()) for batch in noisy}) == 3


def test_normalised(tmp_path: Path) -> None:
    data = images(tmp_path / "data", first=5, per_class=1)
    (plain,) = batches(data, batch_size=2, num_steps=1)
    shifted = Preprocessing(8, 8, (0.1, 0.2, 0.3), (0.5, 0.25, 1.0))
    (found,) = batches(data, AS_THEY_ARE, shifted, batch_size=2, num_steps=1)
    mean, std = torch.tensor([0.1, 0.2, 0.3])[:, None, None], torch.tensor([0.5, 0.25, 1.0])[:, None, None]
    torch.testing.assert_close(found.images, (plain.images - mean) / std)


def test_repeated_augmentation(tmp_path: Path) -> None:
    data = images(tmp_path / "data")
    found = batches(data, repeats=3, batch_size=6, num_steps=2)
    seen = [number for batch in found for number in numbers(batch)]
    assert [seen[start : start + 3] for start in range(0, 12, 3)] == [[first] * 3 for first in seen[::3]]
    assert len(set(seen)) == 4
    noisy = batches(data, AS_THEY_ARE, erasing=1.0, repeats=3, batch_size=6, num_steps=1)
    assert not torch.equal(noisy[0].images[0], noisy[0].images[1])


def test_bad_images_are_named_and_replaced_with_the_label_of_what_is_seen(tmp_path: Path) -> None:
    data = images(tmp_path / "data")
    (tmp_path / "data/a/005.png").write_bytes(b"damaged")
    found = batches(data)
    assert sum((batch.bad for batch in found), ()) == (5,)
    pairs = [pair for batch in found for pair in zip(numbers(batch), batch.labels.tolist(), strict=True)]
    assert sorted(pairs) == sorted([(number, number // 6) for number in (0, 1, 2, 3, 4, 6, 6, 7, 8, 9, 10, 11)])


def test_nothing_but_bad_images(tmp_path: Path) -> None:
    data = images(tmp_path / "data")
    for path in (tmp_path / "data").rglob("*.png"):
        path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="Of 12 images"):
        batches(data)


def test_part_of_a_part(tmp_path: Path) -> None:
    data = images(tmp_path / "data").take(np.array([1, 3, 5, 7, 9])).take(np.array([0, 4]))
    (found,) = batches(data, batch_size=2, num_steps=1)
    assert sorted(zip(numbers(found), found.labels.tolist(), strict=True)) == [(1, 0), (9, 1)]


def test_strongest_posterisation_is_possible() -> None:
    transform = training_transform(AS_THEY_ARE.changed(rand_augment="rand-m10-n1-inc1"), PREPROCESSING)
    (augment,) = (step for step in transform.transforms if isinstance(step, RandAugment))
    (posterise,) = (operation for operation in augment.ops if operation.name == "PosterizeIncreasing")
    posterise.prob = 1.0
    assert np.array(posterise(Image.new("RGB", (2, 2), (255, 100, 130)))).tolist()[0][0] == [128, 0, 128]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [10, 21, 1]),
        ({"share": 1.0}, [10, 21, 1]),
        ({"share": 0.3}, [3, 6, 1]),
        ({"share": 0.001}, [1, 1, 1]),
        ({"per_class": 1}, [1, 1, 1]),
    ],
)
def test_rows_drawn(options: dict[str, Any], expected: list[int]) -> None:
    labels = np.array([0] * 10 + [2] * 21 + [3])
    rows = draw_rows(labels, Finetune(**options))
    assert [int((labels[rows] == label).sum()) for label in (0, 2, 3)] == expected
    assert (np.diff(rows) > 0).all()
    assert np.array_equal(rows, draw_rows(labels, Finetune(**options)))


def test_seed_of_the_rows() -> None:
    labels = np.arange(100) % 2
    assert not np.array_equal(draw_rows(labels, Finetune(share=0.2)), draw_rows(labels, Finetune(share=0.2, seed=1)))


def test_more_images_than_the_smallest_class_has() -> None:
    with pytest.raises(
        UserError,
        match=r"4 images per class is not possible: class . has .* images, 3\. .* 1 to 3 images",
    ):
        draw_rows(np.array([0, 0, 0, 1, 1, 1, 1]), Finetune(per_class=4))


def test_keyed_random_numbers() -> None:
    def drawn() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    found = []
    for key in ((0, 1), (0, 1), (1, 0), (0, 1, 0)):
        with keyed_random(*key):
            found.append(drawn())
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert found[0] == found[1]
    assert len({value for each in found[1:] for value in each}) == 9
    with pytest.raises(KeyError), keyed_random(0, 1, device=torch.device("cpu")):
        raise KeyError
    assert before[2] == torch.get_rng_state().tolist()


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    train = folder(tmp_path / "train", classes=("ant", "bee", "cat"))
    test = folder(tmp_path / "test", classes=("bee", "cat"), first=30)
    first, second = labelled(train, test)
    assert first.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert second.labels.tolist() == [1] * 6 + [2] * 6


def test_labels_that_do_not_do(tmp_path: Path) -> None:
    train = folder(tmp_path / "train", classes=("ant", "bee"))
    other = folder(tmp_path / "other", classes=("ant", "bees", "cat"), first=30)
    flat = folder(tmp_path / "flat", classes=(".",), first=60)
    one = folder(tmp_path / "one", classes=("ant",), first=80)
    for first, second, words in (
        (train, other, "lack: 'bees', 'cat'.* have 2 classes: Did you mean 'bee'"),
        (train, flat, "flat have no labels"),
        (flat, train, "flat have no labels"),
        (one, train, "the same label 'ant'"),
    ):
        with pytest.raises(UserError, match=words):
            labelled(first, second)
