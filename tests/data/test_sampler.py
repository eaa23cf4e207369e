import numpy as np
import pytest
import torch

from poa.data.sampler import Draw, check_per_class, draws, epoch_order, folds_of, held_out, steps_per_epoch
from poa.errors import UserError


def test_an_epoch_shows_every_image_once() -> None:
    shown = [draw.index for step in range(5) for draw in draws(step, num_images=20, batch_size=4, seed=7)]
    assert sorted(shown) == list(range(20))
    assert shown == epoch_order(20, 7, 0).tolist()


def test_draws_say_step_and_position() -> None:
    batch = draws(13, num_images=20, batch_size=4, seed=7)
    assert [(draw.step, draw.position) for draw in batch] == [(13, 0), (13, 1), (13, 2), (13, 3)]
    assert isinstance(batch[0], Draw)
    assert type(batch[0].index) is int


def test_images_left_over_differ_between_epochs() -> None:
    assert steps_per_epoch(10, 4) == 2
    left_over = []
    for epoch in range(20):
        shown = {
            draw.index
            for step in (2 * epoch, 2 * epoch + 1)
            for draw in draws(step, num_images=10, batch_size=4, seed=0)
        }
        assert len(shown) == 8
        left_over.append(frozenset(range(10)) - shown)
    assert len(set(left_over)) > 1


def test_draws_depend_on_nothing_but_their_arguments() -> None:
    forwards = [draws(step, num_images=50, batch_size=8, seed=1) for step in range(40)]
    epoch_order.cache_clear()
    backwards = [draws(step, num_images=50, batch_size=8, seed=1) for step in reversed(range(40))]
    assert forwards == backwards[::-1]


def test_seeds_and_epochs_shuffle_differently() -> None:
    orders = {tuple(epoch_order(30, seed, epoch).tolist()) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16
    assert tuple(range(30)) not in orders


def test_order_is_uniform() -> None:
    first = np.bincount([int(epoch_order(5, 3, epoch)[0]) for epoch in range(2000)], minlength=5)
    assert first.min() > 330  # 400 expected, standard deviation 18
    assert first.max() < 470


def test_the_shared_order_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(5, 0, 0)[0] = 1


def test_a_batch_of_the_whole_set() -> None:
    assert sorted(draw.index for draw in draws(3, num_images=6, batch_size=6, seed=0)) == list(range(6))


def test_batch_larger_than_the_set_names_the_way_out() -> None:
    with pytest.raises(UserError, match="lower it to at most 100"):
        steps_per_epoch(100, 128)
    with pytest.raises(UserError, match="larger than the number of images, 100"):
        draws(0, num_images=100, batch_size=128, seed=0)


def test_folds_spread_every_class_evenly() -> None:
    labels = torch.tensor([0] * 13 + [1] * 5 + [2] * 2 + [3])
    folds = folds_of(labels, seed=0, num_folds=5)
    assert sorted(folds[labels == 0].bincount(minlength=5).tolist()) == [2, 2, 3, 3, 3]
    assert sorted(folds[labels == 1].tolist()) == [0, 1, 2, 3, 4]
    assert sorted(folds[labels == 2].tolist()) == [0, 1]
    assert folds[labels == 3].tolist() == [-1]  # the only image of its class stays in training
    assert torch.equal(folds, folds_of(labels, seed=0, num_folds=5))
    assert not torch.equal(folds, folds_of(labels, seed=1, num_folds=5))


def test_held_out_images() -> None:
    labels = torch.tensor([0] * 10 + [1] * 11 + [2] * 2 + [4])
    held = held_out(labels, seed=0, one_in=5)
    assert [int(held[labels == label].sum()) for label in (0, 1, 2, 4)] == [2, 3, 1, 0]
    assert torch.equal(held, held_out(labels, seed=0, one_in=5))
    assert not torch.equal(held, held_out(labels, seed=1, one_in=5))
    assert torch.equal(held[labels == 2], folds_of(labels, seed=0, num_folds=5)[labels == 2] == 0)


def test_no_more_images_than_the_smallest_class_has() -> None:
    labels = [3] * 5 + [7] * 4
    check_per_class(4, labels)
    for wrong in (0, 5):
        with pytest.raises(
            UserError,
            match=rf"{wrong} images per class is not possible: class 7 has .* images, 4\. .* 1 to 4",
        ):
            check_per_class(wrong, labels)
