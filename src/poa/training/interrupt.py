"""Requests to stop, of the user or the scheduler."""

import signal
import threading
import time
from types import FrameType
from typing import Any

from poa.machine.launchers import STOPPED

_ECHO_SECONDS = 0.5
"""Launchers pass Ctrl-C on to processes that already had it from the terminal. That is one request, not two."""
SIGNALS = tuple(each for each in signal.Signals if each.name in ("SIGINT", "SIGTERM", "SIGUSR1"))
"""Requests to stop: of the user; of a scheduler; of one that is to start the run again. Windows lacks the last."""


class StopSignal:
    """Turns requests to stop into a flag while it is entered.

    The loop reads ``requested`` between steps, saves and ends. A second SIGINT raises ``KeyboardInterrupt`` at once.
    Signals reach only the main thread: entered in another one, it changes nothing and the flag stays down.

    Attributes:
        seen: Names of the signals that came.
        stopped: Whether the run has ended before its end, for a signal that came to this process or another.
    """

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.stopped = False
        self._interrupted_at: float | None = None
        self._old_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._old_handlers[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old_handlers.items():
            # None stands for a handler that Python did not install and cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._old_handlers.clear()

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return bool(self.seen)

    @property
    def is_to_be_requeued(self) -> bool:
        """Whether a scheduler that has stopped the run waits for it to ask for another start.

        SIGTERM is no such request: it also comes when a user cancels a job, and where Slurm takes the machine for
        another job, Slurm itself starts this one again.
        """
        return self.stopped and "SIGUSR1" in self.seen

    @property
    def status(self) -> int:
        """What the process that was asked exits with: 0 if the run is at its end or a user has stopped it."""
        return STOPPED if self.stopped and self.seen != {"SIGINT"} else 0

    def _request(self, number: int, _frame: FrameType | None) -> None:
        self.seen.add(signal.Signals(number).name)
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if self._interrupted_at is None:
            self._interrupted_at = now
        elif now - self._interrupted_at > _ECHO_SECONDS:
            raise KeyboardInterrupt
