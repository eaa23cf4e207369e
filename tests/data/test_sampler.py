import numpy as np
import pytest

from poa.data.sampler import Draw, draws, epoch_order, steps_per_epoch
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
    with pytest.raises(UserError, match="lower --batch-size to at most 100"):
        steps_per_epoch(100, 128)
    with pytest.raises(UserError, match="larger than the whole set of 100"):
        draws(0, num_images=100, batch_size=128, seed=0)
