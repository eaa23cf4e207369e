import threading
from collections.abc import Callable

import pytest

from poa.errors import UserError
from poa.training.background import Background
from poa.training.health import NonFinite

FULL = r"^The disk is full\.$"


def fail() -> None:
    raise UserError("The disk is full.")


def failing(then: Callable[[Background], object]) -> None:
    """Begin what fails and, once it has, do something else."""
    ended = threading.Event()
    with Background() as background:
        background.begin(fail)
        assert background._work is not None
        background._work.add_done_callback(lambda _: ended.set())
        assert ended.wait(10)
        then(background)
        raise AssertionError("nothing was raised")


def diverge(_: Background) -> None:
    raise NonFinite("loss = nan.")


def test_work_goes_on_beside_its_caller_one_piece_at_a_time() -> None:
    go, done = threading.Event(), list[str]()
    with Background() as background:
        background.begin(lambda: (go.wait(10), done.append("first")))
        background.check()
        assert not done, "it was waited for"
        threading.Timer(0.01, go.set).start()
        background.begin(lambda: done.append("second"))
        assert done[:1] == ["first"], "two at a time"
        background.wait()
        assert done == ["first", "second"]
        background.begin(lambda: done.append("third"))
    assert done[2:] == ["third"], "an end does not wait"


@pytest.mark.parametrize("then", [Background.wait, Background.check, lambda each: each.begin(fail)])
def test_what_fails_is_raised_where_it_is_asked_for(then: Callable[[Background], object]) -> None:
    with pytest.raises(UserError, match=FULL):
        failing(then)


def test_what_fails_is_told_with_what_ends_the_training() -> None:
    with pytest.raises(NonFinite, match=r"^loss = nan\. The disk is full\.$"):
        failing(diverge)
    with pytest.raises(UserError, match=FULL), Background() as background:
        background.begin(fail)
