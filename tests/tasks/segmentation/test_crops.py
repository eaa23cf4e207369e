from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from poa.config.segmentation import Segmentation
from poa.data.images import Preprocessing
from poa.data.index import open_index
from poa.tasks.segmentation.crops import (
    CropBatch,
    crop_of,
    nearest_resized,
    scaled_sides,
    training_crops,
    whole_pairs,
)
from poa.tasks.segmentation.masks import Pair, Pairs, pair_up
from tasks.segmentation.mask_images import COLOURS, IGNORE, write_pairs

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PREPROCESSING = Preprocessing(16, 16, MEAN, STD)
PLAIN = Segmentation(crop=16, scale=(1.0, 1.0), most=1.0, flip=0.0, jitter=0.0)
RANDOM = PLAIN.changed(scale=(0.5, 2.0), flip=0.5, jitter=0.4, most=0.75)


def crop(pair: Pair, settings: Segmentation, *, ignore: int = IGNORE) -> CropBatch:
    return crop_of(pair, settings, PREPROCESSING, ignore=ignore)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    images, masks = write_pairs(tmp_path_factory.mktemp("pairs"))
    return pair_up(open_index(images), open_index(masks))


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def shown_colours(batch: CropBatch) -> np.ndarray:
    """Mean colour of the pixels of each class, in 0..255."""
    pixels = (batch.images[0].permute(1, 2, 0) * torch.tensor(STD) + torch.tensor(MEAN)) * 255
    return np.array([pixels[batch.masks[0] == each].mean(dim=0).numpy() for each in range(3)])


def test_image_and_mask_stay_together(pairs: Pairs) -> None:
    settings = RANDOM.changed(jitter=0.0, crop=40)
    for _ in range(20):
        batch = crop(pairs.read(0), settings)
        assert batch.images.shape == (1, 3, 40, 40)
        assert batch.masks.shape == (1, 40, 40)
        present = [each for each in range(3) if bool((batch.masks == each).sum() > 30)]
        assert np.abs(shown_colours(batch) - COLOURS)[present].max() < 60  # colours differ by 180; edges are blurred
        assert len(present) > 1


def test_crops_are_cut_out_of_the_image(pairs: Pairs) -> None:
    pair = pairs.read(1)
    values = (pair.image[0] / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    seen = set()
    for _ in range(80):
        found = crop(pair, PLAIN)
        places = [
            (top, left)
            for top in range(9)
            for left in range(17)
            if torch.allclose(found.images[0], values[:, top : top + 16, left : left + 16], atol=1e-5)
        ]
        ((top, left),) = places
        assert torch.equal(found.masks[0], pair.mask[top : top + 16, left : left + 16])
        seen.add((top, left))
    assert {top for top, _ in seen} == set(range(9))  # both ends too
    assert {0, 16} <= {left for _, left in seen}
    mirrored = crop(pair, PLAIN.changed(crop=64, flip=1.0))
    assert torch.allclose(mirrored.images[0].flip(2)[:, :24, :32], values, atol=1e-5)
    assert torch.equal(mirrored.masks[0].flip(1)[:24, :32], pair.mask)
    assert (mirrored.masks[0].flip(1)[24:] == IGNORE).all()
    assert (mirrored.masks[0].flip(1)[:, 32:] == IGNORE).all()
    assert (mirrored.images[0].flip(2)[:, :, 32:] == 0).all()


def test_scales() -> None:
    assert scaled_sides(24, 32, shorter=0) == (24, 32)
    assert scaled_sides(24, 32, shorter=12) == (12, 16)
    assert scaled_sides(24, 32, shorter=12, factor=2.0) == (24, 32)
    assert scaled_sides(32, 24, shorter=0, factor=0.5) == (16, 12)
    assert scaled_sides(2, 200, shorter=0, factor=0.1) == (1, 20)
    pair = Pair(torch.zeros(1, 3, 20, 20, dtype=torch.uint8), torch.arange(400).view(20, 20))
    sides = [
        int((crop(pair, PLAIN.changed(crop=50, scale=(0.5, 2.0), resize=10), ignore=-1).masks[0, 0] >= 0).sum())
        for _ in range(60)
    ]
    assert 5 <= min(sides) < 7
    assert 18 < max(sides) <= 20


def test_masks_are_resized_by_centres() -> None:
    mask = torch.arange(6).view(2, 3)
    assert torch.equal(nearest_resized(mask, (4, 6)), mask.repeat_interleave(2, 0).repeat_interleave(2, 1))
    assert torch.equal(nearest_resized(mask, (2, 3)), mask)
    assert nearest_resized(torch.arange(9).view(3, 3), (1, 1)).item() == 4
    large = torch.randint(300, (37, 53))
    expected = torch.nn.functional.interpolate(large[None, None].double(), size=(20, 71), mode="nearest-exact")
    assert torch.equal(nearest_resized(large, (20, 71)), expected[0, 0].long())


def test_crops_of_one_class_are_drawn_again() -> None:
    mask = torch.zeros(16, 64, dtype=torch.long)
    mask[:, 48:] = 1
    mask[:, :20] = IGNORE
    pair = Pair(torch.zeros(1, 3, 16, 64, dtype=torch.uint8), mask)

    def mixed(most: float) -> int:
        """How many of 60 crops have both classes, the rarer one with a quarter of the pixels at least."""
        drawn = [crop(pair, PLAIN.changed(most=most)).masks for _ in range(60)]
        shares = [float((each == 1).sum() / (each != IGNORE).sum()) for each in drawn if (each != IGNORE).any()]
        return sum(0.25 <= share <= 0.75 for share in shares)

    assert mixed(0.75) > 40  # nine places of 49 are such: 1 - (40 / 49) ** 10 of the crops
    assert mixed(1.0) < 25


def test_batches_depend_on_seed_and_step_alone(pairs: Pairs) -> None:
    settings = RANDOM.changed(batch_size=3, seed=5)
    whole = list(training_crops(pairs, settings, PREPROCESSING, start_step=0, num_steps=5))
    later = list(training_crops(pairs, settings, PREPROCESSING, start_step=3, num_steps=2))
    for one, other in zip(whole[3:], later, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.masks, other.masks)
    assert not torch.equal(whole[0].images, whole[2].images)
    other = next(training_crops(pairs, settings.changed(seed=6), PREPROCESSING, start_step=0, num_steps=1))
    assert not torch.equal(whole[0].masks, other.masks)
    assert whole[0].images.shape == (3, 3, 16, 16)


def test_an_epoch_sees_each_image_once(pairs: Pairs) -> None:
    settings = PLAIN.changed(crop=32, batch_size=4)
    batches = training_crops(pairs, settings, PREPROCESSING, start_step=2, num_steps=2)
    masks = [each[:24] for batch in batches for each in batch.masks]
    assert all(sum(torch.equal(each, pairs.read(i).mask) for each in masks) == 1 for i in range(8))


def test_whole_images(pairs: Pairs, tmp_path: Path) -> None:
    found = list(whole_pairs(pairs, resize=12))
    assert [tuple(each.image.shape[2:]) for each in found] == [(12, 16)] * 8
    assert all(torch.equal(each.mask, pairs.read(i).mask) for i, each in enumerate(found))
    plain = next(whole_pairs(pairs, resize=0))
    assert torch.equal(plain.image, pairs.read(0).image)


def test_colours_change_and_masks_do_not(pairs: Pairs) -> None:
    torch.manual_seed(3)
    plain = crop(pairs.read(2), PLAIN.changed(crop=32))
    torch.manual_seed(3)
    changed = crop(pairs.read(2), PLAIN.changed(crop=32, jitter=0.4))
    assert torch.equal(plain.masks, changed.masks)
    assert 0.05 < float((plain.images - changed.images).abs().mean()) < 2
