"""Requests to stop, of the user or the scheduler."""

import signal
import threading
import time
from types import FrameType
from typing import Any

_ECHO_SECONDS = 0.5
"""Launchers pass Ctrl-C on to processes that already had it from the terminal. That is one request, not two."""


class StopSignal:
    """Turns SIGTERM and SIGINT into a flag while it is entered.

    The loop reads ``requested`` between steps, saves and ends. A second SIGINT raises ``KeyboardInterrupt`` at once.
    Signals reach only the main thread: entered in another one, it changes nothing and the flag stays down.
    """

    def __init__(self) -> None:
        self.requested = False
        self._interrupted_at: float | None = None
        self._old_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old_handlers[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old_handlers.items():
            # None stands for a handler that Python did not install and cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._old_handlers.clear()

    def _request(self, number: int, _frame: FrameType | None) -> None:
        self.requested = True
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if self._interrupted_at is None:
            self._interrupted_at = now
        elif now - self._interrupted_at > _ECHO_SECONDS:
            raise KeyboardInterrupt
