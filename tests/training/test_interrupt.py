import os
import signal
import threading

import pytest

from poa.training.interrupt import StopSignal


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "status", "again"), [(signal.SIGTERM, 75, False), (signal.SIGINT, 0, False), (signal.SIGUSR1, 75, True)]
)
def test_a_signal_asks_the_loop_to_stop(number: signal.Signals, status: int, again: bool) -> None:
    with StopSignal() as stop:
        assert not stop.requested
        send(number)
        assert stop.requested
    assert (stop.status, stop.is_to_be_requeued) == (0, False), "the run came to its end"
    stop.stopped = True
    assert (stop.status, stop.is_to_be_requeued) == (status, again)


def test_a_run_that_another_process_was_asked_to_stop() -> None:
    stop = StopSignal()
    stop.stopped = True
    assert (stop.status, stop.is_to_be_requeued) == (75, False)


def test_a_scheduler_that_sends_more_than_one_signal() -> None:
    with StopSignal() as stop:
        send(signal.SIGUSR1)
        send(signal.SIGTERM)
    stop.stopped = True
    assert (stop.status, stop.is_to_be_requeued) == (75, True)


def test_a_second_interrupt_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poa.training.interrupt._ECHO_SECONDS", -1.0)
    with StopSignal() as stop:
        send(signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_an_interrupt_that_a_launcher_passes_on_again_is_the_same_one() -> None:
    with StopSignal() as stop:
        send(signal.SIGINT)
        send(signal.SIGINT)
        assert stop.requested


def test_termination_never_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poa.training.interrupt._ECHO_SECONDS", -1.0)
    with StopSignal() as stop:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            send(number)
        assert stop.requested


def test_the_old_handlers_come_back_even_after_an_error() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(KeyboardInterrupt), StopSignal():
        raise KeyboardInterrupt
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_another_thread_changes_no_handler() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def enter() -> None:
        with StopSignal() as stop:
            seen.extend([signal.getsignal(signal.SIGINT), stop.requested])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before, False]
